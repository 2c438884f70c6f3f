#![doc = include_str!("../README.md")]

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

/// The contract for drivers, re-exported for those who bring their own.
pub use bentocache_core as core;

/// For the fuzz targets.
#[doc(hidden)]
pub mod __fuzz {
    pub use crate::duration::parse as duration;
    pub use crate::size::parse as size;
}

/// The snippets of the guides, as tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/coming-from-node.md")]
    mod coming_from_node {}
    #[doc = include_str!("../../../docs/custom-driver.md")]
    mod custom_driver {}
    #[doc = include_str!("../../../docs/events.md")]
    mod events {}
    #[doc = include_str!("../../../docs/file-driver.md")]
    mod file_driver {}
    #[doc = include_str!("../../../docs/multi-tier.md")]
    mod multi_tier {}
    #[doc = include_str!("../../../docs/options.md")]
    mod options {}
    #[doc = include_str!("../../../docs/stampede-and-timeouts.md")]
    mod stampede_and_timeouts {}
    #[doc = include_str!("../../../docs/tags.md")]
    mod tags {}
}
