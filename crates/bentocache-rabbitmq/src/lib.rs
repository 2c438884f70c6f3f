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
//! [`RabbitMqBus`] notifies the L1 tiers of other processes of changes. The processes need a shared
//! L2: a file system here, Redis or a database in other deployments. The guide is
//! `docs/rabbitmq.md`.
//!
//! # What holds
//!
//! - The first use opens the connection, and a server that is unreachable does not keep the cache
//!   from starting.
//! - A message counts as published when the server has confirmed it.
//! - The driver reconnects until it is dropped, with jittered pauses of at most a second. It
//!   reports possible gaps: the loss of a subscription, and its next confirmation.
//! - At most 64 MiB are queued for a reader; further messages are dropped, and that is reported.
//! - Each subscription has a queue of its own, which ends with it. The exchange ends with the last
//!   subscription: nothing stays on the server.
//! - An attempt to connect that fails or takes too long leaks no thread, task or socket, in any
//!   step: TCP, TLS or login.
//! - With the feature `rabbitmq-tls`, the server of an `amqps://` URL must have a certificate for
//!   its host, signed by an authority that the system trusts or that `root_certificate` names.
//! - No error and no log line of the driver contains a URL or a password.

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
