//! The time of the last change of each key, as far as this node knows. It uses the times to answer
//! nodes that missed messages.
//!
//! The table has a fixed size, and several keys share one place. So the node may report an
//! unchanged key as changed, which costs the asking node one run of a factory. It never forgets a
//! change.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::site::Key;
use crate::sync::Mutex;

/// Places of the table: 256 KiB, allocated at the first change.
const PLACES: usize = 1 << 15;
/// The number of prefixes whose clears are kept apart.
const MOST_CLEARS: usize = 1_000;

/// Times are those of the cache's clock, in ms, plus one: 0 means never.
#[derive(Default)]
pub(super) struct LastChanges {
    places: OnceLock<Box<[AtomicU64]>>,
    /// The time of the last clear of each prefix.
    clears: Mutex<Vec<(Box<str>, u64)>>,
}

impl LastChanges {
    /// Records that the key changed now.
    pub(super) fn changed(&self, key: &Key, now: u64) {
        let places = self.places.get_or_init(|| (0..PLACES).map(|_| AtomicU64::new(0)).collect());
        places[key.hash as usize % PLACES].fetch_max(now + 1, Relaxed);
    }

    /// Records that everything under the prefix was removed now.
    pub(super) fn cleared(&self, prefix: &str, now: u64) {
        let mut clears = self.clears.lock();
        // A clear of a shorter prefix covers those of longer ones.
        clears.retain(|(other, _)| !other.starts_with(prefix));
        if clears.len() >= MOST_CLEARS {
            clears.clear();
            clears.push(("".into(), now));
        } else {
            clears.push((prefix.into(), now));
        }
    }

    /// Whether the key changed at this time or later.
    pub(super) fn has_changed(&self, key: &Key, since: u64) -> bool {
        let place = self.places.get().map(|places| &places[key.hash as usize % PLACES]);
        if place.is_some_and(|at| at.load(Relaxed) > since) {
            return true;
        }
        let clears = self.clears.lock();
        clears.iter().any(|(prefix, at)| *at >= since && key.full.starts_with(&**prefix))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::bus::fills::tests::key;

    #[test]
    fn a_change_is_known_from_then_on_for_ever() {
        let known = LastChanges::default();
        // The keys use places of their own, whatever the random hash selects.
        let k = key("a:k");
        let mut others = (0..).map(|i| key(&format!("a:{i}")));
        let mut apart = || others.find(|o| o.hash as usize % PLACES != k.hash as usize % PLACES);
        let (l, other) = (apart().unwrap(), apart().unwrap());
        assert!(!known.has_changed(&k, 0), "nothing is known");
        known.changed(&k, 100);
        for _ in 0..10 {
            known.changed(&l, 500);
        }
        assert!(known.has_changed(&k, 0) && known.has_changed(&k, 100));
        assert!(!known.has_changed(&k, 101), "it was before");
        let shares = other.hash as usize % PLACES == l.hash as usize % PLACES;
        assert_eq!(known.has_changed(&other, 0), shares);
        // A second change counts. An older change that is reported later does not hide it.
        known.changed(&k, 300);
        known.changed(&k, 200);
        assert!(known.has_changed(&k, 300) && !known.has_changed(&k, 301));
    }

    #[test]
    fn a_clear_is_known_for_all_under_it() {
        let known = LastChanges::default();
        known.cleared("a:", 100);
        known.cleared("b:c:", 200);
        assert!(known.has_changed(&key("a:k"), 100) && !known.has_changed(&key("a:k"), 101));
        assert!(known.has_changed(&key("b:c:k"), 150) && !known.has_changed(&key("b:k"), 0));
        known.cleared("b:", 300);
        assert!(known.has_changed(&key("b:k"), 300) && known.has_changed(&key("b:c:k"), 300));
        assert_eq!(known.clears.lock().len(), 2, "the larger one covers the smaller one");
    }

    #[test]
    fn too_many_clears_become_one_of_everything() {
        let known = LastChanges::default();
        for i in 0..=MOST_CLEARS {
            known.cleared(&format!("{i}:"), 100);
        }
        assert_eq!(known.clears.lock().len(), 1);
        for name in ["0:k", "1000:k", "never:k"] {
            assert!(known.has_changed(&key(name), 100));
        }
    }
}
