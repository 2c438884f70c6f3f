//! DynamoDB as L2 of Bentocache.
//!
//! ```no_run
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::dynamodb::DynamoDb;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Credentials and region from the environment.
//!     let dynamo = DynamoDb::new().table("cache");
//!     dynamo.create_table().await?;
//!     let store = Store::new().l1(Memory::new()).l2(dynamo);
//!     let bento = BentoCache::builder().ttl("10m").grace("6h").store("main", store).build().await?;
//!
//!     let load = |_| async { std::fs::read_to_string("motd.txt") };
//!     println!("{}", bento.get_or_set("motd", load).await?);
//!     bento.disconnect().await?;
//!     Ok(())
//! }
//! ```
//!
//! [`DynamoDb`] stores each entry as an item of one table, in the form of npm `bentocache`. The
//! guide is `docs/dynamodb.md`.
//!
//! # What holds
//!
//! - An expired item is not returned, although DynamoDB may take days to remove it.
//! - Reads are strongly consistent. `get_many` reads 100 keys with each request and `set_many`
//!   writes 25, all requests at the same time.
//! - `pull`, `insert`, `update` and `delete_if` are atomic, by conditional writes.
//! - Requests that DynamoDB throttles, and items that it leaves unprocessed, are sent again with
//!   growing, jittered pauses. A call whose answer was lost is repeated only if a repetition is
//!   harmless.
//! - `clear` and `keys` read the whole table: see the warning at
//!   [`clear`](bentocache_driver::L2Driver::clear) in the guide, `docs/dynamodb.md`.
//! - Values are at most 396 KiB, keys at most 2,048 bytes and not empty.
//! - No error contains credentials or a value.

mod batch;
mod builder;
mod call;
mod error;
mod item;
mod l2;
mod scan;
mod table;

pub use builder::DynamoDb;
