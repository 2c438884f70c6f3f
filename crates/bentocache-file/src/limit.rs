//! The limit for the total size of all entries.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// File systems allocate space in blocks of this size.
const BLOCK: u64 = 4_096;
/// The smallest limit: all files are scanned once per twentieth of it.
const LEAST: u64 = 1 << 20;

/// The limit, and the bytes that this process has written since its last scan.
#[derive(Debug)]
pub(crate) struct Limit {
    most: u64,
    pub(crate) written: AtomicU64,
    /// Held by the scanning thread.
    pub(crate) looking: Mutex<()>,
}

impl Limit {
    pub(crate) fn new(most: u64) -> Self {
        let most = most.max(LEAST);
        // The first write starts a scan.
        Self { most, written: AtomicU64::new(most), looking: Mutex::default() }
    }

    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// The bytes written between two scans of all files.
    pub(crate) fn step(&self) -> u64 {
        self.most / 20
    }

    /// Whether a scan is due and none is running.
    pub(crate) fn is_due(&self) -> bool {
        self.written.load(Relaxed) >= self.step() && self.looking.try_lock().is_ok()
    }

    pub(crate) fn note(&self, bytes: u64) {
        self.written.fetch_add(on_disk(bytes), Relaxed);
    }
}

/// The disk space of a file of this size.
pub(crate) fn on_disk(bytes: u64) -> u64 {
    bytes.max(1).div_ceil(BLOCK).saturating_mul(BLOCK)
}
