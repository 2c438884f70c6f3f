//! Statements over a pool.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bentocache_driver::LastTrouble;
use bentocache_sql::{Failure, Statement, WriteSlot, WriteSlots};

use crate::failure::{NO_CONNECTION, NOT_DONE};

/// A pool of connections `C`, for [`SqlAdapter`](bentocache_sql::SqlAdapter).
pub struct Diesel<C, P> {
    pool: P,
    writes: OnceLock<WriteSlots>,
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    is_behind_pooler: bool,
    trouble: LastTrouble,
    connection: PhantomData<fn() -> C>,
}

impl<C, P> Diesel<C, P> {
    /// Uses a pool of the application, which stays open when the cache is disconnected.
    pub fn new(pool: P) -> Self {
        Self {
            pool,
            writes: OnceLock::new(),
            is_behind_pooler: false,
            trouble: LastTrouble::default(),
            connection: PhantomData,
        }
    }

    fn writes(&self, connections: Option<usize>) -> Option<WriteSlots> {
        let connections = connections?;
        Some(self.writes.get_or_init(|| WriteSlots::of(connections)).clone())
    }
}

/// The current obstacle of a statement; its task and its caller share it.
#[derive(Clone, Default)]
struct Step(Arc<AtomicU8>);

impl Step {
    const REASONS: [&str; 3] = [WriteSlots::EXHAUSTED, NO_CONNECTION, NOT_DONE];

    fn connects(&self) {
        self.0.store(1, Relaxed);
    }

    fn runs(&self) {
        self.0.store(2, Relaxed);
    }

    fn obstacle(&self) -> Option<String> {
        let reason = Self::REASONS.get(usize::from(self.0.load(Relaxed)))?;
        Some((*reason).to_owned())
    }
}

/// A write slot of the pool.
async fn slot(
    writes: Option<WriteSlots>,
    statement: &Statement<'_>,
) -> Result<Option<WriteSlot>, Failure> {
    match writes.filter(|_| statement.is_write) {
        Some(writes) => writes.take(Statement::LIMIT).await.map(Some),
        None => Ok(None),
    }
}

#[cfg(feature = "postgres")]
impl<P> Diesel<diesel_async::AsyncPgConnection, P> {
    /// For a pool whose connections go through a pooler in transaction mode, such as PgBouncer with
    /// `pool_mode = transaction`.
    ///
    /// Such a pooler gives each transaction another connection to the server, which does not know
    /// statements that were prepared on the previous one. So each statement of the cache is
    /// prepared, run and forgotten in a transaction of its own: four round trips instead of one.
    ///
    /// ```no_run
    /// use bentocache::diesel::{Diesel, Pool};
    /// use bentocache::sql::{DatabaseDriver, SqlAdapter};
    /// use diesel_async::AsyncPgConnection;
    ///
    /// # fn driver<P: Pool<AsyncPgConnection>>(pool: P) {
    /// let adapter = SqlAdapter::new(Diesel::new(pool).transaction_pooling());
    /// let table = DatabaseDriver::new(adapter);
    /// # drop(table); }
    /// ```
    #[must_use]
    pub fn transaction_pooling(mut self) -> Self {
        self.is_behind_pooler = true;
        self
    }
}

impl<C, P> fmt::Debug for Diesel<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the pool: its URL may contain a password.
        f.debug_struct("Diesel").finish_non_exhaustive()
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod over_async {
    use std::time::Duration;

    use bentocache_sql::{Database, Dialect, Failure, Rows, Statement};
    use diesel::QueryResult;
    use diesel_async::methods::{ExecuteDsl, LoadQuery};
    use diesel_async::{AsyncConnection, RunQueryDsl, TransactionManager};
    use tokio::sync::oneshot;
    use tokio::time::{Instant, sleep, timeout};

    use super::{Diesel, Step, slot};
    use crate::Pool;
    use crate::failure::{failure, no_answer, pool_timed_out};
    use crate::server::Server;
    use crate::statement::Owned;

    /// How long a statement may run that nobody waits for any more. Then it is cancelled and its
    /// connection dropped, because a silent server would hold it for good.
    const ABANDONED: Duration = Duration::from_secs(5);
    /// The same limit for a statement that scans many rows, and may be working.
    const ABANDONED_LONG: Duration = Duration::from_secs(60);
    /// The pause before a statement is repeated.
    const PAUSE: Duration = Duration::from_millis(10);
    /// The time limit for the cancellation of a statement.
    const CANCEL: Duration = Duration::from_secs(5);

    /// The requested result of a statement.
    #[derive(Clone, Copy)]
    enum Wanted {
        Count,
        Rows,
    }

    /// Runs a statement. If a pooler mixed it up with another one, it did not run and is repeated;
    /// that includes the statements with which diesel-async begins each connection.
    async fn run<C, P>(
        diesel: &Diesel<C, P>,
        statement: &Statement<'_>,
        wanted: Wanted,
    ) -> Result<(usize, Rows), Failure>
    where
        C: Server + 'static,
        P: Pool<C>,
        Owned: ExecuteDsl<C> + for<'q> LoadQuery<'q, C, (Vec<u8>, Vec<u8>)>,
    {
        let (start, step) = (Instant::now(), Step::default());
        loop {
            let attempt = attempt(diesel, statement, wanted, step.clone());
            let done = diesel.trouble.watch(attempt, || step.obstacle()).await;
            let is_mixed_up = done.as_ref().is_err_and(Failure::is_mixed_up);
            if !is_mixed_up || !diesel.is_behind_pooler || start.elapsed() >= Statement::LIMIT {
                return done;
            }
            sleep(PAUSE).await;
        }
    }

    /// Runs a statement in a task of its own: a connection whose call was dropped half way would
    /// give its next user the answer to this statement.
    async fn attempt<C, P>(
        diesel: &Diesel<C, P>,
        statement: &Statement<'_>,
        wanted: Wanted,
        step: Step,
    ) -> Result<(usize, Rows), Failure>
    where
        C: Server + 'static,
        P: Pool<C>,
        Owned: ExecuteDsl<C> + for<'q> LoadQuery<'q, C, (Vec<u8>, Vec<u8>)>,
    {
        let writes = diesel.writes(diesel.pool.max_connections());
        let slot = slot(writes, statement).await?;
        let begin = C::begin(statement, diesel.is_behind_pooler);
        let patience = if statement.is_long { ABANDONED_LONG } else { ABANDONED };
        let mut statement = Owned::from(statement);
        statement.is_reused &= begin.is_none();
        let (mut answer, answered) = oneshot::channel();
        let pool = diesel.pool.clone();
        step.connects();
        let running = tokio::spawn(async move {
            let connection = tokio::select! {
                // A pool may have no limit of its own.
                connection = timeout(Statement::LIMIT, pool.connection()) => {
                    connection.unwrap_or_else(|_| Err(pool_timed_out()))
                }
                () = answer.closed() => return,
            };
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(failure) => {
                    let _ = answer.send(Err(failure));
                    return;
                }
            };
            let cancel = connection.canceller();
            step.runs();
            let outcome = tokio::select! {
                outcome = on(&mut *connection, statement, wanted, begin) => Some(outcome),
                () = async { answer.closed().await; sleep(patience).await } => None,
            };
            match outcome {
                Some(outcome) => {
                    let outcome = outcome.map_err(|error| failure(C::DIALECT, &error));
                    let is_useless = |failure: &Failure| {
                        // Its other prepared statements are stale as well; or a new connection may
                        // reach a server that accepts writes.
                        failure.is_stale_plan() || failure.is_read_only()
                    };
                    if outcome.as_ref().is_err_and(is_useless) {
                        give_up(&mut *connection);
                    }
                    drop((connection, slot));
                    let _ = answer.send(outcome);
                }
                None => {
                    give_up(&mut *connection);
                    // If the cancellation fails, the server continues the statement.
                    let _ = timeout(CANCEL, C::cancel(cancel)).await;
                    drop((connection, slot));
                }
            }
        });
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer(running.await.err().as_ref())),
        }
    }

    /// No pool accepts such a connection back.
    fn give_up<C: AsyncConnection>(connection: &mut C) {
        C::TransactionManager::transaction_manager_status_mut(connection).set_in_error();
    }

    /// Runs a statement, in a transaction of its own if there is a text to begin it.
    async fn on<C>(
        connection: &mut C,
        statement: Owned,
        wanted: Wanted,
        begin: Option<&'static str>,
    ) -> QueryResult<(usize, Rows)>
    where
        C: Server,
        Owned: ExecuteDsl<C> + for<'q> LoadQuery<'q, C, (Vec<u8>, Vec<u8>)>,
    {
        let Some(begin) = begin else { return once(connection, statement, wanted).await };
        connection.batch_execute(begin).await?;
        let done = once(connection, statement, wanted).await;
        if done.is_ok() {
            connection.batch_execute("commit").await?;
        } else if connection.batch_execute("rollback").await.is_err() {
            give_up(connection);
        }
        done
    }

    async fn once<C>(
        connection: &mut C,
        statement: Owned,
        wanted: Wanted,
    ) -> QueryResult<(usize, Rows)>
    where
        C: Server,
        Owned: ExecuteDsl<C> + for<'q> LoadQuery<'q, C, (Vec<u8>, Vec<u8>)>,
    {
        match wanted {
            Wanted::Count => Ok((statement.execute(connection).await?, Rows::new())),
            Wanted::Rows => Ok((0, statement.load(connection).await?)),
        }
    }

    macro_rules! database {
        ($feature:literal, $connection:ident, $dialect:ident) => {
            #[cfg(feature = $feature)]
            impl<P: Pool<diesel_async::$connection>> Database
                for Diesel<diesel_async::$connection, P>
            {
                fn dialect(&self) -> Dialect {
                    Dialect::$dialect
                }

                async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
                    let ran = run(self, statement, Wanted::Count).await?;
                    Ok(ran.0 as u64)
                }

                async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
                    let ran = run(self, statement, Wanted::Rows).await?;
                    Ok(ran.1)
                }

                fn trouble(&self) -> Option<String> {
                    self.trouble.recent()
                }
            }
        };
    }

    database!("postgres", AsyncPgConnection, Postgres);
    database!("mysql", AsyncMysqlConnection, MySql);
}

#[cfg(feature = "sqlite")]
mod over_threads {
    use std::time::Duration;

    use bentocache_sql::{Database, Dialect, Failure, Rows, Statement};
    use diesel::connection::SimpleConnection;
    use diesel::r2d2::{ConnectionManager, Pool, PooledConnection};
    use diesel::{QueryResult, RunQueryDsl, SqliteConnection};
    use tokio::time::{Instant, sleep};

    use super::{Diesel, Step, slot};
    use crate::failure::{failure, no_answer, not_connected};
    use crate::statement::Owned;

    type Sqlite = ConnectionManager<SqliteConnection>;

    /// The pause before the pool is asked for a connection again.
    const PAUSE: Duration = Duration::from_millis(10);
    /// One of this many requests makes the pool open a connection.
    const OPEN: u32 = 8;

    /// Waits for a connection without blocking a thread: the application shares Tokio's blocking
    /// threads, and r2d2 would hold one for half a minute.
    async fn connection(pool: &Pool<Sqlite>) -> Result<PooledConnection<Sqlite>, Failure> {
        let deadline = Instant::now() + pool.connection_timeout();
        let mut said = String::new();
        for attempt in 0_u32.. {
            let asked = pool.clone();
            let asking = tokio::task::spawn_blocking(move || {
                let found = asked.try_get();
                // Only this call makes the pool open a connection, and returns the reason of a
                // failure.
                let opens = found.is_none() && attempt.is_multiple_of(OPEN);
                if opens { asked.get_timeout(Duration::ZERO).map(Some) } else { Ok(found) }
            });
            match asking.await.map_err(|error| no_answer(Some(&error)))? {
                Ok(Some(connection)) => return Ok(connection),
                Ok(None) => {}
                Err(error) => said = error.to_string(),
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(PAUSE).await;
        }
        Err(not_connected(&said))
    }

    impl Diesel<SqliteConnection, Pool<Sqlite>> {
        /// Runs a statement on a blocking thread. At most as many run as the pool has connections.
        async fn run<T: Send + 'static>(
            &self,
            statement: &Statement<'_>,
            call: impl FnOnce(Owned, &mut SqliteConnection) -> QueryResult<T> + Send + 'static,
        ) -> Result<T, Failure> {
            let step = Step::default();
            let attempt = self.attempt(statement, call, &step);
            self.trouble.watch(attempt, || step.obstacle()).await
        }

        async fn attempt<T: Send + 'static>(
            &self,
            statement: &Statement<'_>,
            call: impl FnOnce(Owned, &mut SqliteConnection) -> QueryResult<T> + Send + 'static,
            step: &Step,
        ) -> Result<T, Failure> {
            let most = usize::try_from(self.pool.max_size()).ok();
            let slot = slot(self.writes(most), statement).await?;
            step.connects();
            let mut connection = connection(&self.pool).await?;
            step.runs();
            let statement = Owned::from(statement);
            let running = tokio::task::spawn_blocking(move || {
                // No caller holds this connection, so nobody ends a transaction that was left open
                // on it. Mostly there is none, which is an error without effect.
                let _ = connection.batch_execute("rollback");
                let answer = call(statement, &mut connection);
                drop((connection, slot));
                answer.map_err(|error| failure(Dialect::Sqlite, &error))
            });
            running.await.unwrap_or_else(|error| Err(no_answer(Some(&error))))
        }
    }

    impl Database for Diesel<SqliteConnection, Pool<Sqlite>> {
        fn dialect(&self) -> Dialect {
            Dialect::Sqlite
        }

        async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
            let count = self.run(statement, RunQueryDsl::execute).await?;
            Ok(count as u64)
        }

        async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
            self.run(statement, RunQueryDsl::load).await
        }

        fn trouble(&self) -> Option<String> {
            self.trouble.recent()
        }
    }
}
