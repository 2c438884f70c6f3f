//! The driver contract of Bentocache: the crate that driver authors depend on.
//!
//! A store of Bentocache has an L1 in the process ([`L1Driver`]), an L2 that processes share
//! ([`L2Driver`]), a bus that keeps the L1 of every process coherent ([`BusDriver`]) and,
//! optionally, a lock that lets one of many processes run a factory ([`LockDriver`]). The engine
//! knows drivers only through these traits.
//!
//! # Write a driver
//!
//! An L2 driver has four required methods. Keys are complete, values are opaque bytes, and an
//! expired value must not be returned:
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Mutex;
//! use std::time::{Duration, Instant};
//!
//! use bentocache_driver::{DriverError, L2Driver};
//! use bytes::Bytes;
//!
//! #[derive(Default)]
//! struct Shelf {
//!     rows: Mutex<BTreeMap<String, (Bytes, Option<Instant>)>>,
//! }
//!
//! impl L2Driver for Shelf {
//!     fn name(&self) -> &'static str {
//!         "shelf"
//!     }
//!
//!     async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
//!         let rows = self.rows.lock().unwrap();
//!         Ok(rows.get(key).and_then(|(value, end)| {
//!             end.is_none_or(|end| Instant::now() < end).then(|| value.clone())
//!         }))
//!     }
//!
//!     async fn set(
//!         &self,
//!         key: &str,
//!         value: Bytes,
//!         ttl: Option<Duration>,
//!     ) -> Result<(), DriverError> {
//!         let end = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
//!         self.rows.lock().unwrap().insert(key.to_owned(), (value, end));
//!         Ok(())
//!     }
//!
//!     async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
//!         let mut rows = self.rows.lock().unwrap();
//!         Ok(keys.iter().filter(|key| rows.remove(**key).is_some()).count() as u64)
//!     }
//!
//!     async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
//!         self.rows.lock().unwrap().retain(|key, _| !key.starts_with(prefix));
//!         Ok(())
//!     }
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), DriverError> {
//! let shelf = Shelf::default();
//! shelf.set("app:a", Bytes::from_static(b"1"), None).await?;
//! shelf.set("apple", Bytes::from_static(b"2"), None).await?;
//! shelf.clear("app:").await?;
//! assert_eq!(shelf.get_many(&["app:a", "apple"]).await?, [None, Some(Bytes::from_static(b"2"))]);
//! # Ok(()) }
//! ```
//!
//! Use it with `Store::new().l2(Shelf::default())`. The crate `bentocache-testkit` has the
//! conformance suite that every driver of the project passes; one macro call runs it against yours.
//!
//! Override methods with default bodies if the store can do better: `get_many` and `set_many` in
//! one round trip, `pull`, `insert` and `delete_if` in one atomic step. Declare the abilities of
//! the store in [`L2Driver::capabilities`].
//!
//! With the feature `gather`, `Gather` batches concurrent calls: under load, many gets become one
//! statement. With the feature `runtime`, `on_runtime` returns an error for a call outside a Tokio
//! runtime, where Tokio would panic, and `LinkProbe` reports when a store works again.
//! With the feature `kit`, the module `kit` has what the project's drivers share: a backoff with jitter,
//! advice on TLS failures, times to live in milliseconds.
//!
//! Setters of a driver take times and sizes as [`TimeSpan`] and [`ByteSize`], which read texts such
//! as `"5m"` and `"10mb"`; [`OptionErrors`] keeps the error of an invalid text.
//!
//! A bus driver delivers its events through a [`BusFeed`], which limits the events that wait for a
//! slow reader.

mod boxed;
mod bus;
mod entry;
mod error;
mod feed;
mod finding;
#[cfg(feature = "gather")]
mod gather;
mod key_pages;
#[cfg(feature = "kit")]
pub mod kit;
mod l1;
mod l2;
mod lock;
mod options;
#[cfg(feature = "runtime")]
mod probe;
mod provider;
#[cfg(feature = "runtime")]
mod runtime;
mod sliding;
mod trouble;
mod validators;

#[doc(hidden)]
pub use boxed::{Call, DynBus, DynL2, DynLock};
pub use bus::{BusDriver, BusEvent, BusStream, Topic};
pub use entry::{Entry, Life, NEVER, Tag, TagPosition, TagSeen, Value};
pub use error::{DriverError, ErrorKind};
pub use feed::BusFeed;
pub use finding::Finding;
#[cfg(feature = "gather")]
pub use gather::Gather;
pub use key_pages::key_pages;
pub use l1::{EntryLimit, Inserted, L1Driver};
pub use l2::{Capabilities, KeyStream, L2Driver, Link, LinkStream, Write};
pub use lock::LockDriver;
pub use options::{ByteSize, InvalidOption, OptionErrors, TimeSpan};
#[cfg(feature = "runtime")]
pub use probe::LinkProbe;
pub use provider::Provider;
#[cfg(feature = "runtime")]
pub use runtime::on_runtime;
pub use sliding::Sliding;
pub use trouble::LastTrouble;
pub use validators::Validators;

/// For the fuzz targets.
#[doc(hidden)]
pub mod __fuzz {
    pub use crate::options::duration::parse as duration;
    pub use crate::options::size::parse as size;
}
