//! The engine of Bentocache. Depend on the crate `bentocache` instead, which re-exports all of this
//! and the drivers; its documentation is the place to begin.

mod bento;
mod blocking;
mod cache;
mod clock;
mod context;
mod duration;
mod engine;
mod error;
mod event;
mod fence;
mod hit;
mod in_process;
mod l2;
mod memory;
mod options;
mod park;
mod site;
mod size;
mod sync;
mod tier;
mod timers;
mod typed;

pub mod request;
#[doc(hidden)]
pub mod wire;

pub use bento::{BentoCache, Builder, Plugin, Store};
pub use blocking::Blocking;
pub use cache::Cache;
pub use clock::{TimeSource, TokioTime};
pub use context::{Context, ManyContext};
pub use engine::CacheValue;
pub use error::{BoxError, ClosedReason, Error, FactoryPanic, Failure, Result};
pub use event::{Event, EventKind, EventStream, Listener, Observer, Tier};
pub use in_process::InProcessBus;
pub use memory::Memory;
pub use options::{BusDown, ByteSize, RecoveryMode, TimeSpan};
pub use typed::Typed;
pub use wire::codec::Codec;

/// For the fuzz targets.
#[doc(hidden)]
pub mod __fuzz {
    pub use crate::duration::parse as duration;
    pub use crate::size::parse as size;
}
