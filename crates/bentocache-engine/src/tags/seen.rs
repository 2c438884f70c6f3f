//! The states of tags that values remember, and their comparison when values are read from L2.
//!
//! In memory an entry remembers the *state* of each tag ([`Tag::marker`]), which has a meaning in
//! this process only. In L2 it remembers the marker and the position in the tag's bucket. The
//! stored form is compared with the current state once, when the entry is loaded; a hit compares
//! states.

use std::sync::Arc;

use bentocache_driver::{Entry, NEVER, Tag, TagPosition, TagSeen};

use super::bucket::BucketPlace;
use super::{NO_BUCKET, TagCall, Tags};
use crate::clock::is_plausible;
use crate::l1::is_level;
use crate::site::Key;
use crate::wire::document::{Level, Meta};

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
    /// [`Tags::moment`].
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

    /// A state that is not the present one, for a value that is stale from the start. It is gone if
    /// the tag was deleted since `began`.
    fn outdated(tag: &Arc<Tag>, began: FactoryStart) -> Self {
        let marker = tag.invalidated_at();
        if marker == 0 || tag.deleted_at() >= began.at {
            return Self::with(tag, TagSeen::STALE);
        }
        let marker = marker - 1;
        Self { tag: tag.clone(), state: marker, memory: TagMemory { marker, bucket: (0, 0) } }
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
    fn levels(meta: &Meta, most: usize) -> Option<&[Level]> {
        meta.levels.as_deref().filter(|levels| levels.len() == most)
    }

    /// As [`unjudged`](Self::unjudged), for a level.
    fn unjudged_level(meta: &Meta, most: usize, now: u64) -> u64 {
        match Self::levels(meta, most) {
            Some(_) => TagSeen::STALE,
            None if !is_plausible(meta.created_at, now) => TagSeen::STALE,
            // Written by the Node library, or before the store had levels.
            None => TagSeen::BY_AGE,
        }
    }

    /// The state that L1 holds for the tag at this index until the stored form has been compared. A
    /// remembered marker is a state itself.
    fn unjudged(meta: &Meta, index: usize, now: u64) -> u64 {
        match (&meta.tag_markers, &meta.tag_scope) {
            (Some(markers), _) => match markers.get(index) {
                Some(marker @ 1..Tag::UNMARKED) => *marker,
                _ => TagSeen::STALE,
            },
            (None, Some(_)) => TagSeen::UNREAD,
            // An entry with a creation time in the future would outlive every invalidation if it
            // were judged by age.
            (None, None) if !is_plausible(meta.created_at, now) => TagSeen::STALE,
            // Written by the Node library.
            (None, None) => TagSeen::BY_AGE,
        }
    }
}

impl Tags {
    /// The tags of a value that is about to be produced, each with its state.
    pub(super) async fn see_named<'a>(
        &'a self,
        call: TagCall<'_>,
        prefix: &str,
        names: impl IntoIterator<Item = &'a str> + 'a,
    ) -> Vec<ObservedTag> {
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        self.see_these(call, self.named(prefix, names).collect()).await
    }

    /// As [`see_named`](Self::see_named), for tags of the table; keeps their order.
    pub(super) async fn see_these(
        &self,
        call: TagCall<'_>,
        tags: Vec<Arc<Tag>>,
    ) -> Vec<ObservedTag> {
        if tags.is_empty() {
            return Vec::new();
        }
        let now = self.site.clock.now();
        let is_behind = |tag: &Tag, l2| self.is_behind(tag) && !self.failed_lately(l2, tag, now);
        let wanted =
            |tag: &&Arc<Tag>| !tag.is_believed(now) || call.l2.is_some_and(|l2| is_behind(tag, l2));
        self.look_up(call, tags.iter().filter(wanted).collect()).await;
        let now = self.site.clock.now();
        // The state of a tag that cannot be read is not remembered. The entry is stale until the
        // tag can be read, and is valid then if it is younger than the marker.
        let seen = |tag: &Arc<Tag>| {
            let seen = ObservedTag::now(tag);
            if tag.is_believed(now) { seen } else { ObservedTag::with(tag, TagSeen::UNREAD) }
        };
        tags.iter().map(seen).collect()
    }

    /// Records that a factory begins now, which is `at` in ms since the epoch.
    pub(crate) fn factory_begins(&self, at: u64) -> FactoryStart {
        FactoryStart { at, moment: self.moment() }
    }

    /// Adds the tags that a factory chose, whose states were not read before it began. If such a
    /// tag was invalidated since, or may have been, the entry is stale from the start.
    pub(super) async fn see_added(
        &self,
        call: TagCall<'_>,
        prefix: &str,
        mut seen: Vec<ObservedTag>,
        names: &[String],
        began: FactoryStart,
    ) -> Vec<ObservedTag> {
        if names.is_empty() {
            return seen;
        }
        for added in self.see_named(call, prefix, names.iter().map(String::as_str)).await {
            if seen.iter().any(|known| Arc::ptr_eq(&known.tag, &added.tag)) {
                continue;
            }
            let was_invalidated =
                added.state != TagSeen::UNREAD && !self.is_from_before(call, &added, began);
            seen.push(match was_invalidated {
                true => ObservedTag::outdated(&added.tag, began),
                false => added,
            });
        }
        seen
    }

    /// Whether the tag was not invalidated since the factory began.
    fn is_from_before(&self, call: TagCall<'_>, seen: &ObservedTag, began: FactoryStart) -> bool {
        let marker = Tag::time_of(seen.state);
        match seen.tag.state() {
            _ if call.l2.is_none() || marker > 0 => marker < began.at,
            (state, Some(position)) if state == seen.state => {
                state <= began.moment
                    || position.blind_since < began.at
                    || self.has_heard_all_since(&seen.tag, began.moment)
            }
            _ => false,
        }
    }

    /// Looks up the tags of these entries and judges whether the entries are valid under them.
    /// Returns the keys of buckets that must be announced: the processes that made the entries may
    /// not know yet that their buckets were lost.
    pub(crate) async fn resolve_loaded(
        &self,
        call: TagCall<'_>,
        loaded: &[&LoadedEntry],
    ) -> Vec<Key> {
        self.look_up(call, unknown(loaded, self.site.clock.now())).await;
        let mut outdated = recall_all(loaded);
        if outdated.is_empty() {
            return Vec::new();
        }
        let now = self.site.clock.now();
        let is_old = |tag: &&Arc<Tag>| {
            tag.state().1.is_some_and(|position| now >= position.read_at.saturating_add(RECENT))
        };
        if outdated.iter().any(is_old) {
            self.look_up(call, outdated.into_iter().filter(is_old).collect()).await;
            outdated = recall_all(loaded);
        }
        let is_new = |tag: &&Arc<Tag>| {
            let bucket = tag.state().1.map_or(NO_BUCKET, |position| position.bucket);
            bucket != NO_BUCKET && self.must_announce(tag, bucket)
        };
        let outdated = outdated.into_iter().filter(is_new);
        outdated.map(|tag| self.bucket_key(&BucketPlace::of(tag.key()))).collect()
    }

    /// The tags of an entry that a snapshot of L1 has brought back, by the keys of their markers
    /// without the store's prefix. If the entry is not verified yet, its document in L2 tells whether
    /// they are valid. Else they were valid when the snapshot was written, and are valid as they are
    /// now.
    pub(crate) fn restored(
        &self,
        key: &Key,
        markers: &[Box<str>],
        is_verified: bool,
    ) -> Option<Box<[TagSeen]>> {
        let tags = markers.iter().map(|marker| self.tag(&[&self.site.root, &**marker].concat()));
        let levels = self.has_levels.then(|| self.levels_of(key)).into_iter().flatten();
        let restored = |tag: Arc<Tag>| {
            if !is_verified {
                return TagSeen::new(tag, TagSeen::STALE);
            }
            let state = tag.marker();
            tag.learn(state, None, NEVER);
            TagSeen::new(tag, state)
        };
        // The levels follow from the key and from the L2 of this run.
        let mut tags = tags.filter(|tag| !is_level(tag)).chain(levels).map(restored).peekable();
        tags.peek().is_some().then(|| tags.collect())
    }

    /// The tags of a stored document, as L1 holds them until [`resolve_loaded`] has judged them.
    ///
    /// [`resolve_loaded`]: Self::resolve_loaded
    pub(crate) fn unjudged(&self, key: &Key, meta: &Meta, now: u64) -> Option<Box<[TagSeen]>> {
        if !self.has_levels && meta.tags.is_empty() {
            return None;
        }
        // Tags are resolved in the namespace of the handle that wrote them, as far as the document
        // names it.
        let scope = meta.tag_scope.as_deref().map(|scope| [&*self.site.root, scope].concat());
        let prefix = scope.as_deref().unwrap_or(key.prefix());
        let tags = self.named(prefix, meta.tags.iter().map(|tag| &**tag));
        let unjudged = |(i, tag)| TagSeen::new(tag, LoadedEntry::unjudged(meta, i, now));
        let mut tags: Vec<_> = tags.enumerate().map(unjudged).collect();
        if self.has_levels {
            let levels: Vec<_> = self.levels_of(key).collect();
            let unjudged = LoadedEntry::unjudged_level(meta, levels.len(), now);
            tags.extend(levels.into_iter().map(|tag| TagSeen::new(tag, unjudged)));
        }
        Some(tags.into())
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
