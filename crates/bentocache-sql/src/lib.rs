//! A table of an SQL database as L2 of Bentocache.
//!
//! This crate contains no database library. Use an adapter for your library, such as the one for
//! sqlx:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use bentocache::sqlx::postgres;
//! use bentocache::{BentoCache, Memory, Store};
//!
//! # async fn example(pool: sqlx::PgPool) -> bentocache::Result<()> {
//! let table = postgres(pool).table_name("app_cache").prune_interval("10m");
//! let store = Store::new().l1(Memory::new()).l2(table);
//! let bento = BentoCache::builder().store("main", store).build().await?;
//!
//! bento.set("user:42", "Ada".to_owned()).await?;
//! assert_eq!(bento.get("user:42").await?, Some("Ada".to_owned()));
//! bento.disconnect().await
//! # }
//! ```
//!
//! - [`DatabaseDriver`]: L2 over any adapter.
//! - [`DatabaseAdapter`]: the trait to implement for another database.
//! - [`Database`], with [`SqlAdapter`]: the trait to implement for another library for PostgreSQL,
//!   MySQL or SQLite, which reuses the SQL of this crate.
//!
//! The guide `docs/sql-adapter.md` shows how to write an adapter.
//!
//! # What holds
//!
//! - The driver finds or creates the table when the cache is built, or in the first call after the
//!   database becomes reachable. Any number of processes may do so at once.
//! - A key has at most one row and is exact, whatever the collations.
//! - An expired row is never returned, counted or listed. The driver uses the clock of this
//!   process. Every reader also judges the entries inside of the values by its own clock, so the
//!   database's clock would only add a difference.
//! - `pull`, `insert`, `update` and `delete_if` are atomic.
//! - `get_many`, `set_many` and `delete` use one statement for up to 1,000 keys, or the adapter's
//!   limit. Rows are locked in key order; a statement that loses to a deadlock is repeated for at
//!   most ten seconds.
//! - Concurrent gets share statements: at most four statements for one key each and two for up to
//!   64 keys each are in flight.
//! - `clear` and the list of keys use the range of keys from a prefix on, not `LIKE`. A clear
//!   without a prefix empties the table, so the table must belong to the store.
//! - A key or value above a limit of the database is refused with an error that names the limit.
//! - No error contains a key, a value or a password.
//! - The pool belongs to the application: the driver neither closes it nor takes part in its
//!   transactions.

mod access;
mod adapter;
mod batch;
mod clock;
mod columns;
mod database;
mod dialect;
mod driver;
mod failure;
mod prune;
mod query;
mod slots;
mod sql;
mod statement;
mod table;

pub use adapter::{DatabaseAdapter, Limits, Row, after_prefix};
pub use database::Database;
pub use dialect::Dialect;
pub use driver::DatabaseDriver;
pub use failure::Failure;
pub use query::{Param, Rows, Statement};
pub use slots::{WriteSlot, WriteSlots};
pub use sql::SqlAdapter;
pub use table::TableName;
