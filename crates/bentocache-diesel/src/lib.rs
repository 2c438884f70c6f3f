//! The database of a [Diesel](https://docs.rs/diesel) application as L2 of Bentocache.
//!
#![cfg_attr(all(feature = "postgres", feature = "deadpool"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "postgres", feature = "deadpool")), doc = "```ignore")]
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::diesel::postgres;
//! use diesel_async::AsyncPgConnection;
//! use diesel_async::pooled_connection::AsyncDieselConnectionManager;
//! use diesel_async::pooled_connection::deadpool::Pool;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let url = "postgres://app@127.0.0.1/app";
//!     let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(url);
//!     let pool = Pool::builder(manager).build()?;
//!     let store = Store::new().l1(Memory::new()).l2(postgres(pool));
//!     let bento = BentoCache::builder().ttl("10m").grace("6h").store("main", store).build().await?;
//!
//!     let load = |_| async { std::fs::read_to_string("motd.txt") };
//!     println!("{}", bento.get_or_set("motd", load).await?);
//!     bento.disconnect().await?;
//!     Ok(())
//! }
//! ```
//!
//! - `postgres` and `mysql`: L2 over a pool of [diesel-async](https://docs.rs/diesel-async):
//!   deadpool, bb8, or any other through [`Pool`].
//! - `sqlite`: L2 over an r2d2 pool of Diesel. Its statements run on Tokio's blocking threads.
//!
//! A statement continues when its caller stops waiting, because its connection could not be reused
//! otherwise. A statement without an answer five seconds later is cancelled on PostgreSQL, and
//! loses its connection; MariaDB ends it after at most ten seconds. A clear or a prune may take a
//! minute longer, but waits for locks for at most ten seconds. Writes hold at most half of the
//! connections, so that reads continue while writes wait for a lock.
//!
//! SQLite should be in WAL mode and wait for other writers. Set both on each connection of the
//! pool, with a `CustomizeConnection` of r2d2: `PRAGMA journal_mode = wal; PRAGMA synchronous =
//! normal; PRAGMA busy_timeout = 5000`.
//!
//! A connection does not notice that its server has become a standby, and a pool that only reads
//! would keep using it. Let the pool check that, instead of its own test, when it hands out a
//! connection:
//!
#![cfg_attr(all(feature = "postgres", feature = "deadpool"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "postgres", feature = "deadpool")), doc = "```ignore")]
//! use diesel_async::AsyncPgConnection;
//! use diesel_async::pooled_connection::deadpool::{BuildError, Pool};
//! use diesel_async::pooled_connection::{
//!     AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
//! };
//!
//! fn pool(url: &str) -> Result<Pool<AsyncPgConnection>, BuildError> {
//!     let mut config = ManagerConfig::default();
//!     // Fails on a standby.
//!     let ask = "select 1 / (not pg_is_in_recovery())::int";
//!     config.recycling_method = RecyclingMethod::CustomQuery(ask.into());
//!     Pool::builder(AsyncDieselConnectionManager::new_with_config(url, config)).build()
//! }
//! ```
//!
//! The same configuration has `custom_setup`, which opens connections. Read a changing password
//! there, so that a change needs no restart:
//!
#![cfg_attr(all(feature = "postgres", feature = "deadpool"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "postgres", feature = "deadpool")), doc = "```ignore")]
//! use diesel::ConnectionError;
//! use diesel_async::pooled_connection::ManagerConfig;
//! use diesel_async::{AsyncConnection, AsyncPgConnection};
//!
//! fn config() -> ManagerConfig<AsyncPgConnection> {
//!     let mut config = ManagerConfig::default();
//!     config.custom_setup = Box::new(|url| {
//!         Box::pin(async move {
//!             let password = std::fs::read_to_string("/run/secrets/db");
//!             let password = password.map_err(|e| ConnectionError::BadConnection(e.to_string()))?;
//!             AsyncPgConnection::establish(&format!("{url}?password={password}")).await
//!         })
//!     });
//!     config
//! }
//! ```
//!
//! The page of [`bentocache_sql`] lists the guarantees for all databases. The bus over `LISTEN` and
//! `NOTIFY` is `PgNotifyBus` of `bentocache-sqlx`, with a pool of its own.
//!
//! # Features
//!
//! - `postgres`, a default: PostgreSQL.
//! - `mysql`: MySQL and MariaDB.
//! - `sqlite`: compiles SQLite, which needs a C compiler.
//! - `deadpool`, a default, and `bb8`: support for these pools.

#[cfg(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")))]
compile_error!("choose a database: a feature `postgres`, `mysql` or `sqlite` of bentocache-diesel");

mod database;
mod failure;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod pool;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server;
mod statement;

pub use database::Diesel;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use pool::Pool;

use bentocache_sql::{DatabaseDriver, SqlAdapter};
#[cfg(feature = "sqlite")]
use diesel::SqliteConnection;
#[cfg(feature = "sqlite")]
use diesel::r2d2::{self, ConnectionManager};
#[cfg(feature = "mysql")]
use diesel_async::AsyncMysqlConnection;
#[cfg(feature = "postgres")]
use diesel_async::AsyncPgConnection;

/// L2 on PostgreSQL.
#[cfg(feature = "postgres")]
pub type PostgresDriver<P> = DatabaseDriver<SqlAdapter<Diesel<AsyncPgConnection, P>>>;
/// L2 on MySQL or MariaDB.
#[cfg(feature = "mysql")]
pub type MySqlDriver<P> = DatabaseDriver<SqlAdapter<Diesel<AsyncMysqlConnection, P>>>;
/// L2 on SQLite.
#[cfg(feature = "sqlite")]
pub type SqliteDriver = DatabaseDriver<
    SqlAdapter<Diesel<SqliteConnection, r2d2::Pool<ConnectionManager<SqliteConnection>>>>,
>;

/// L2 on PostgreSQL, over a pool of the application.
#[cfg(feature = "postgres")]
pub fn postgres<P: Pool<AsyncPgConnection>>(pool: P) -> PostgresDriver<P> {
    DatabaseDriver::new(SqlAdapter::new(Diesel::new(pool)))
}

/// L2 on MySQL or MariaDB, over a pool of the application.
#[cfg(feature = "mysql")]
pub fn mysql<P: Pool<AsyncMysqlConnection>>(pool: P) -> MySqlDriver<P> {
    DatabaseDriver::new(SqlAdapter::new(Diesel::new(pool)))
}

/// L2 on SQLite, over a pool of the application.
#[cfg(feature = "sqlite")]
pub fn sqlite(pool: r2d2::Pool<ConnectionManager<SqliteConnection>>) -> SqliteDriver {
    DatabaseDriver::new(SqlAdapter::new(Diesel::new(pool)))
}
