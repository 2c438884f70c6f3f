//! Clearing an L2 that cannot find its keys by prefix.
//!
//! In such a store each entry has hidden tags, one for each level of the key's namespace:
//! `users:eu:1` belongs to the store, to `users:` and to `users:eu:`. To clear a namespace, the
//! engine invalidates its tag. The tags follow from the key, so an entry stores no tag names, only
//! what it remembers of each tag ([`Meta::levels`]).
//!
//! A cleared entry is dead, not stale: no grace restores it
//! ([`is_gone`](crate::l1::is_gone)).
//!
//! All hidden tags of a store use the buckets of the store itself, so that their number does not
//! grow with the number of namespaces. The name of a hidden tag is a hash of its namespace. Two
//! namespaces with the same hash are cleared together, which costs misses.

use std::collections::HashMap;
use std::sync::Arc;

use bentocache_driver::{DriverError, Tag};

use super::bucket::stable_hash;
use super::seen::{FactoryStart, ObservedTag};
use super::{TagCall, TagChange, Tags};
use crate::site::{Key, LEVEL, unversioned};
use crate::wire::document::Meta;

/// The number of levels with their own tags, the store included. A deeper namespace is cleared
/// together with the last level that has one.
const MOST_LEVELS: usize = 8;

/// The states that a value remembers whose production begins: of the application's tags, and of the
/// levels of each key.
#[derive(Debug, Default)]
pub(crate) struct TagSnapshot {
    pub(crate) tags: Vec<ObservedTag>,
    /// By complete key. Empty if L2 can clear by prefix.
    levels: HashMap<Arc<str>, Box<[ObservedTag]>>,
}

impl TagSnapshot {
    /// The remembered states of the levels of a key.
    pub(crate) fn levels(&self, key: &Key) -> &[ObservedTag] {
        self.levels.get(&key.full).map_or(&[], |levels| levels)
    }
}

/// The levels of a key or of a prefix, from the store downwards. The argument has no store prefix.
fn levels(local: &str) -> impl Iterator<Item = &str> {
    let ends = local.match_indices(':').map(|(at, _)| at + 1);
    std::iter::once(0).chain(ends).take(MOST_LEVELS).map(|end| &local[..end])
}

/// The key of a level's marker, without the store's prefix.
fn name(level: &str) -> String {
    format!("{LEVEL}{:016x}", stable_hash(level))
}

/// The length of the longest key of a level's marker or bucket, without the store's prefix.
pub(crate) const LONGEST_NAME: usize = LEVEL.len() + 16;

impl Tags {
    /// The hidden tags of a key.
    pub(super) fn levels_of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = Arc<Tag>> + 'a {
        let local = unversioned(key.local().unwrap_or_default());
        let levels: Vec<String> = levels(&local).map(name).collect();
        levels.into_iter().map(move |name| self.tag(&[&self.site.root, &*name].concat()))
    }

    /// The key of the marker of the lowest level that contains everything under a prefix.
    fn level_key(&self, prefix: &str) -> Key {
        // A prefix that is shorter than the store's own contains the whole store.
        let local = prefix.strip_prefix(&*self.site.root).unwrap_or_default();
        let local = unversioned(local);
        let level = levels(&local).last().unwrap_or_default();
        self.site.key(&self.site.root, &name(level))
    }

    /// Clears everything under a prefix by invalidating its level.
    pub(crate) async fn clear_level(
        &self,
        call: TagCall<'_>,
        prefix: &str,
    ) -> Result<(), Arc<DriverError>> {
        let Some(l2) = call.l2 else { return Ok(()) };
        let key = self.level_key(prefix);
        let tag = self.tag(&key.full);
        // A clear deletes whatever the marker says.
        self.invalidate_in_l2(call, l2, &[tag], &[key], TagChange::Expire).await
    }

    /// Another process has cleared, or is clearing, everything under a prefix.
    pub(crate) fn cleared_elsewhere(&self, prefix: &str) {
        self.mark_all_doubtful(prefix);
        let reaches = prefix.starts_with(&*self.site.root) || self.site.root.starts_with(prefix);
        if reaches && self.has_levels {
            let key = self.level_key(prefix);
            self.heard_of(&key.full);
            self.mark_contested(&self.tag(&key.full));
        }
    }

    /// The states that values under these keys, with these tags, remember if they are produced now.
    pub(crate) async fn see<'a>(
        &'a self,
        call: TagCall<'_>,
        prefix: &str,
        names: impl IntoIterator<Item = &'a str> + 'a,
        keys: impl IntoIterator<Item = &'a Key>,
    ) -> TagSnapshot {
        if !self.has_levels {
            let tags = self.see_named(call, prefix, names).await;
            return TagSnapshot { tags, ..TagSnapshot::default() };
        }
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        let given = names.len();
        let mut all: Vec<_> = self.named(prefix, names).collect();
        let mut of_keys = Vec::new();
        for key in keys {
            all.extend(self.levels_of(key));
            of_keys.push((key.full.clone(), all.len()));
        }
        // All tags in one round trip.
        let mut tags = self.see_these(call, all).await;
        let mut rest = tags.split_off(given).into_iter();
        let mut at = given;
        let mut levels = HashMap::new();
        for (key, end) in of_keys {
            levels.insert(key, rest.by_ref().take(end - at).collect());
            at = end;
        }
        TagSnapshot { tags, levels }
    }

    /// Adds the tags that a factory chose; see [`see_added`](Self::see_added).
    pub(crate) async fn see_more(
        &self,
        call: TagCall<'_>,
        prefix: &str,
        snapshot: TagSnapshot,
        names: &[String],
        began: FactoryStart,
    ) -> TagSnapshot {
        let tags = self.see_added(call, prefix, snapshot.tags, names, began).await;
        TagSnapshot { tags, ..snapshot }
    }
}

impl ObservedTag {
    /// Writes the stored form of a key's levels into the metadata.
    pub(crate) fn store_levels(levels: &[Self], meta: &mut Meta) {
        let stored = |seen: &Self| seen.stored();
        meta.levels = (!levels.is_empty()).then(|| levels.iter().map(stored).collect());
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_levels_of_a_key_are_all_that_a_clear_could_name() {
        let of = |local| levels(local).collect::<Vec<_>>();
        assert_eq!(of("k"), [""]);
        assert_eq!(of("users:eu:1"), ["", "users:", "users:eu:"]);
        assert_eq!(of("a::b"), ["", "a:", "a::"]);
        assert_eq!(of("users:"), ["", "users:"]);
        assert_eq!(of(":"), ["", ":"]);
        let deep = of("1:2:3:4:5:6:7:8:9:k");
        assert_eq!((deep.len(), deep.last()), (MOST_LEVELS, Some(&"1:2:3:4:5:6:7:")));
    }

    #[test]
    fn the_name_of_a_level_is_the_same_everywhere_and_for_ever() {
        assert_eq!(name(""), "___bc:c:efd01f60ba992926");
        assert_eq!(name("users:"), format!("___bc:c:{:016x}", stable_hash("users:")));
        assert_eq!(name("users:").len(), LONGEST_NAME);
    }
}
