//! When keys changed last, as far as this node knows: what it tells those who heard nothing.
//!
//! The table has a fixed size. Keys share its places, so it may call a key changed that was not;
//! that costs a node that asks a run of a factory. It never forgets a change.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::site::Key;
use crate::sync::Mutex;

/// Places of the table: 256 KiB, from the first change on.
const PLACES: usize = 1 << 15;
/// Clears of different prefixes that are told apart.
const MOST_CLEARS: usize = 1_000;

/// By the cache's clock, in ms, plus one: zero is never.
#[derive(Default)]
pub(super) struct Known {
    places: OnceLock<Box<[AtomicU64]>>,
    /// When everything under a prefix was removed last.
    clears: Mutex<Vec<(Box<str>, u64)>>,
}

impl Known {
    /// The key changed now.
    pub(super) fn changed(&self, key: &Key, now: u64) {
        let places = self.places.get_or_init(|| (0..PLACES).map(|_| AtomicU64::new(0)).collect());
        places[key.hash as usize % PLACES].fetch_max(now + 1, Relaxed);
    }

    /// Everything under the prefix went now.
    pub(super) fn cleared(&self, prefix: &str, now: u64) {
        let mut clears = self.clears.lock();
        // A clear of more covers one of less.
        clears.retain(|(other, _)| !other.starts_with(prefix));
        if clears.len() >= MOST_CLEARS {
            clears.clear();
            clears.push(("".into(), now));
        } else {
            clears.push((prefix.into(), now));
        }
    }

    /// Whether the key changed then or later.
    pub(super) fn has_changed(&self, key: &Key, since: u64) -> bool {
        let place = self.places.get().map(|places| &places[key.hash as usize % PLACES]);
        if place.is_some_and(|at| at.load(Relaxed) > since) {
            return true;
        }
        let clears = self.clears.lock();
        clears.iter().any(|(prefix, at)| *at >= since && key.full.starts_with(&**prefix))
    }
}
