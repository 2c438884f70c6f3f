//! RabbitMQ as the bus of Bentocache.
//!
//! ```no_run
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::file::File;
//! use bentocache::rabbitmq::RabbitMqBus;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let bus = RabbitMqBus::new("amqp://user:password@127.0.0.1:5672/%2f");
//!     let store = Store::new().l1(Memory::new()).l2(File::new("/srv/cache")).bus(bus);
//!     let bento = BentoCache::builder().ttl("10m").grace("6h").store("main", store).build().await?;
//!
//!     let load = |_| async { std::fs::read_to_string("motd.txt") };
//!     println!("{}", bento.get_or_set("motd", load).await?);
//!     bento.disconnect().await?;
//!     Ok(())
//! }
//! ```
//!
//! [`RabbitMqBus`] tells the first tiers of other processes what has changed. The second tier is
//! what the processes share: a file system here, Redis or a database elsewhere. The guide is
//! `docs/rabbitmq.md`.
//!
//! # What holds
//!
//! - Nothing connects before it is used, and a server that is not there does not stop the cache
//!   from starting.
//! - A message counts as published when the server has confirmed it.
//! - The connection is opened again for as long as the driver lives, with jittered pauses of at
//!   most a second. What may have been missed is reported: when a subscription breaks, and when it
//!   is confirmed again.
//! - At most 64 MiB wait for a reader; beyond that they are dropped, and that is reported.
//! - Each subscription has a queue of its own, which ends with it. When no subscription is left,
//!   the exchange ends, too: nothing stays on the server.
//! - An attempt to connect that fails or takes too long leaves neither a thread nor a task nor a
//!   socket behind, in whatever step it was: TCP, TLS or login.
//! - With the feature `rabbitmq-tls`, the server of an `amqps://` URL must show a certificate for its host,
//!   signed by an authority that the system trusts or that `root_certificate` names.
//! - No error and no log line of the driver shows a URL or a password.

mod bus;
mod channels;
mod connect;
mod credentials;
mod error;
mod exchange;
mod link;
mod stream;
#[cfg(feature = "tls")]
mod tls;

pub use bus::RabbitMqBus;
pub use credentials::Credentials;
