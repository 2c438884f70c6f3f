//! Statements over a pool of sqlx.

use std::fmt;
use std::sync::Arc;

use bentocache_core::ErrorKind;
use bentocache_sql::{Database, Dialect, Failure, Param, Rows, Statement};
use sqlx::{AssertSqlSafe, Pool, Row};

/// A pool of sqlx, for [`SqlAdapter`](bentocache_sql::SqlAdapter).
pub struct Sqlx<DB: sqlx::Database> {
    pool: Pool<DB>,
    is_own: bool,
}

impl<DB: sqlx::Database> Sqlx<DB> {
    /// Over a pool of the application's, which stays open when the cache is disconnected.
    pub fn new(pool: Pool<DB>) -> Self {
        Self { pool, is_own: false }
    }

    /// Over a pool that is closed with the cache.
    #[cfg(feature = "sqlite")]
    pub(crate) fn own(pool: Pool<DB>) -> Self {
        Self { pool, is_own: true }
    }
}

impl<DB: sqlx::Database> fmt::Debug for Sqlx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options of the connections: there may be passwords in them.
        f.debug_struct("Sqlx").field("database", &DB::NAME).finish_non_exhaustive()
    }
}

/// A macro, because the bounds that would make it generic are longer than the three of it.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! database {
    ($feature:literal, $database:ty, $dialect:ident) => {
        #[cfg(feature = $feature)]
        impl Database for Sqlx<$database> {
            fn dialect(&self) -> Dialect {
                Dialect::$dialect
            }

            async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
                let query = bound!(statement);
                let done = query.execute(&self.pool).await;
                done.map(|done| done.rows_affected()).map_err(|e| failure(Dialect::$dialect, e))
            }

            async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
                let query = bound!(statement);
                let rows = if statement.is_single {
                    query.fetch_optional(&self.pool).await.map(|row| row.into_iter().collect())
                } else {
                    query.fetch_all(&self.pool).await
                };
                let rows: Vec<_> = rows.map_err(|e| failure(Dialect::$dialect, e))?;
                // Unchecked: text is read as its bytes.
                let both = rows.iter().map(|row| {
                    Ok((row.try_get_unchecked(0_usize)?, row.try_get_unchecked(1_usize)?))
                });
                both.collect::<sqlx::Result<_>>().map_err(|e| failure(Dialect::$dialect, e))
            }

            async fn close(&self) {
                if self.is_own {
                    self.pool.close().await;
                }
            }
        }
    };
}

/// The query of a statement. Its text is safe: data is in the parameters only.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! bound {
    ($statement:ident) => {{
        let sql = AssertSqlSafe(Arc::clone(&$statement.sql));
        let query = sqlx::query(sql).persistent($statement.is_reused);
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

/// What an error of sqlx means. Errors of the server are told by `Dialect`.
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
        Tls(error) => {
            Failure::new(ErrorKind::Unavailable, "no TLS connection; see the cause of this error")
                .with_source(error)
        }
        Configuration(_) => {
            Failure::new(ErrorKind::Config, "the options of the pool's connections cannot be used")
        }
        // Of the library: none of them has data in it.
        error => Failure::new(ErrorKind::Unavailable, error.to_string()),
    }
}

/// The code as `Dialect` knows it.
fn code(error: &(dyn sqlx::error::DatabaseError + 'static)) -> String {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return error.number().to_string();
    }
    error.code().unwrap_or_default().into_owned()
}
