//! The engine of Bentocache. Depend on the crate `bentocache` instead, which re-exports this crate
//! and the drivers, and start with its documentation.

mod clock;
mod engine;
mod error;
mod event;
mod front;
mod in_process;
mod l1;
mod l2;
mod options;
mod park;
mod site;
mod sync;
mod timers;
mod value;

#[doc(hidden)]
pub mod wire;

pub use clock::{TimeSource, TokioTime};
pub use engine::context::{Context, ManyContext};
pub use error::{BoxError, ClosedReason, Error, FactoryPanic, Failure, Result};
pub use event::{Event, EventKind, EventStream, Listener, Observer, Tier};
pub use front::bento::{BentoCache, Builder, Plugin, Store};
pub use front::blocking::Blocking;
pub use front::cache::Cache;
pub use front::request;
pub use front::typed::Typed;
pub use in_process::InProcessBus;
pub use l1::memory::Memory;
pub use options::{BusDown, ByteSize, RecoveryMode, TimeSpan};
pub use value::CacheValue;
pub use wire::codec::Codec;

/// For the fuzz targets.
#[doc(hidden)]
pub mod __fuzz {
    pub use bentocache_driver::__fuzz::{duration, size};
}
