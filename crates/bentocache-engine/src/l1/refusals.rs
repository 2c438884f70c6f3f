//! Chooses which refusals of L1 are logged: enough to find each cause, and few enough to read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::sync::Mutex;

/// The number of groups of keys whose first refusal is logged. More would be a log line for nearly
/// every key.
const MOST_GROUPS: usize = 32;

/// The refusals of a store.
#[derive(Default)]
pub(super) struct Refusals {
    count: AtomicU64,
    /// The groups of keys that had a refusal.
    groups: Mutex<Vec<Box<str>>>,
}

impl Refusals {
    /// Counts a refusal. Returns the number of refusals so far if this one must be logged: the
    /// first of each group of keys, and each power of ten. A group is the keys with the same first
    /// part, such as `user` in `user:42`.
    pub(super) fn add(&self, key: &str) -> Option<u64> {
        let count = self.count.fetch_add(1, Relaxed) + 1;
        let is_round = count.checked_ilog10().is_some_and(|digits| count == 10_u64.pow(digits));
        (self.is_first_of_group(key) || is_round).then_some(count)
    }

    fn is_first_of_group(&self, key: &str) -> bool {
        let group = key.split_once(':').map_or("", |(group, _)| group);
        let mut groups = self.groups.lock();
        let is_first = groups.len() < MOST_GROUPS && groups.iter().all(|known| **known != *group);
        if is_first {
            groups.push(group.into());
        }
        is_first
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_of_each_group_and_each_power_of_ten_is_logged() {
        let refusals = Refusals::default();
        assert_eq!(refusals.add("user:1"), Some(1));
        assert_eq!(refusals.add("user:2"), None);
        assert_eq!(refusals.add("page:1"), Some(3));
        assert_eq!(refusals.add("page:1:part"), None);
        assert_eq!(refusals.add("single"), Some(5));
        assert_eq!(refusals.add("another"), None);
        let logged = (7..=1_000).filter_map(|_| refusals.add("user:3"));
        assert_eq!(logged.collect::<Vec<_>>(), [10, 100, 1_000]);
    }

    #[test]
    fn a_store_with_many_groups_does_not_flood_the_log() {
        let refusals = Refusals::default();
        let logged = (0..5_000).filter_map(|group| refusals.add(&format!("{group}:1"))).count();
        // 1, 10, 100 and 1,000: the first two are first ones as well.
        assert_eq!(logged, MOST_GROUPS + 2);
    }
}
