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
//! [`NatsBus`] tells the first tiers of other processes what has changed. The second tier is what
//! the processes share: a file system here, Redis or a database elsewhere. The guide is
//! `docs/nats.md`.
//!
//! # What holds
//!
//! - Nothing connects before it is used, and a server that is not there does not stop the cache
//!   from starting.
//! - A message counts as published when the server has it: each is followed by a small message of
//!   the driver to itself, and waits for that to come back.
//! - The connection is opened again for as long as the driver lives, with jittered pauses of at
//!   most a second. What may have been missed is reported: when the connection is gone, and when
//!   the subscription is confirmed again.
//! - In a cluster the next server is taken when one is gone. What its other servers were sent before
//!   they knew of a subscription may be missed: a second later that is reported, too.
//! - A server that cannot show a certificate for its host, signed by a trusted authority, gets
//!   neither login nor messages when it or the URL asks for TLS.
//! - Messages that were dropped because this process read too slowly are reported, too.
//! - At most 64 MiB wait for a reader; beyond that they are dropped, and that is reported.
//! - No error and no log line of the driver shows a URL or a password.

mod bus;
mod connect;
mod credentials;
mod error;
mod link;
mod rights;
mod subject;

pub use bus::NatsBus;
pub use credentials::Credentials;
