//! Redis, Valkey and compatible servers as L2, bus and lock of Bentocache.
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
//! - [`Redis`] is the L2.
//! - [`RedisBus`]: the bus over publish and subscribe, shared with npm `bentocache`.
//! - [`Redis::tracking`]: the bus over client tracking, which reports changes by any client;
//!   [`Redis::read_only_tracking`] for processes that only read.
//! - [`RedisLock`]: the lock between processes.
//!
//! `Redis`, `RedisBus` and `RedisLock` have the same constructors: the URL of a server, `cluster`,
//! `sentinel`, or an object of the application. Each accepts the same URL. The guide is
//! `docs/redis.md`.
//!
//! # What holds
//!
//! - The first use opens the connection, and a server that is unreachable does not keep the cache
//!   from starting. An invalid configuration does: a malformed URL, a wrong login, the address of a
//!   replica, a server of the wrong kind.
//! - A driver has one connection with many concurrent calls. After a loss it reconnects until it is
//!   dropped, with jittered pauses of at most a second. Meanwhile calls fail at once. A `get` or
//!   `set`, of one key or many, that finds the connection dead is repeated once on the next one.
//! - Pings detect a connection that is open but silent, and the driver replaces it. The same
//!   happens if the server has become a replica, was demoted by the sentinels, or was removed from
//!   its cluster.
//! - A write that timed out without an answer cannot replace a newer value once its connection was
//!   replaced: the old connection is first ended on the server. [`Redis::write_deadline`] closes
//!   the gap before that.
//! - A driver can be used on several tokio runtimes, one after the other. Outside of a running
//!   runtime its calls return [`ErrorKind::Closed`](bentocache_driver::ErrorKind::Closed).
//! - Most concurrent reads and writes share a round trip. Each has its own answer.
//! - `get_many` and `set_many` take one round trip; in a cluster one per node, concurrently.
//! - `pull`, `update` and `delete_if` are atomic. They need Redis 6.2 or a compatible server.
//! - `clear` and `keys` scan the keyspace in batches, on all primaries of a cluster, and match the
//!   prefix literally. Keys that are not UTF-8 belong to other applications and are left alone.
//! - A time to live is rounded up to whole milliseconds; one beyond a thousand years means no end.
//! - Values have at most 512 MiB, or less with [`Redis::max_value`].
//! - No error contains a URL, a password or a value.
//! - A lock never collides with a cache key, and a clear does not remove it.
//!
//! # Features
//!
//! - `tls`: `rediss://` URLs through rustls with ring, which needs a C compiler. A rustls provider
//!   that the application installed has precedence; otherwise ring is installed when a driver with
//!   such a URL is first used. Off by default.

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
