//! A table of an SQL database as the second tier of Bentocache.
//!
//! This crate has no database library. Users take an adapter for the one that they have, such as the
//! one for sqlx:
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
//! - [`DatabaseDriver`]: the second tier, over any adapter.
//! - [`DatabaseAdapter`]: the trait to implement for another database.
//! - [`Database`], with [`SqlAdapter`]: the trait to implement for another library for PostgreSQL,
//!   MySQL or SQLite, whose SQL is here.
//!
//! How to write an adapter is in `docs/sql-adapter.md`.
//!
//! # What holds
//!
//! - The table is found or made when the cache is built, or by the first call after the database
//!   has come. Any number of processes may do so at once.
//! - A key is there at most once, and is exact, whatever the collations.
//! - An expired row is never returned, counted or listed. The clock is that of this process, as it
//!   is for the entries inside of the values: every reader judges those by its own clock, so a
//!   second clock, the database's, would add a difference and remove none.
//! - `pull`, `insert`, `update` and `delete_if` are one step each.
//! - `get_many`, `set_many` and `delete` are one statement for up to 1,000 keys, or what the adapter
//!   takes. Rows are locked in the order of their keys; a statement that loses to a deadlock is
//!   repeated, for ten seconds at most.
//! - Gets that come at the same time are few statements: beside four for a key each, two for up to 64
//!   keys each are under way.
//! - `clear` and the list of keys use the range of the keys from a prefix on, not `LIKE`. A clear
//!   without a prefix empties the table, which is the store's alone.
//! - What is beyond a limit of the database is refused with an error that names the limit.
//! - No error shows a key, a value or a password.
//! - The pool is the application's: the driver neither closes it nor takes part in its
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
