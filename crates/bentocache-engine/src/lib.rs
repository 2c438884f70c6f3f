//! The engine of Bentocache. Depend on the crate `bentocache` instead, which re-exports this crate
//! and the drivers, and start with its documentation.

mod advisor;
mod bus;
mod clock;
mod engine;
mod error;
mod event;
mod front;
mod in_process;
mod join;
mod l1;
mod l2;
mod lock;
mod options;
mod park;
mod site;
mod stats;
mod sync;
mod tags;
mod timers;
mod value;

#[doc(hidden)]
pub mod wire;

pub use advisor::Advice;
pub use clock::{TimeSource, TokioTime};
pub use engine::context::{Context, ManyContext};
pub use engine::fetch::Source;
pub use error::{BoxError, ClosedReason, Error, ErrorKey, FactoryPanic, Failure, Result};
pub use event::{Event, EventKind, EventStream, Listener, Observer, Tier};
pub use front::bento::{BentoCache, Builder, Plugin, Store};
pub use front::blocking::Blocking;
pub use front::cache::Cache;
pub use front::kept::{Encoded, InProcess, Kept};
pub use front::key::{IntoKey, KeyText};
pub use front::local::Local;
pub use front::request;
pub use front::typed::Typed;
pub use in_process::InProcessBus;
pub use l1::memory::Memory;
pub use options::{BusDown, ByteSize, RecoveryMode, TagScope, TimeSpan};
pub use stats::{
    BreakerState, BusHealth, BusStats, EntryState, Health, InspectedEntry, InspectedTag,
    Inspection, L1Stats, L2Health, L2Stats, Stats, StoreHealth,
};
pub use value::{CacheValue, FactoryError};
pub use wire::codec::Codec;
#[cfg(feature = "encryption")]
pub use wire::seal::{EncryptionKey, KeyRing};

/// For the fuzz targets.
#[doc(hidden)]
pub mod __fuzz {
    pub use bentocache_driver::__fuzz::{duration, size};
}
