//! The limit of the size of all entries together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// File systems give out room in blocks of this size.
const BLOCK: u64 = 4_096;
/// The least limit: all files are looked at for each twentieth of it.
const LEAST: u64 = 1 << 20;

/// The limit, and what this process has written since it last looked at all files.
#[derive(Debug)]
pub(crate) struct Limit {
    most: u64,
    pub(crate) written: AtomicU64,
    /// Held by the one that looks.
    pub(crate) looking: Mutex<()>,
}

impl Limit {
    pub(crate) fn new(most: u64) -> Self {
        let most = most.max(LEAST);
        // The first write looks at what is there.
        Self { most, written: AtomicU64::new(most), looking: Mutex::default() }
    }

    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// So much is written between two looks; all files are looked at once for it.
    pub(crate) fn step(&self) -> u64 {
        self.most / 20
    }

    /// Whether it is time to look, and nobody does.
    pub(crate) fn is_due(&self) -> bool {
        self.written.load(Relaxed) >= self.step() && self.looking.try_lock().is_ok()
    }

    pub(crate) fn note(&self, bytes: u64) {
        self.written.fetch_add(on_disk(bytes), Relaxed);
    }
}

/// What a file of that size takes.
pub(crate) fn on_disk(bytes: u64) -> u64 {
    bytes.max(1).div_ceil(BLOCK).saturating_mul(BLOCK)
}
