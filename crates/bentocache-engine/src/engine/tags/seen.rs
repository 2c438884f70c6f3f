//! The states of tags that values remember, and their comparison when values are read from L2.
//!
//! In memory an entry remembers the *state* of each tag ([`Tag::marker`]), which has a meaning in
//! this process only. In L2 it remembers the marker and the position in the tag's bucket. The
//! stored form is compared with the current state once, when the entry is loaded; a hit compares
//! states.

use std::sync::Arc;

use bentocache_driver::{Entry, NEVER, Tag, TagPosition, TagSeen};

use super::NO_BUCKET;
use super::bucket::BucketPlace;
use crate::clock::is_plausible;
use crate::engine::Engine;
use crate::l1::is_level;
use crate::options::Policy;
use crate::wire::document::{Level, Meta};
use crate::wire::message::Kind;

/// A lookup that is younger than this, in ms, is not repeated only because a value was made with
/// another bucket: the value is the old one.
const RECENT: u64 = 1_000;

/// A tag, and its state when a value began to be produced.
#[derive(Clone, Debug)]
pub(crate) struct ObservedTag {
    pub(crate) tag: Arc<Tag>,
    /// The state, or one of the constants of [`TagSeen`].
    pub(crate) state: u64,
    memory: TagMemory,
}

/// When a factory began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FactoryStart {
    /// In ms since the epoch.
    at: u64,
    /// [`Tags::moment`](super::Tags::moment).
    moment: u64,
}

/// The state of one tag as a stored value remembers it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TagMemory {
    /// 0 if the tag had no marker.
    marker: u64,
    /// The tag's bucket and the number of its latest invalidation; both 0 if unknown.
    bucket: (u64, u64),
}

impl TagMemory {
    /// The state of the tag was unknown.
    const UNREAD: Self = Self { marker: 0, bucket: (0, 0) };

    fn new(state: u64, position: Option<TagPosition>) -> Self {
        let bucket = position.map_or((0, 0), |position| (position.bucket, position.seq));
        Self { marker: Tag::time_of(state), bucket }
    }
}

impl ObservedTag {
    /// The current state, whether it may be relied on or not.
    pub(crate) fn now(tag: &Arc<Tag>) -> Self {
        let (state, position) = tag.state();
        Self { tag: tag.clone(), state, memory: TagMemory::new(state, position) }
    }

    fn with(tag: &Arc<Tag>, state: u64) -> Self {
        Self { tag: tag.clone(), state, memory: TagMemory::UNREAD }
    }

    /// The stored form: the marker, the bucket, and the bucket's latest invalidation.
    pub(super) fn stored(&self) -> Level {
        let TagMemory { marker, bucket: (bucket, seq) } = self.memory;
        (marker, bucket, seq)
    }

    /// The form that L1 holds.
    pub(crate) fn remembered(&self) -> TagSeen {
        TagSeen::new(self.tag.clone(), self.state)
    }

    /// The form of all tags of a value that L1 holds. If one tag could not be read, the states of
    /// the others are not remembered either, as in [`store`](Self::store): an entry that is valid
    /// here must be valid for all processes.
    pub(crate) fn all_remembered(all: &[Self]) -> impl Iterator<Item = TagSeen> {
        let is_unread = Self::is_any_unread(all);
        all.iter().map(move |seen| {
            TagSeen::new(seen.tag.clone(), if is_unread { TagSeen::UNREAD } else { seen.state })
        })
    }

    fn is_any_unread(all: &[Self]) -> bool {
        all.iter().any(|seen| seen.state == TagSeen::UNREAD)
    }

    /// Writes the stored form of the tags into the metadata, unless some tag could not be read.
    pub(crate) fn store(all: &[Self], meta: &mut Meta) {
        if all.is_empty() || Self::is_any_unread(all) {
            (meta.tag_markers, meta.tag_buckets) = (None, None);
            return;
        }
        meta.tag_markers = Some(all.iter().map(|seen| seen.memory.marker).collect());
        meta.tag_buckets = Some(all.iter().map(|seen| seen.memory.bucket).collect());
    }
}

/// An entry from L2, with what it remembers of its tags.
#[derive(Debug)]
pub(crate) struct LoadedEntry {
    pub(crate) entry: Arc<Entry>,
    /// One per tag; `None` if the entry remembers nothing of it.
    memories: Box<[Option<TagMemory>]>,
}

impl LoadedEntry {
    pub(crate) fn new(entry: Arc<Entry>, meta: &Meta) -> Self {
        let bucket = |i| meta.tag_buckets.as_ref().map_or((0, 0), |buckets| buckets[i]);
        let given = (0..meta.tags.len()).map(|i| {
            let markers = meta.tag_markers.as_ref()?;
            Some(TagMemory { marker: markers[i], bucket: bucket(i) })
        });
        let hidden = entry.tags().len() - meta.tags.len();
        let levels = Self::levels(meta, hidden);
        let level = |i: usize| {
            let (marker, bucket, seq) = levels?[i];
            Some(TagMemory { marker, bucket: (bucket, seq) })
        };
        let memories = given.chain((0..hidden).map(level)).collect();
        Self { entry, memories }
    }

    /// The states of a key's levels that the document remembers, if the key has `most` levels.
    pub(crate) fn levels(meta: &Meta, most: usize) -> Option<&[Level]> {
        meta.levels.as_deref().filter(|levels| levels.len() == most)
    }

    /// As [`unjudged`](Self::unjudged), for a level.
    pub(crate) fn unjudged_level(meta: &Meta, most: usize, now: u64) -> u64 {
        match Self::levels(meta, most) {
            Some(_) => TagSeen::STALE,
            None if !is_plausible(meta.created_at, now) => TagSeen::STALE,
            // Written by the Node library, or before the store had levels.
            None => TagSeen::BY_AGE,
        }
    }

    /// The state that L1 holds for a tag until the stored form has been compared.
    pub(crate) fn unjudged(meta: &Meta, now: u64) -> u64 {
        match (&meta.tag_markers, &meta.tag_scope) {
            (Some(_), _) => TagSeen::STALE,
            (None, Some(_)) => TagSeen::UNREAD,
            // An entry with a creation time in the future would outlive every invalidation if it
            // were judged by age.
            (None, None) if !is_plausible(meta.created_at, now) => TagSeen::STALE,
            // Written by the Node library.
            (None, None) => TagSeen::BY_AGE,
        }
    }
}

impl Engine {
    /// The tags of a value that is about to be produced, each with its state.
    pub(crate) async fn see_tags<'a>(
        &'a self,
        prefix: &str,
        names: impl IntoIterator<Item = &'a str> + 'a,
        policy: &Policy,
    ) -> Vec<ObservedTag> {
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        self.see_these(self.tags.named(prefix, names).collect(), policy).await
    }

    /// As [`see_tags`](Self::see_tags), for tags that are looked up already; keeps their order.
    pub(super) async fn see_these(&self, tags: Vec<Arc<Tag>>, policy: &Policy) -> Vec<ObservedTag> {
        if tags.is_empty() {
            return Vec::new();
        }
        let now = self.clock.now();
        let is_behind =
            |tag: &Tag, l2| self.tags.is_behind(tag) && !self.tags.failed_lately(l2, tag, now);
        let wanted = |tag: &&Arc<Tag>| {
            !tag.is_believed(now) || self.l2.as_ref().is_some_and(|l2| is_behind(tag, l2))
        };
        self.look_up(tags.iter().filter(wanted).collect(), policy).await;
        let now = self.clock.now();
        // The state of a tag that cannot be read is not remembered. The entry is stale until the
        // tag can be read, and is valid then if it is younger than the marker.
        let seen = |tag: &Arc<Tag>| {
            let seen = ObservedTag::now(tag);
            if tag.is_believed(now) { seen } else { ObservedTag::with(tag, TagSeen::UNREAD) }
        };
        tags.iter().map(seen).collect()
    }

    /// Records that a factory begins now, which is `at` in ms since the epoch.
    pub(crate) fn tags_at(&self, at: u64) -> FactoryStart {
        FactoryStart { at, moment: self.tags.moment() }
    }

    /// Adds the tags that a factory chose, whose states were not read before it began. If such a
    /// tag was invalidated since, or may have been, the entry is stale from the start.
    pub(crate) async fn see_added(
        &self,
        prefix: &str,
        mut seen: Vec<ObservedTag>,
        names: &[String],
        began: FactoryStart,
        policy: &Policy,
    ) -> Vec<ObservedTag> {
        if names.is_empty() {
            return seen;
        }
        for added in self.see_tags(prefix, names.iter().map(String::as_str), policy).await {
            if seen.iter().any(|known| Arc::ptr_eq(&known.tag, &added.tag)) {
                continue;
            }
            let was_invalidated =
                added.state != TagSeen::UNREAD && !self.is_from_before(&added, began);
            let stale = || ObservedTag::with(&added.tag, TagSeen::STALE);
            seen.push(if was_invalidated { stale() } else { added });
        }
        seen
    }

    /// Whether the tag was not invalidated since the factory began.
    fn is_from_before(&self, seen: &ObservedTag, began: FactoryStart) -> bool {
        let marker = Tag::time_of(seen.state);
        match seen.tag.state() {
            _ if self.l2.is_none() || marker > 0 => marker < began.at,
            (state, Some(position)) if state == seen.state => {
                state <= began.moment
                    || position.blind_since < began.at
                    || self.tags.has_heard_all_since(&seen.tag, began.moment)
            }
            _ => false,
        }
    }

    /// Looks up the tags of these entries and judges whether the entries are valid under them.
    pub(crate) async fn resolve_loaded(&self, loaded: &[&LoadedEntry], policy: &Policy) {
        self.look_up(unknown(loaded, self.clock.now()), policy).await;
        let mut outdated = recall_all(loaded);
        if outdated.is_empty() {
            return;
        }
        let now = self.clock.now();
        let is_old = |tag: &&Arc<Tag>| {
            tag.state().1.is_some_and(|position| now >= position.read_at.saturating_add(RECENT))
        };
        if outdated.iter().any(is_old) {
            self.look_up(outdated.into_iter().filter(is_old).collect(), policy).await;
            outdated = recall_all(loaded);
        }
        for tag in outdated {
            // The process that made the entry may not know yet that its bucket was lost.
            if let Some(position) = tag.state().1
                && position.bucket != NO_BUCKET
                && self.tags.must_announce(tag, position.bucket)
            {
                let key = self.bucket_key(&BucketPlace::of(tag.key()));
                self.announce(Kind::Set, &key, &self.policy);
            }
        }
    }
}

/// The tags of these entries that must be looked up.
fn unknown<'a>(loaded: &[&'a LoadedEntry], now: u64) -> Vec<&'a Arc<Tag>> {
    let tags = loaded.iter().flat_map(|loaded| loaded.entry.tags()).map(TagSeen::tag);
    tags.filter(|tag| !tag.is_believed(now)).collect()
}

/// [`recall`], for several entries.
fn recall_all<'a>(loaded: &[&'a LoadedEntry]) -> Vec<&'a Arc<Tag>> {
    loaded.iter().flat_map(|loaded| recall(loaded)).collect()
}

/// Compares what an entry remembers of its tags with their current states: the marker decides, or
/// else the bucket. Returns the tags about which the entry may know more than this process does.
fn recall(loaded: &LoadedEntry) -> Vec<&Arc<Tag>> {
    let mut outdated = Vec::new();
    for (seen, memory) in loaded.entry.tags().iter().zip(&loaded.memories) {
        let tag = seen.tag();
        if !tag.is_known() {
            continue;
        }
        let Some(memory) = memory else {
            // An entry with a creation time in the future is valid only if the tag was never
            // invalidated.
            if seen.seen() == TagSeen::STALE && tag.invalidated_at() == 0 {
                seen.accept(tag.marker());
            }
            continue;
        };
        let (state, position) = tag.state();
        if memory.marker == state {
            seen.accept(state);
            continue;
        }
        if *memory == TagMemory::UNREAD && is_level(tag) {
            // Written during an outage. A marker decides. Without one, a clear may have happened at
            // any time before the bucket can prove otherwise.
            let cleared_at = match (Tag::time_of(state), position) {
                (0, position) => position.map_or(NEVER, |position| position.blind_since),
                (marker, _) => marker,
            };
            if loaded.entry.created_at() > cleared_at {
                seen.accept(state);
            }
            continue;
        }
        let Some(position) = position else { continue };
        let (bucket, seq) = memory.bucket;
        let is_same = bucket == position.bucket;
        if is_same && position.is_unmarked && seq >= position.clean_since {
            seen.accept(state);
            continue;
        }
        // The value was made with another bucket, or when a marker that this process knows was
        // lost.
        let knows_more = bucket != 0 && (!is_same || !position.is_unmarked && seq > position.seq);
        if knows_more {
            outdated.push(tag);
        }
    }
    outdated
}
