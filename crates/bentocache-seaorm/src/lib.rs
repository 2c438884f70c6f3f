//! The database of a [SeaORM](https://docs.rs/sea-orm) application as L2 of Bentocache.
//!
#![cfg_attr(feature = "postgres", doc = "```no_run")]
#![cfg_attr(not(feature = "postgres"), doc = "```ignore")]
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::seaorm::{database, notify_bus};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let db = sea_orm::Database::connect("postgres://app@127.0.0.1/app").await?;
//!     let store = Store::new().l1(Memory::new()).l2(database(&db)?).bus(notify_bus(&db)?);
//!     let bento = BentoCache::builder().ttl("10m").grace("6h").store("main", store).build().await?;
//!
//!     let load = |_| async { std::fs::read_to_string("motd.txt") };
//!     println!("{}", bento.get_or_set("motd", load).await?);
//!     bento.disconnect().await?;
//!     Ok(())
//! }
//! ```
//!
//! The cache uses the pool inside of the `DatabaseConnection` through [`bentocache_sqlx`], without
//! SeaORM's query layer. The page of [`bentocache_sql`] lists the guarantees; the guide of
//! [`bentocache_sqlx`] has options, tables and limits.
//!
//! # Features
//!
//! - `postgres`, the default: PostgreSQL, and the bus over it.
//! - `mysql`: MySQL and MariaDB.
//! - `sqlite`: compiles SQLite, which needs a C compiler.

#[cfg(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")))]
compile_error!("choose a database: a feature `postgres`, `mysql` or `sqlite` of bentocache-seaorm");

use bentocache_driver::{DriverError, ErrorKind};
use bentocache_sql::{Database, DatabaseDriver, Dialect, Failure, Rows, SqlAdapter, Statement};
#[cfg(feature = "postgres")]
use bentocache_sqlx::PgNotifyBus;
use bentocache_sqlx::Sqlx;
use sea_orm::{DatabaseConnection, DatabaseConnectionType};

/// L2 on the database of a SeaORM application.
pub type SeaOrmDriver = DatabaseDriver<SqlAdapter<SeaOrm>>;

/// The pool of a `DatabaseConnection`.
#[derive(Debug)]
pub struct SeaOrm(Kind);

#[derive(Debug)]
enum Kind {
    #[cfg(feature = "postgres")]
    Postgres(Sqlx<sqlx::Postgres>),
    #[cfg(feature = "mysql")]
    MySql(Sqlx<sqlx::MySql>),
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlx<sqlx::Sqlite>),
}

/// L2 on the database of this connection, which still belongs to the application.
///
/// # Errors
/// [`ErrorKind::Config`] if it is not a connection to PostgreSQL, MySQL or SQLite through sqlx, or
/// if the feature of its database is disabled.
pub fn database(connection: &DatabaseConnection) -> Result<SeaOrmDriver, DriverError> {
    Ok(DatabaseDriver::new(SqlAdapter::new(SeaOrm::new(connection)?)))
}

/// The bus over `LISTEN` and `NOTIFY` on the database of this connection.
///
/// # Errors
/// [`ErrorKind::Config`] if it is not a connection to PostgreSQL.
#[cfg(feature = "postgres")]
pub fn notify_bus(connection: &DatabaseConnection) -> Result<PgNotifyBus, DriverError> {
    match &connection.inner {
        DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
            Ok(PgNotifyBus::new(connection.get_postgres_connection_pool().clone()))
        }
        _ => Err(unusable("the bus needs a connection to PostgreSQL")),
    }
}

fn unusable(message: &str) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("seaorm: {message}"))
}

impl SeaOrm {
    /// The pool of this connection, which still belongs to the application.
    ///
    /// # Errors
    /// As [`database`].
    pub fn new(connection: &DatabaseConnection) -> Result<Self, DriverError> {
        Ok(Self(match &connection.inner {
            #[cfg(feature = "postgres")]
            DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
                Kind::Postgres(Sqlx::new(connection.get_postgres_connection_pool().clone()))
            }
            #[cfg(feature = "mysql")]
            DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
                Kind::MySql(Sqlx::new(connection.get_mysql_connection_pool().clone()))
            }
            #[cfg(feature = "sqlite")]
            DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
                Kind::Sqlite(Sqlx::new(connection.get_sqlite_connection_pool().clone()))
            }
            _ => {
                return Err(unusable(
                    "the connection is not open, or to a database whose feature of \
                     bentocache-seaorm is off: `postgres`, `mysql` or `sqlite`",
                ));
            }
        }))
    }
}

#[cfg(feature = "postgres")]
impl SeaOrm {
    /// For a connection to PostgreSQL through a pooler in transaction mode, such as PgBouncer; see
    /// [`Sqlx::transaction_pooling`]. It has no effect on other databases.
    ///
    /// ```no_run
    /// use bentocache::seaorm::{SeaOrm, SeaOrmDriver};
    /// use bentocache::sql::{DatabaseDriver, SqlAdapter};
    ///
    /// # fn driver(db: sea_orm::DatabaseConnection) -> Result<(), bentocache_driver::DriverError> {
    /// let table: SeaOrmDriver =
    ///     DatabaseDriver::new(SqlAdapter::new(SeaOrm::new(&db)?.transaction_pooling()));
    /// # drop(table); Ok(()) }
    /// ```
    #[must_use]
    pub fn transaction_pooling(self) -> Self {
        Self(match self.0 {
            Kind::Postgres(pool) => Kind::Postgres(pool.transaction_pooling()),
            #[cfg(any(feature = "mysql", feature = "sqlite"))]
            other => other,
        })
    }
}

/// The same call on any of the databases.
macro_rules! each {
    ($kind:expr, $pool:ident => $call:expr) => {
        match $kind {
            #[cfg(feature = "postgres")]
            Kind::Postgres($pool) => $call,
            #[cfg(feature = "mysql")]
            Kind::MySql($pool) => $call,
            #[cfg(feature = "sqlite")]
            Kind::Sqlite($pool) => $call,
        }
    };
}

impl Database for SeaOrm {
    fn dialect(&self) -> Dialect {
        each!(&self.0, pool => pool.dialect())
    }

    async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
        each!(&self.0, pool => pool.execute(statement).await)
    }

    async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
        each!(&self.0, pool => pool.query(statement).await)
    }

    fn trouble(&self) -> Option<String> {
        each!(&self.0, pool => pool.trouble())
    }
}
