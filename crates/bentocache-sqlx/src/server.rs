//! The server's side of a connection: its session number, and whether it accepts writes.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bentocache_sql::Dialect;
use sqlx::{Database, Pool};

/// How often the server of a connection is asked whether it accepts writes.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a connection is used whose server refused writes from the start: there may be no better
/// server yet.
const WITHOUT_WRITES: Duration = Duration::from_secs(3);
/// A bad connection in use is left within five seconds.
const _: () = assert!(INTERVAL.as_secs() + WITHOUT_WRITES.as_secs() <= 5);

/// The question to a server.
pub(crate) struct Answer {
    pub(crate) id: i64,
    pub(crate) is_writable: bool,
    /// Whether a transaction was left open.
    pub(crate) is_open: bool,
}

/// A database whose connections lead to a server that can be asked.
pub(crate) trait Server: Database {
    const DIALECT: Dialect;

    /// The prepared statement of a connection, whose address stays the same while the connection
    /// lives. Only the first use takes a round trip. `None` if there is nothing to ask, or if
    /// connections keep no statements.
    fn question(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = sqlx::Result<Option<(usize, Self::Statement)>>> + Send;

    /// The answer to it.
    fn ask(
        connection: &mut Self::Connection,
        question: &Self::Statement,
    ) -> impl Future<Output = sqlx::Result<Answer>> + Send;

    /// Cancels, on the server, a statement that nobody waits for any more.
    fn cancel(
        pool: &Pool<Self>,
        statement: &Abandoned,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
}

/// A statement that the server may still be executing.
#[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
#[derive(Clone)]
pub(crate) struct Abandoned {
    /// The session that executes it.
    pub(crate) session: i64,
    pub(crate) sql: Arc<str>,
    pub(crate) is_long: bool,
}

/// The sessions behind the connections of a pool.
pub(crate) struct Sessions<DB: Database> {
    known: Mutex<HashMap<usize, Session<DB>>>,
    most: usize,
    /// Whether statements are prepared at all, which identifies a connection.
    is_off: AtomicBool,
}

struct Session<DB: Database> {
    id: i64,
    /// The key of a session is the address of this value.
    _question: DB::Statement,
    since: Instant,
    asked: Instant,
    is_writable: bool,
}

/// Whether a connection should be used.
pub(crate) enum Fitness {
    /// Yes, with its session if known.
    Fit(Option<i64>),
    /// No: its server refuses writes, and a new connection may reach another server; or a write
    /// would become part of a transaction that nobody ends.
    Unfit,
}

impl<DB: Server> Sessions<DB> {
    pub(crate) fn of(pool: &Pool<DB>) -> Self {
        let most = pool.options().get_max_connections() as usize;
        Self { known: Mutex::default(), most, is_off: AtomicBool::new(false) }
    }

    /// Asks nothing from now on: behind a pooler a connection has no server of its own.
    pub(crate) fn turn_off(&self) {
        self.is_off.store(true, Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<usize, Session<DB>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a connection before use; asks its server if the last check is old.
    pub(crate) async fn look(&self, connection: &mut DB::Connection) -> sqlx::Result<Fitness> {
        if self.is_off.load(Relaxed) {
            return Ok(Fitness::Fit(None));
        }
        let Some((address, question)) = DB::question(connection).await? else {
            self.turn_off();
            return Ok(Fitness::Fit(None));
        };
        if let Some(session) = self.known().get(&address)
            && session.asked.elapsed() < INTERVAL
        {
            return Ok(Fitness::Fit(Some(session.id)));
        }
        let answer = DB::ask(connection, &question).await?;
        Ok(self.note(address, question, &answer))
    }

    fn note(&self, address: usize, question: DB::Statement, answer: &Answer) -> Fitness {
        let now = Instant::now();
        let mut known = self.known();
        let (was_writable, since) = match known.remove(&address) {
            Some(session) => (session.is_writable, session.since),
            None => (false, now),
        };
        if answer.is_open {
            tracing::warn!(
                "the application has given back a connection with an open transaction; closing it"
            );
            return Fitness::Unfit;
        }
        if !answer.is_writable && (was_writable || now - since >= WITHOUT_WRITES) {
            tracing::debug!("leaving a connection whose server takes no writes");
            return Fitness::Unfit;
        }
        // Sessions of closed connections.
        while known.len() > 2 * self.most {
            let Some(oldest) = known.iter().min_by_key(|(_, session)| session.asked) else { break };
            let oldest = *oldest.0;
            known.remove(&oldest);
        }
        let (id, is_writable) = (answer.id, answer.is_writable);
        known.insert(address, Session { id, _question: question, since, asked: now, is_writable });
        Fitness::Fit(Some(id))
    }
}

/// A macro, because the generic bounds would be longer than its two uses.
#[cfg(any(feature = "postgres", feature = "mysql"))]
macro_rules! questions {
    ($question:expr) => {
        async fn question(
            connection: &mut Self::Connection,
        ) -> sqlx::Result<Option<(usize, Self::Statement)>> {
            use sqlx::{Connection, Executor, SqlSafeStr, Statement};
            let question = connection.prepare($question.into_sql_str()).await?;
            let is_kept = connection.cached_statements_size() > 0;
            Ok(is_kept.then(|| (question.columns().as_ptr().addr(), question)))
        }

        async fn ask(
            connection: &mut Self::Connection,
            question: &Self::Statement,
        ) -> sqlx::Result<Answer> {
            use sqlx::{Row, Statement};
            let row = question.query().fetch_one(connection).await?;
            let (id, is_read_only, is_open): (i64, i64, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Answer { id, is_writable: is_read_only == 0, is_open: is_open != 0 })
        }
    };
}

#[cfg(feature = "postgres")]
impl Server for sqlx::Postgres {
    const DIALECT: Dialect = Dialect::Postgres;

    // A transaction begins with its first statement, unless one is open already.
    questions!(
        "select pg_backend_pid()::bigint, \
         (pg_is_in_recovery() or current_setting('transaction_read_only')::bool)::int::bigint, \
         (txid_current_if_assigned() is not null \
         or statement_timestamp() - now() > interval '100 ms')::int::bigint"
    );

    /// Cancels the statement only if the session has run the same text for three seconds: behind a
    /// pooler, another client may use the session by now. A clear or a prune is cancelled only
    /// while it waits for a lock.
    async fn cancel(pool: &Pool<Self>, statement: &Abandoned) -> sqlx::Result<()> {
        let cancel = "select pg_cancel_backend(pid) from pg_stat_activity \
                      where pid = $1 and state = 'active' and starts_with($2, query) \
                      and query_start < clock_timestamp() - interval '3 seconds' \
                      and (wait_event_type = 'Lock' or not $3)";
        let cancel = sqlx::query(cancel)
            .persistent(false)
            .bind(i32::try_from(statement.session).unwrap_or_default())
            .bind(&*statement.sql)
            .bind(statement.is_long);
        cancel.execute(pool).await.map(drop)
    }
}

#[cfg(feature = "mysql")]
impl Server for sqlx::MySql {
    const DIALECT: Dialect = Dialect::MySql;

    questions!(
        "select cast(connection_id() as signed), \
         cast(cast(@@global.read_only as char) not in ('0', 'OFF') as signed), \
         cast(0 /*M!100500 or @@in_transaction */ as signed)"
    );

    /// Kills the statement only if the session has run a statement that begins with the same text
    /// for three seconds: behind a proxy, another client may use the session by now. Statements
    /// contain their time limit for MariaDB, which MySQL ignores; there, the server's timeouts end
    /// a clear or a prune that waits for a lock, because nothing shows whether it waits.
    async fn cancel(pool: &Pool<Self>, statement: &Abandoned) -> sqlx::Result<()> {
        if statement.is_long {
            return Ok(());
        }
        // The server may show the values instead of the question marks.
        let start = statement.sql.split('?').next().unwrap_or_default();
        let running = "select cast(id as signed) from information_schema.processlist \
                       where id = ? and command <> 'Sleep' and time >= 3 and locate(?, info) = 1";
        let running: Option<i64> = sqlx::query_scalar(running)
            .persistent(false)
            .bind(statement.session)
            .bind(start)
            .fetch_optional(pool)
            .await?;
        let Some(session) = running else { return Ok(()) };
        let kill = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("kill query {session}")));
        kill.execute(pool).await.map(drop)
    }
}

#[cfg(feature = "sqlite")]
impl Server for sqlx::Sqlite {
    const DIALECT: Dialect = Dialect::Sqlite;

    async fn question(_: &mut Self::Connection) -> sqlx::Result<Option<(usize, Self::Statement)>> {
        Ok(None)
    }

    async fn ask(_: &mut Self::Connection, _: &Self::Statement) -> sqlx::Result<Answer> {
        Ok(Answer { id: 0, is_writable: true, is_open: false })
    }

    /// SQLite's busy timeout ends it.
    async fn cancel(_: &Pool<Self>, _: &Abandoned) -> sqlx::Result<()> {
        Ok(())
    }
}
