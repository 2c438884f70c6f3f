//! The driver of L1.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;

use bentocache_driver::L1Driver;

use super::memory::{Memory, SnapshotOptions};

/// An L1 driver. The hit path calls the built-in driver by its concrete type, because a hit through
/// `dyn` takes 20% longer. All other code calls both variants as `dyn L1Driver`.
#[derive(Clone)]
pub(crate) enum Driver {
    Memory(Arc<Memory>),
    Other(Arc<dyn L1Driver>),
}

impl Driver {
    /// Whether this is the built-in driver, limited only by its default number of entries.
    pub(crate) fn has_default_limits(&self) -> bool {
        matches!(self, Self::Memory(memory) if memory.has_default_limits())
    }

    pub(crate) fn new(driver: impl L1Driver) -> Self {
        let driver = Arc::new(driver);
        let any: Arc<dyn Any + Send + Sync> = driver.clone();
        match any.downcast::<Memory>() {
            Ok(memory) => Self::Memory(memory),
            // One that the application shares.
            Err(any) => any
                .downcast::<Arc<Memory>>()
                .map_or(Self::Other(driver), |memory| Self::Memory((*memory).clone())),
        }
    }

    /// The file that keeps the entries while no process runs, if the driver has one.
    pub(crate) fn snapshot(&self) -> Option<&SnapshotOptions> {
        match self {
            Self::Memory(memory) => memory.snapshot_options(),
            Self::Other(_) => None,
        }
    }
}

impl Deref for Driver {
    type Target = dyn L1Driver;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Memory(memory) => &**memory,
            Self::Other(driver) => &**driver,
        }
    }
}
