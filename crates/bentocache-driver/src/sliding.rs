//! The end of an entry that nobody uses. Times are as in [`Entry`](crate::Entry).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The end of an entry that nobody uses. It moves with each use.
#[derive(Debug)]
pub struct Sliding {
    idle: u64,
    used_at: AtomicU64,
    /// When L2 was last told of a use.
    told_at: AtomicU64,
}

impl Sliding {
    pub(crate) fn new(idle: u64, used_at: u64, told_at: u64) -> Self {
        Self { idle, used_at: AtomicU64::new(used_at), told_at: AtomicU64::new(told_at) }
    }

    /// The time without a use, in milliseconds, after which the entry is gone.
    pub fn idle(&self) -> u64 {
        self.idle
    }

    /// The end, unless the entry is used before.
    #[inline]
    pub fn ends_at(&self) -> u64 {
        self.used_at.load(Relaxed).saturating_add(self.idle)
    }

    /// Records a use. Returns whether L2 must be told of it: once in a quarter of the idle time.
    #[inline]
    pub fn note_use(&self, now: u64) -> bool {
        if self.used_at.load(Relaxed) != now {
            self.used_at.store(now, Relaxed);
        }
        let told_at = self.told_at.load(Relaxed);
        now.saturating_sub(told_at) >= (self.idle / 4).max(1)
            && self.told_at.compare_exchange(told_at, now, Relaxed, Relaxed).is_ok()
    }

    /// Records that L2 has the entry with its whole idle time now.
    pub fn note_told(&self, now: u64) {
        self.used_at.fetch_max(now, Relaxed);
        self.told_at.store(now, Relaxed);
    }

    /// Records that L2 could not be told; it must be told at the first use after some time.
    pub fn note_untold(&self, now: u64) {
        let quarter = (self.idle / 4).max(1);
        self.told_at.store((now + quarter / 4).saturating_sub(quarter), Relaxed);
    }
}
