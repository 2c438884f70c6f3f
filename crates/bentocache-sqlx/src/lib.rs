//! PostgreSQL, MySQL and SQLite through [sqlx] as L2 of Bentocache, PostgreSQL also as its bus.
//!
#![cfg_attr(feature = "postgres", doc = "```no_run")]
#![cfg_attr(not(feature = "postgres"), doc = "```ignore")]
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::sqlx::{PgNotifyBus, postgres};
//! use sqlx::PgPool;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = PgPool::connect("postgres://app@127.0.0.1/app").await?;
//!     let (table, bus) = (postgres(pool.clone()), PgNotifyBus::new(pool));
//!     let store = Store::new().l1(Memory::new()).l2(table).bus(bus);
//!     let bento = BentoCache::builder().ttl("10m").grace("6h").store("main", store).build().await?;
//!
//!     let load = |_| async { std::fs::read_to_string("motd.txt") };
//!     println!("{}", bento.get_or_set("motd", load).await?);
//!     bento.disconnect().await?;
//!     Ok(())
//! }
//! ```
//!
//! - `postgres`, `mysql` and `sqlite`: L2 over a pool of the application.
//! - `open_sqlite`: L2 in a file of its own.
//! - `PgNotifyBus`: the bus over `LISTEN` and `NOTIFY` of PostgreSQL.
//!
//! The page of [`bentocache_sql`] lists the guarantees for all databases; the guide is
//! `docs/sql.md`.
//!
//! # Features
//!
//! - `postgres`, the default: PostgreSQL as L2 and bus, in pure Rust.
//! - `mysql`: MySQL and MariaDB.
//! - `sqlite`: compiles SQLite, which needs a C compiler.
//!
//! The pool decides about TLS: enable a feature of sqlx, such as `tls-rustls`.
//!
//! [sqlx]: https://docs.rs/sqlx

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod database;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod file;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod held;
#[cfg(feature = "postgres")]
mod notify;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod server;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use database::Sqlx;
#[cfg(feature = "postgres")]
pub use notify::PgNotifyBus;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteDriver, SqliteFile, open_sqlite};

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
use bentocache_sql::{DatabaseDriver, SqlAdapter};

/// L2 on PostgreSQL.
#[cfg(feature = "postgres")]
pub type PostgresDriver = DatabaseDriver<SqlAdapter<Sqlx<sqlx::Postgres>>>;
/// L2 on MySQL or MariaDB.
#[cfg(feature = "mysql")]
pub type MySqlDriver = DatabaseDriver<SqlAdapter<Sqlx<sqlx::MySql>>>;

/// L2 on PostgreSQL, over a pool of the application.
#[cfg(feature = "postgres")]
pub fn postgres(pool: sqlx::PgPool) -> PostgresDriver {
    DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool)))
}

/// L2 on MySQL or MariaDB, over a pool of the application.
#[cfg(feature = "mysql")]
pub fn mysql(pool: sqlx::MySqlPool) -> MySqlDriver {
    DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool)))
}

/// L2 on SQLite, over a pool of the application. See [`open_sqlite`] for a pool whose settings suit
/// a cache.
#[cfg(feature = "sqlite")]
pub fn sqlite(pool: sqlx::SqlitePool) -> SqliteDriver {
    DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool)))
}
