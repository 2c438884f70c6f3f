//! NATS as the bus of Bentocache.
//!
//! ```no_run
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache::file::File;
//! use bentocache::nats::NatsBus;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let bus = NatsBus::new("nats://127.0.0.1:4222");
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
//! [`NatsBus`] notifies the L1 tiers of other processes of changes. The processes need a shared L2:
//! a file system here, Redis or a database in other deployments. The guide is `docs/nats.md`.
//!
//! # What holds
//!
//! - The first use opens the connection, and a server that is unreachable does not keep the cache
//!   from starting.
//! - A message counts as published when the server has it: the driver sends a small message to
//!   itself after each message, and waits for its return.
//! - The driver reconnects until it is dropped, with jittered pauses of at most a second. It
//!   reports possible gaps: the loss of the connection, and the next confirmation of the
//!   subscription.
//! - In a cluster the driver connects to the next server if one is gone. Messages that other
//!   servers received before they knew the subscription may be missed: the driver reports that one
//!   second later.
//! - A server without a certificate for its host, signed by a trusted authority, receives neither
//!   login nor messages if it or the URL requires TLS.
//! - Messages that were dropped because this process read too slowly are also reported.
//! - At most 64 MiB are queued for a reader; further messages are dropped, and that is reported.
//! - No error and no log line of the driver contains a URL or a password.

mod bus;
mod connect;
mod credentials;
mod error;
mod link;
mod rights;
mod subject;

pub use bus::NatsBus;
pub use credentials::Credentials;
