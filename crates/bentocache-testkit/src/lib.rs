//! Test tools for authors of Bentocache drivers.
//!
//! Run the conformance suite, which every driver of the project passes, against your driver, in a
//! file under `tests/`:
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::{Duration, Instant};
//!
//! use bentocache_driver::{DriverError, L2Driver};
//! use bytes::Bytes;
//!
//! #[derive(Clone, Default)]
//! struct Shelf {
//!     rows: Arc<Mutex<BTreeMap<String, (Bytes, Option<Instant>)>>>,
//! }
//!
//! impl L2Driver for Shelf {
//!     fn name(&self) -> &'static str {
//!         "shelf"
//!     }
//!
//!     async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
//!         let rows = self.rows.lock().unwrap();
//!         let row = rows.get(key).filter(|(_, end)| end.is_none_or(|end| Instant::now() < end));
//!         Ok(row.map(|(value, _)| value.clone()))
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
//!
//! // Expands to a module `l2` with one `#[test]` per case.
//! bentocache_testkit::l2_suite! {
//!     // Evaluated for each test; each call of the closure opens one more driver on that store.
//!     open = {
//!         let shelf = Shelf::default();
//!         async move || shelf.clone()
//!     },
//!     // What this driver leaves to the contract's default bodies. The cases that need it are
//!     // shown as ignored; a name that is missing here, or too many, is a failure.
//!     without = [atomic_pull, atomic_compare, keys, prune, link],
//! }
//! # fn main() {
//! #     use bentocache_testkit::suite;
//! #     let open = || { let shelf = Shelf::default(); async move || shelf.clone() };
//! #     suite::run(suite::l2::hostile_keys(open()));
//! #     let lacks = ["atomic_pull", "atomic_compare", "keys", "prune", "link"];
//! #     suite::run(suite::l2::declares_what_it_lacks(open(), &lacks));
//! # }
//! ```
//!
//! ```text
//! test l2::clear_takes_the_prefix_literally ... ok
//! test l2::concurrent_pulls ... ignored, without atomic_pull: the driver does not pull in one step
//! test l2::declares_what_it_lacks ... ok
//! ```
//!
//! New versions of this crate bring new cases. [`suite`] describes the cases, and how to give each
//! test a directory, a table or a server.
//!
//! The rest is for tests of code that *uses* drivers:
//!
//! - [`ChaosL2`], [`ChaosBus`], [`ChaosLock`] and [`ChaosL1`] wrap a driver that fails, waits,
//!   hangs or loses its connection as a [`Chaos`] handle says. They count calls, and can hold each
//!   call before or after its work, so that a race runs the same way every time.
//! - [`MapL2`], [`MapL1`], [`MapBus`] and [`MapLock`] are drivers in memory whose clones share
//!   their data, like the processes of a deployment.

// Test code: a failed test should panic with the failed call.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod chaos;
mod map;
mod runtimes;
pub mod suite;

pub use chaos::{Chaos, ChaosBus, ChaosL1, ChaosL2, ChaosLock, Ops};
pub use map::{Blob, MapBus, MapL1, MapL2, MapLock, entry, unique};
