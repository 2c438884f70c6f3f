//! Redis, Valkey and their like as the second tier, the bus and the lock of Bentocache.
//!
//! ```no_run
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::redis::{Redis, RedisBus};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let url = "redis://127.0.0.1:6379";
//!     let store = Store::new().l1(Memory::new()).l2(Redis::new(url)).bus(RedisBus::new(url));
//!     let bento = BentoCache::builder().ttl("10m").grace("6h").store("main", store).build().await?;
//!
//!     let load = |_| async { std::fs::read_to_string("motd.txt") };
//!     println!("{}", bento.get_or_set("motd", load).await?);
//!     bento.disconnect().await?;
//!     Ok(())
//! }
//! ```
//!
//! - [`Redis`]: the second tier.
//! - [`RedisBus`]: the bus by publish and subscribe, shared with npm `bentocache`.
//! - [`Redis::tracking`]: the bus by client tracking, which hears of any writer;
//!   [`Redis::read_only_tracking`] for processes that only read.
//! - [`RedisLock`]: the lock between processes.
//!
//! `Redis`, `RedisBus` and `RedisLock` are made in the same ways: by the URL of a server, `cluster`,
//! `sentinel`, or from what the application has already. The same URL can be given to each. The guide
//! is `docs/redis.md`.
//!
//! # What holds
//!
//! - Nothing connects before it is used, and a server that is not there does not stop the cache
//!   from starting. A setting that can never work does: a URL that cannot be understood, a wrong
//!   login, the address of a replica, a server of the wrong kind.
//! - A driver has one connection, with many calls under way on it at once. When it breaks, it is
//!   opened again for as long as the driver lives, with jittered pauses of at most a second.
//!   Meanwhile calls fail at once. A `get` or `set`, of one key or many, that finds it dead is
//!   repeated once on the next.
//! - A connection that is open but silent is found by pings and replaced. So is one to a server
//!   that has become a replica, that the sentinels have given up, or that was taken out of its
//!   cluster.
//! - A write that was given up without an answer cannot replace a newer value once its connection
//!   was replaced: the old one is ended on the server first. [`Redis::write_deadline`] closes the
//!   gap before that.
//! - A driver can be used on several tokio runtimes, one after the other. Outside of a running one
//!   its calls return [`ErrorKind::Closed`](bentocache_driver::ErrorKind::Closed).
//! - When many reads or writes come at the same time, most of them travel together, in one round
//!   trip. Each has its own answer.
//! - `get_many` and `set_many` are one round trip, in a cluster one to each node, at the same time.
//! - `pull`, `update` and `delete_if` act in one step. They need Redis 6.2 or its like.
//! - `clear` and `keys` go through the keys in batches, on all primaries of a cluster, and take the
//!   prefix literally. Keys that are not UTF-8 are another's and left alone.
//! - A time to live is rounded up to whole milliseconds; one beyond a thousand years is none.
//! - Values are at most 512 MiB, or less by [`Redis::max_value`].
//! - No error shows a URL, a password or a value.
//! - A lock never meets a cache key, and is not cleared with the entries.
//!
//! # Features
//!
//! - `tls`: `rediss://` URLs, by rustls with ring, which needs a C compiler. When the application
//!   has installed a rustls provider, that one is used; otherwise ring is installed when a driver
//!   with such a URL is first used. Off by default.

#[macro_use]
mod builder;

mod address;
mod batch;
mod bus;
mod cluster;
mod conn;
mod connect;
mod error;
mod expiry;
mod feed;
mod fence;
mod keep;
mod l2;
mod line;
mod lock;
mod login;
mod pulse;
mod scan;
mod script;
mod shards;
mod state;
mod tend;
mod tracking;

pub use bus::RedisBus;
pub use l2::Redis;
pub use lock::RedisLock;
pub use login::Credentials;
pub use tracking::RedisTracking;
