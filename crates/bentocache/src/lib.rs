//! Multi-tier caching for services: an in-process tier (L1), a tier that processes share (L2), and a bus
//! that invalidates the L1 of the other processes.
//!
//! One call, [`get_or_set`](Cache::get_or_set), reads a value or produces it, once for all concurrent
//! callers of a key (single-flight). If the source is slow or fails, it serves a stale value. It never
//! serves a value that was invalidated.
//!
//! ```
//! use bentocache::{BentoCache, Memory, Store};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), bentocache::Error> {
//! let cache = BentoCache::builder()
//!     .store("users", Store::new().l1(Memory::new()).ttl("10m").grace("1h"))
//!     .build()
//!     .await?;
//!
//! let name: String = cache
//!     .get_or_set("user:1", |_| async { Ok::<_, std::io::Error>("Ada".to_owned()) })
//!     .await?;
//! assert_eq!(name, "Ada");
//!
//! cache.delete("user:1").await?;
//! # Ok(()) }
//! ```
//!
//! Each driver is a module behind a feature of the same name:
//!
//! | feature | module | brings |
//! |---|---|---|
//! | `file` | [`file`](mod@file) | a directory as L2 |
//! | `redis`, `redis-tls` | [`redis`] | Redis and compatible servers: L2, bus, lock |
//! | `postgres`, `mysql`, `sqlite` | [`sqlx`] | databases as L2; PostgreSQL as a bus |
//! | `seaorm`, `diesel` | [`seaorm`], [`diesel`] | the same over the pools of your application |
//! | `dynamodb` | [`dynamodb`] | DynamoDB as L2 |
//! | `nats`, `rabbitmq`, `rabbitmq-tls` | [`nats`], [`rabbitmq`] | a bus |
//! | `msgpack`, `lz4`, `zstd` | [`Codec`] | smaller values in L2 |
//! | `encryption` | `KeyRing` | encrypted values in L2 |
//!
//! To write a driver of your own, see [`driver`].

#![cfg_attr(docsrs, feature(doc_cfg))]

pub use bentocache_engine::{
    Advice, BentoCache, Blocking, BoxError, BreakerState, Builder, BusDown, BusHealth, BusStats,
    ByteSize, Cache, CacheValue, ClosedReason, Codec, Context, EntryState, Error, ErrorKey, Event,
    EventKind, EventStream, FactoryError, FactoryPanic, Failure, Health, InProcessBus,
    InspectedEntry, InspectedTag, Inspection, IntoKey, Kept, KeyText, L1Stats, L2Health, L2Stats,
    Listener, Local, ManyContext, Memory, Observer, Plugin, RecoveryMode, Result, Source, Stats,
    Store, StoreHealth, TagScope, Tier, TimeSource, TimeSpan, TokioTime, Typed, request,
};

#[cfg(feature = "encryption")]
pub use bentocache_engine::{EncryptionKey, KeyRing};

/// The contract for drivers: what a tier, a bus or a lock has to do.
pub mod driver {
    #[doc(no_inline)]
    pub use bentocache_driver::*;
}

/// Adds a module that re-exports a driver's crate.
macro_rules! driver {
    ($($(#[$doc:meta])* $feature:meta => $module:ident = $krate:ident;)*) => {$(
        $(#[$doc])*
        #[cfg($feature)]
        #[cfg_attr(docsrs, doc(cfg($feature)))]
        pub mod $module {
            #[doc(inline)]
            pub use $krate::*;
        }
    )*};
}

driver! {
    /// A directory of files as L2.
    feature = "file" => file = bentocache_file;
    /// Redis, Valkey and compatible servers: L2, the bus and the lock.
    feature = "redis" => redis = bentocache_redis;
    /// What the SQL drivers share: the table's options, and the contract for further databases.
    any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "seaorm", feature = "diesel") => sql = bentocache_sql;
    /// PostgreSQL, MySQL, MariaDB and SQLite through sqlx.
    any(feature = "postgres", feature = "mysql", feature = "sqlite") => sqlx = bentocache_sqlx;
    /// The connections of SeaORM as L2.
    feature = "seaorm" => seaorm = bentocache_seaorm;
    /// The pools of Diesel as L2.
    feature = "diesel" => diesel = bentocache_diesel;
    /// Amazon DynamoDB and compatible servers as L2.
    feature = "dynamodb" => dynamodb = bentocache_dynamodb;
    /// NATS as the bus.
    feature = "nats" => nats = bentocache_nats;
    /// RabbitMQ as the bus.
    feature = "rabbitmq" => rabbitmq = bentocache_rabbitmq;
}

/// The snippets of the READMEs and the guides, as tests. They need all features.
#[cfg(doctest)]
mod guides {
    macro_rules! guides {
        ($($name:ident = $file:literal;)*) => {$(#[doc = include_str!($file)] mod $name {})*};
    }
    guides! {
        readme = "../../../README.md";
        advisor = "../../../docs/advisor.md";
        choosing = "../../../docs/choosing.md";
        coming_from_node = "../../../docs/coming-from-node.md";
        custom_driver = "../../../docs/custom-driver.md";
        dynamodb = "../../../docs/dynamodb.md";
        encryption = "../../../docs/encryption.md";
        events = "../../../docs/events.md";
        file_driver = "../../../docs/file-driver.md";
        first_hour = "../../../docs/first-hour.md";
        health = "../../../docs/health.md";
        lifetimes = "../../../docs/lifetimes.md";
        multi_tier = "../../../docs/multi-tier.md";
        nats = "../../../docs/nats.md";
        options = "../../../docs/options.md";
        rabbitmq = "../../../docs/rabbitmq.md";
        redis = "../../../docs/redis.md";
        sql = "../../../docs/sql.md";
        sql_adapter = "../../../docs/sql-adapter.md";
        stampede_and_timeouts = "../../../docs/stampede-and-timeouts.md";
        tags = "../../../docs/tags.md";
        versions = "../../../docs/versions.md";
        readme_of_diesel = "../../bentocache-diesel/README.md";
        readme_of_driver = "../../bentocache-driver/README.md";
        readme_of_dynamodb = "../../bentocache-dynamodb/README.md";
        readme_of_engine = "../../bentocache-engine/README.md";
        readme_of_file = "../../bentocache-file/README.md";
        readme_of_nats = "../../bentocache-nats/README.md";
        readme_of_rabbitmq = "../../bentocache-rabbitmq/README.md";
        readme_of_redis = "../../bentocache-redis/README.md";
        readme_of_seaorm = "../../bentocache-seaorm/README.md";
        readme_of_sql = "../../bentocache-sql/README.md";
        readme_of_sqlx = "../../bentocache-sqlx/README.md";
        readme_of_testkit = "../../bentocache-testkit/README.md";
    }
}
