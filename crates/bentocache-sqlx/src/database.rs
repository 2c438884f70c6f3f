//! Statements over a pool of sqlx.

use std::fmt;
use std::sync::Arc;

use bentocache_driver::ErrorKind;
use bentocache_sql::{Database, Dialect, Failure, Param, Rows, Statement, WriteSlots};
use sqlx::{AssertSqlSafe, Connection, Pool, Row};

use crate::file::File;
use crate::held::Held;
use crate::server::{Fitness, Server, Sessions};

/// The time limit for a statement behind a pooler, where each statement has a transaction anyway.
#[cfg(feature = "postgres")]
const BEGIN: &str = "begin; set local statement_timeout = 10000";
/// The same limit for a statement that scans many rows.
#[cfg(feature = "postgres")]
const BEGIN_LONG: &str = "begin; set local lock_timeout = 10000";

/// A pool of sqlx, for [`SqlAdapter`](bentocache_sql::SqlAdapter).
pub struct Sqlx<DB: sqlx::Database> {
    pool: Pool<DB>,
    is_own: bool,
    evicts: bool,
    #[cfg(feature = "postgres")]
    is_behind_pooler: bool,
    writes: WriteSlots,
    sessions: Sessions<DB>,
    file: File,
}

// The bounds are private because users never name them.
#[allow(private_bounds)]
impl<DB: Server> Sqlx<DB> {
    /// Uses a pool of the application, which stays open when the cache is disconnected.
    pub fn new(pool: Pool<DB>) -> Self {
        let writes = WriteSlots::of(pool.options().get_max_connections() as usize);
        let (sessions, file) = (Sessions::of(&pool), File::of(&pool));
        Self {
            pool,
            is_own: false,
            evicts: false,
            #[cfg(feature = "postgres")]
            is_behind_pooler: false,
            writes,
            sessions,
            file,
        }
    }

    /// Uses a pool that is closed with the cache.
    #[cfg(feature = "sqlite")]
    pub(crate) fn own(pool: Pool<DB>) -> Self {
        Self { is_own: true, ..Self::new(pool) }
    }

    /// Evicts the oldest rows when the database is full.
    #[cfg(feature = "sqlite")]
    pub(crate) fn evicting(mut self, evicts: bool) -> Self {
        self.evicts = evicts;
        self
    }

    /// A connection for this statement, to a server that accepts writes if there is one.
    async fn held(&self, statement: &Statement<'_>) -> Result<Held<DB>, Failure> {
        let told = |error| failure(DB::DIALECT, error);
        let patience = self.pool.options().get_acquire_timeout();
        let mut slot = None;
        if statement.is_write {
            slot = Some(self.writes.take(patience).await?);
        }
        // Every connection of the pool may lead to a demoted server.
        let mut most = self.pool.options().get_max_connections();
        loop {
            let mut held =
                Held::new(&self.pool, self.pool.acquire().await.map_err(told)?, slot.take());
            match self.sessions.look(held.connection()?).await {
                Ok(Fitness::Unfit) if most > 0 => {
                    slot = held.release(false);
                    most -= 1;
                }
                Ok(Fitness::Fit(session)) => {
                    held.runs(statement, session);
                    return Ok(held);
                }
                Ok(Fitness::Unfit) => return Ok(held),
                Err(error) => {
                    // The open transaction may be a failed one that nothing ends.
                    drop(held.release(false));
                    return Err(told(error));
                }
            }
        }
    }
}

#[cfg(feature = "postgres")]
impl Sqlx<sqlx::Postgres> {
    /// For a pool whose connections go through a pooler in transaction mode, such as PgBouncer with
    /// `pool_mode = transaction`.
    ///
    /// Such a pooler gives each transaction another connection to the server, which does not know
    /// statements that were prepared on the previous one. So each statement of the cache is unnamed
    /// and has a transaction of its own: three round trips instead of one.
    ///
    /// ```no_run
    /// use bentocache::sql::{DatabaseDriver, SqlAdapter};
    /// use bentocache::sqlx::Sqlx;
    ///
    /// # fn driver(pool: sqlx::PgPool) {
    /// let table = DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool).transaction_pooling()));
    /// # drop(table); }
    /// ```
    #[must_use]
    pub fn transaction_pooling(mut self) -> Self {
        self.is_behind_pooler = true;
        self.sessions.turn_off();
        self
    }
}

impl<DB: sqlx::Database> fmt::Debug for Sqlx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options of the connections: they may contain passwords.
        f.debug_struct("Sqlx").field("database", &DB::NAME).finish_non_exhaustive()
    }
}

/// The requested result of a statement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Count,
    Rows,
}

/// A macro, because the generic bounds would be longer than its three uses.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! database {
    ($feature:literal, $database:ty, $dialect:ident) => {
        #[cfg(feature = $feature)]
        impl Sqlx<$database> {
            async fn run(
                &self,
                statement: &Statement<'_>,
                wanted: Wanted,
            ) -> Result<(u64, Rows), Failure> {
                let told = |error| failure(Dialect::$dialect, error);
                let generation = self.file.check(&self.pool).await;
                let mut held = self.held(statement).await?;
                self.file.opened();
                let mut done = self.once(held.connection()?, statement, wanted).await;
                if matches!(&done, Err(failure) if failure.is_stale_plan()) {
                    // The adapter repeats the statement, which is then prepared again.
                    if let Err(error) = held.connection()?.clear_cached_statements().await {
                        done = Err(told(error));
                    }
                }
                let leads_elsewhere = matches!(&done, Err(failure) if failure.is_read_only());
                drop(held.release(self.file.generation() == generation && !leads_elsewhere));
                done
            }

            async fn on(
                connection: &mut <$database as sqlx::Database>::Connection,
                statement: &Statement<'_>,
                wanted: Wanted,
                is_persistent: bool,
            ) -> Result<(u64, Rows), Failure> {
                let told = |error| failure(Dialect::$dialect, error);
                let query = bound!(statement, is_persistent);
                if wanted == Wanted::Count {
                    let done = query.execute(connection).await.map_err(told)?;
                    return Ok((done.rows_affected(), Rows::new()));
                }
                let rows = if statement.is_single {
                    query.fetch_optional(connection).await.map(|row| row.into_iter().collect())
                } else {
                    query.fetch_all(connection).await
                };
                let rows: Vec<_> = rows.map_err(told)?;
                // Unchecked: text is read as its bytes.
                let both = rows.iter().map(|row| {
                    Ok((row.try_get_unchecked(0_usize)?, row.try_get_unchecked(1_usize)?))
                });
                Ok((0, both.collect::<sqlx::Result<_>>().map_err(told)?))
            }
        }

        #[cfg(feature = $feature)]
        impl Database for Sqlx<$database> {
            fn dialect(&self) -> Dialect {
                Dialect::$dialect
            }

            async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
                // Boxed, because deeply nested futures slow the compiler down.
                Ok(Box::pin(self.run(statement, Wanted::Count)).await?.0)
            }

            async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
                Ok(Box::pin(self.run(statement, Wanted::Rows)).await?.1)
            }

            fn evicts(&self) -> bool {
                self.evicts
            }

            fn trouble(&self) -> Option<String> {
                exhausted(&self.pool)
            }

            async fn close(&self) {
                if self.is_own {
                    self.pool.close().await;
                }
            }
        }
    };
}

#[cfg(feature = "postgres")]
impl Sqlx<sqlx::Postgres> {
    async fn once(
        &self,
        connection: &mut sqlx::PgConnection,
        statement: &Statement<'_>,
        wanted: Wanted,
    ) -> Result<(u64, Rows), Failure> {
        if !self.is_behind_pooler {
            return Self::on(connection, statement, wanted, statement.is_reused).await;
        }
        let told = |error| failure(Dialect::Postgres, error);
        let begin = if statement.is_long { BEGIN_LONG } else { BEGIN };
        let mut transaction = connection.begin_with(begin).await.map_err(told)?;
        let done = Self::on(&mut transaction, statement, wanted, false).await?;
        transaction.commit().await.map_err(told)?;
        Ok(done)
    }
}

#[cfg(feature = "mysql")]
impl Sqlx<sqlx::MySql> {
    async fn once(
        &self,
        connection: &mut sqlx::MySqlConnection,
        statement: &Statement<'_>,
        wanted: Wanted,
    ) -> Result<(u64, Rows), Failure> {
        Self::on(connection, statement, wanted, statement.is_reused).await
    }
}

#[cfg(feature = "sqlite")]
impl Sqlx<sqlx::Sqlite> {
    async fn once(
        &self,
        connection: &mut sqlx::SqliteConnection,
        statement: &Statement<'_>,
        wanted: Wanted,
    ) -> Result<(u64, Rows), Failure> {
        if !self.is_own {
            // No caller holds this connection, so nobody ends a transaction that was left open on
            // it. Mostly there is none, which is an error without effect. None of this takes a
            // round trip.
            let _ = sqlx::raw_sql("rollback").execute(&mut *connection).await;
        }
        let done = Self::on(connection, statement, wanted, statement.is_reused).await;
        match done {
            Err(full) if full.kind() == ErrorKind::Full && statement.sql.starts_with("delete") => {
                Err(self.emptied(full))
            }
            done => done,
        }
    }

    /// The fallback for a delete on a full disk: SQLite writes before it frees space. The file
    /// contains only the cache, so it is deleted and created again.
    pub(crate) fn emptied(&self, full: Failure) -> Failure {
        if !self.is_own {
            return full;
        }
        match self.file.discard() {
            Ok(()) => {
                tracing::warn!("the disk is full: a delete has emptied the whole SQLite cache");
                Failure::missing_table("the disk is full, so the file was emptied")
            }
            Err(error) => {
                let reason = format!("the disk is full, and the file cannot be deleted: {error}");
                Failure::new(ErrorKind::Full, reason)
            }
        }
    }
}

/// The query of a statement. Its text is safe: only the parameters contain data.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! bound {
    ($statement:ident, $is_persistent:ident) => {{
        let sql = AssertSqlSafe(Arc::clone(&$statement.sql));
        let query = sqlx::query(sql).persistent($is_persistent);
        $statement.params.iter().fold(query, |query, param| match *param {
            Param::Text(text) => query.bind(text),
            Param::Bytes(bytes) => query.bind(bytes),
            Param::Int(number) => query.bind(number),
        })
    }};
}

database!("postgres", sqlx::Postgres, Postgres);
database!("mysql", sqlx::MySql, MySql);
database!("sqlite", sqlx::Sqlite, Sqlite);

/// The reason why the pool has no free connection, if that is so.
pub(crate) fn exhausted<DB: sqlx::Database>(pool: &Pool<DB>) -> Option<String> {
    let most = pool.options().get_max_connections();
    (pool.num_idle() == 0 && pool.size() >= most).then(|| {
        format!(
            "all {most} connections of the pool are in use; raise its max_connections, or hold \
             them for less time"
        )
    })
}

/// The meaning of an error of sqlx. `Dialect` maps errors of the server.
pub(crate) fn failure(dialect: Dialect, error: sqlx::Error) -> Failure {
    use sqlx::Error::{Configuration, Database, Io, PoolClosed, PoolTimedOut, Tls};
    match error {
        Database(error) => dialect.failure(&code(&*error), error.message()),
        PoolTimedOut => Failure::new(
            ErrorKind::Timeout,
            "no connection within the acquire timeout of the pool: the server does not answer, or \
             all connections are in use; look at the server, let the pool have more connections, \
             or hold them for a shorter time",
        ),
        PoolClosed => Failure::new(ErrorKind::Closed, "the application has closed its pool"),
        Io(error) => {
            let reason = format!("the connection was lost or could not be made ({})", error.kind());
            Failure::new(ErrorKind::Unavailable, reason).with_source(error)
        }
        // Texts of TLS libraries concern certificates and protocols only.
        Tls(error) => {
            let reason = format!(
                "no TLS connection ({error}); look at the certificates, the name of the host and \
                 the TLS options of the pool"
            );
            Failure::new(ErrorKind::Denied, reason).with_source(error)
        }
        Configuration(_) => {
            Failure::new(ErrorKind::Config, "the options of the pool's connections cannot be used")
        }
        // Texts of the library, which contain no data.
        error => Failure::new(ErrorKind::Unavailable, error.to_string()),
    }
}

/// The code in the form that `Dialect` expects.
fn code(error: &(dyn sqlx::error::DatabaseError + 'static)) -> String {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return error.number().to_string();
    }
    error.code().unwrap_or_default().into_owned()
}
