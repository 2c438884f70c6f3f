//! Tags: the state of each tag in this process, and its lookup.
//!
//! All entries with a tag share one [`Tag`], so a hit compares numbers and needs no lookup. The
//! table finds a tag by the complete key of its marker. A tag that no entry and no call holds can
//! be forgotten: without an L2 it could invalidate nothing any more, and with one its marker is
//! stored.
//!
//! - this file: the table and lookups
//! - [`bucket`]: tells a tag that was never invalidated from one whose marker was lost
//! - [`seen`]: the states of tags that values remember
//! - [`invalidate`]: the invalidation of tags
//! - [`levels`]: hidden tags, which clear an L2 that cannot clear by prefix

mod bucket;
mod invalidate;
mod levels;
mod seen;

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Weak};

use bentocache_driver::{DriverError, NEVER, Tag, TagPosition};
use bytes::Bytes;

use self::bucket::{Bucket, BucketPlace};
pub(crate) use self::invalidate::marker_of;
pub(crate) use self::levels::{LONGEST_NAME, TagSnapshot};
use self::seen::FactoryStart;
pub(crate) use self::seen::{LoadedEntry, ObservedTag};
use super::{Engine, Key, KeyVec};
use crate::l1::fence::Fence;
use crate::l1::{Reason, is_level};
use crate::l2::L2;
use crate::options::{BusDown, Policy};
use crate::site::{BUCKET, RESERVED};
use crate::sync::Mutex;

/// The number of times that one call reads the marker of a tag that is being invalidated.
const MOST_LOOKS: usize = 3;
/// After this many invalidations in its bucket, the position of a tag is read again before a value
/// remembers it: other processes could no longer tell whether the tag was among them.
const BEHIND: u64 = 16;
/// From this table size on, unused tags are removed when the table has doubled.
const SWEEP_FROM: usize = 1_024;

/// The identity that stands for no bucket.
const NO_BUCKET: u64 = 0;

pub(crate) struct Tags {
    table: Mutex<TagTable>,
    /// How long a known state is relied on without a working bus, in ms.
    check_interval: u64,
    /// Whether a working bus reports changes.
    bus_reports: AtomicBool,
    /// Whether the last known marker of a tag counts while L2 cannot be asked.
    serve: bool,
    /// The parts of the store where the latest lookup failed, and the time of the failure.
    failed: Mutex<HashMap<TagParts, u64>>,
    /// The last state that was given to a tag without a marker. States order the events of tags.
    states: AtomicU64,
    /// The value of `states` when this process last may have missed an invalidation.
    missed_at: AtomicU64,
}

#[derive(Default)]
struct TagTable {
    tags: HashMap<Box<str>, Arc<Tag>>,
    sweep_at: usize,
    /// By [`BucketPlace::id`].
    buckets: HashMap<u64, KnownBucket>,
    /// The replacements of lost buckets that were announced, by [`BucketPlace::id`].
    announced: HashMap<u64, u64>,
}

/// The parts of L2 that have the marker and the bucket of a tag.
type TagParts = [Option<u32>; 2];

/// The result of reading one key of L2.
type ReadResult = Result<Option<Bytes>, Arc<DriverError>>;

/// The knowledge of this process about one bucket.
#[derive(Default)]
struct KnownBucket {
    /// The number of invalidations in the bucket that this process knows of.
    heard: u64,
    tags: Vec<Weak<Tag>>,
}

/// The data of a tag in L2.
struct Reading {
    /// 0 if there is no marker.
    marker: u64,
    /// `None` if the bucket does not exist and cannot be stored.
    bucket: Option<Bucket>,
    /// Whether a working bus would have reported an invalidation since the previous lookup.
    was_reported: bool,
}

impl Tags {
    pub(crate) fn new(check_interval: u64, bus_down: BusDown) -> Self {
        let table = TagTable { sweep_at: SWEEP_FROM, ..TagTable::default() };
        Self {
            table: Mutex::new(table),
            check_interval,
            bus_reports: AtomicBool::new(false),
            serve: matches!(bus_down, BusDown::Serve),
            failed: Mutex::default(),
            states: AtomicU64::new(Tag::UNMARKED),
            missed_at: AtomicU64::new(Tag::UNMARKED),
        }
    }

    /// The tag whose marker has this complete key.
    fn tag(&self, marker_key: &str) -> Arc<Tag> {
        let table = &mut *self.table.lock();
        if let Some(tag) = table.tags.get(marker_key) {
            return tag.clone();
        }
        if table.tags.len() >= table.sweep_at {
            table.tags.retain(|_, tag| Arc::strong_count(tag) > 1);
            table.sweep_at = (table.tags.len() * 2).max(SWEEP_FROM);
            table.buckets.retain(|_, bucket| {
                bucket.tags.retain(|tag| tag.strong_count() > 0);
                !bucket.tags.is_empty()
            });
            table.announced.clear();
            self.missed();
        }
        let tag = Arc::new(Tag::new(marker_key));
        table.tags.insert(marker_key.into(), tag.clone());
        let bucket = table.buckets.entry(BucketPlace::of(marker_key).id()).or_default();
        bucket.tags.push(Arc::downgrade(&tag));
        tag
    }

    /// The tags with these names, in the namespace of a handle with this prefix.
    pub(crate) fn named<'a>(
        &'a self,
        prefix: &'a str,
        names: impl IntoIterator<Item = &'a str> + 'a,
    ) -> impl Iterator<Item = Arc<Tag>> + 'a {
        names.into_iter().map(move |name| self.tag(&[prefix, RESERVED, name].concat()))
    }

    /// Another process has invalidated the tag with this marker, or has replaced the lost bucket
    /// with this key. If there is no L2 to read the time from, the tag counts as invalidated at
    /// `now` (ms since the epoch).
    pub(crate) fn changed(&self, marker_key: &str, now: Option<u64>) {
        if let Some(place) = BucketPlace::of_bucket(marker_key) {
            return self.lost_bucket(&place);
        }
        self.heard_of(marker_key);
        match now {
            // A value that is being produced may be about to get this tag.
            None => self.mark_contested(&self.tag(marker_key)),
            Some(now) => {
                if let Some(tag) = self.table.lock().tags.get(marker_key) {
                    tag.learn(now.max(tag.invalidated_at() + 1), None, NEVER);
                }
            }
        }
    }

    /// Records that the tag was invalidated or is being invalidated.
    fn mark_contested(&self, tag: &Tag) {
        tag.mark_contested(self.new_state());
    }

    /// Records that an invalidation may have been missed.
    fn missed(&self) {
        self.missed_at.store(self.new_state(), Relaxed);
    }

    /// A position that separates earlier events of tags from later ones.
    pub(crate) fn moment(&self) -> u64 {
        self.states.load(Relaxed)
    }

    /// Whether this process would know of any invalidation of the tag since that moment.
    fn has_heard_all_since(&self, tag: &Tag, moment: u64) -> bool {
        self.bus_reports.load(SeqCst)
            && self.missed_at.load(Relaxed) <= moment
            && tag.contested_at() <= moment
    }

    fn heard_of(&self, marker_key: &str) {
        let table = &mut *self.table.lock();
        if let Some(bucket) = table.buckets.get_mut(&BucketPlace::of(marker_key).id()) {
            bucket.heard += 1;
        }
    }

    /// Handles a lost bucket: other processes can no longer validate values made with it. Its tags
    /// are looked up again, so that all processes agree.
    fn lost_bucket(&self, place: &BucketPlace<'_>) {
        if let Some(bucket) = self.table.lock().buckets.get(&place.id()) {
            bucket.tags.iter().filter_map(Weak::upgrade).for_each(|tag| tag.mark_doubtful(0));
        }
    }

    /// Whether so many invalidations happened in the tag's bucket that its position must be read
    /// again before a value remembers it.
    fn is_behind(&self, tag: &Tag) -> bool {
        let Some(position) = tag.state().1 else { return true };
        self.heard(tag).wrapping_sub(position.heard) >= BEHIND
    }

    fn heard(&self, tag: &Tag) -> u64 {
        let table = self.table.lock();
        table.buckets.get(&BucketPlace::of(tag.key()).id()).map_or(0, |bucket| bucket.heard)
    }

    /// Whether the other processes must still be told that the tag's bucket is now this one.
    fn must_announce(&self, tag: &Tag, bucket: u64) -> bool {
        let place = BucketPlace::of(tag.key()).id();
        self.table.lock().announced.insert(place, bucket) != Some(bucket)
    }

    /// The tags whose marker keys start with `prefix`.
    pub(crate) fn under(&self, prefix: &str) -> Vec<Arc<Tag>> {
        let table = self.table.lock();
        table.tags.values().filter(|tag| tag.key().starts_with(prefix)).cloned().collect()
    }

    /// Records that the known states of tags under a prefix may be out of date.
    pub(crate) fn mark_all_doubtful(&self, prefix: &str) {
        self.missed();
        for (key, tag) in &self.table.lock().tags {
            if key.starts_with(prefix) {
                tag.mark_doubtful(0);
            }
        }
    }

    /// Records that the markers under a prefix are gone in all tiers.
    pub(crate) fn forget_all(&self, prefix: &str, has_l2: bool) {
        for (key, tag) in &self.table.lock().tags {
            if key.starts_with(prefix) {
                tag.learn(self.new_state(), None, NEVER);
                if has_l2 {
                    self.mark_contested(tag);
                }
            }
        }
    }

    /// Records whether a working bus reports changes from now on.
    pub(crate) fn set_bus_reports(&self, reports: bool, now: u64) {
        self.bus_reports.store(reports, SeqCst);
        self.missed();
        if !reports {
            let until = now.saturating_add(self.check_interval);
            for tag in self.table.lock().tags.values() {
                tag.mark_doubtful(until);
            }
        }
    }

    /// Extends the known state of the tag for another interval, if the policy allows it, because L2
    /// is unavailable. If the tag's fence has advanced, the tag was invalidated meanwhile and
    /// nothing is extended. `since` is the start of the lookup, in ms since the epoch.
    fn extend(&self, tag: &Tag, fence: &Fence, now: u64, since: u64) {
        if !self.serve {
            return;
        }
        let until = now.saturating_add(self.check_interval);
        let _ = fence.fill(|| {
            // Every entry has levels: without a state for them, no entry could be used during an
            // outage.
            if !tag.is_known() && is_level(tag) {
                tag.learn(self.new_state(), Some(unread_position(since, now)), until);
            }
            tag.extend(until);
        });
    }

    /// Whether a recent lookup of the tag, or of another tag in the same parts of L2, failed.
    fn failed_lately(&self, l2: &L2, tag: &Tag, now: u64) -> bool {
        let failed = self.failed.lock();
        // Usually no lookup has failed, so the parts of the tag need not be determined.
        !failed.is_empty()
            && failed
                .get(&parts_of(l2, tag))
                .is_some_and(|at| now.saturating_sub(*at) <= self.check_interval.saturating_mul(2))
    }

    /// Records whether a lookup of the tag succeeded.
    fn looked_up(&self, l2: &L2, tag: &Tag, succeeded: bool, now: u64) {
        let mut failed = self.failed.lock();
        if !succeeded {
            failed.insert(parts_of(l2, tag), now);
        } else if !failed.is_empty() {
            failed.remove(&parts_of(l2, tag));
        }
    }

    /// A new state for a tag without a marker. No entry in this process is valid under it.
    fn new_state(&self) -> u64 {
        self.states.fetch_add(1, Relaxed) + 1
    }

    /// Applies a lookup of a tag that started at `began`. The state must still be reliable at
    /// `now`. Returns whether an older marker has replaced a known one.
    fn learn(&self, tag: &Tag, reading: &Reading, began: u64, now: u64) -> bool {
        let BucketPlace { hash, .. } = BucketPlace::of(tag.key());
        let (old, old_position) = tag.state();
        let listed = reading.bucket.as_ref().map_or(0, |bucket| bucket.marker(hash));
        let marker = reading.marker.max(listed);
        let position =
            reading.bucket.as_ref().map(|bucket| self.position(tag, bucket, marker == 0, began));
        let known = Tag::time_of(old);
        let was_reported = reading.was_reported;
        let is_unchanged = old != 0
            && match (old_position.filter(|old| old.bucket != NO_BUCKET), position) {
                (Some(old), Some(new)) => {
                    let is_same = old.bucket == new.bucket;
                    was_reported || is_same && (new.clean_since..=new.seq).contains(&old.seq)
                }
                // An entry made under a state that no other process could know is stale for other
                // processes.
                (None, Some(_)) => was_reported && known > 0,
                (None, None) if known == 0 => self.has_heard_all_since(tag, old),
                (_, None) => was_reported,
            };
        let state = match marker {
            // A marker that was lost in L2 is still known here.
            marker if marker <= known && is_unchanged => old,
            0 if is_unchanged => old,
            0 => self.new_state(),
            marker => marker,
        };
        self.believe(tag, state, position, began, now);
        0 < marker && state < known
    }

    /// The tag's position in its bucket.
    fn position(&self, tag: &Tag, bucket: &Bucket, is_unmarked: bool, now: u64) -> TagPosition {
        let place = BucketPlace::of(tag.key());
        TagPosition {
            bucket: bucket.id(),
            seq: bucket.seq(),
            clean_since: bucket.clean_since(place.hash),
            is_unmarked,
            blind_since: bucket.blind_since(),
            read_at: now,
            heard: self.heard(tag),
        }
    }

    /// Relies on a state that was read from `began` on.
    fn believe(&self, tag: &Tag, state: u64, position: Option<TagPosition>, began: u64, now: u64) {
        /// In ms: the clock may advance before the first use.
        const FIRST_LOOK: u64 = 2;
        let bounded = began.saturating_add(self.check_interval).max(now + FIRST_LOOK);
        // A state that no other process can know is valid only until the bucket can be stored.
        let is_shared = position.is_some() || Tag::time_of(state) > 0;
        let is_reported = is_shared && self.bus_reports.load(SeqCst);
        tag.learn(state, position, if is_reported { NEVER } else { bounded });
        // The bus may have failed just before this state was relied on.
        if !self.bus_reports.load(SeqCst) {
            tag.mark_doubtful(bounded);
        }
    }
}

fn parts_of(l2: &L2, tag: &Tag) -> TagParts {
    [l2.part(tag.key()), l2.part(&BucketPlace::of(tag.key()).key())]
}

/// The position of a tag that could not be read since then, in ms since the epoch.
fn unread_position(since: u64, now: u64) -> TagPosition {
    TagPosition {
        bucket: NO_BUCKET,
        seq: 0,
        clean_since: 0,
        is_unmarked: true,
        blind_since: since.saturating_sub(1),
        read_at: now,
        heard: 0,
    }
}

/// A bucket, its stored document, and the indices of its tags.
struct Group {
    key: Key,
    stored: ReadResult,
    tags: Vec<usize>,
}

/// Whether a bucket is in L2.
enum BucketState {
    Present(Bucket),
    /// There is none, and it cannot be stored now.
    Absent,
    /// Another bucket has just been stored in its place.
    Replaced,
}

impl Engine {
    /// Looks up the unknown tags among these, with one read of L2 for all. A tag that cannot be
    /// read stays unknown.
    pub(crate) async fn resolve_tags<'a>(
        &self,
        tags: impl Iterator<Item = &'a Arc<Tag>>,
        policy: &Policy,
    ) {
        let mut tags = tags.peekable();
        if tags.peek().is_none() {
            return;
        }
        let now = self.clock.now();
        self.look_up(tags.filter(|tag| !tag.is_believed(now)).collect(), policy).await;
    }

    /// Looks tags up, including those whose state is known.
    async fn look_up(&self, mut tags: Vec<&Arc<Tag>>, policy: &Policy) {
        if tags.is_empty() {
            return;
        }
        tags.sort_unstable_by_key(|tag| Arc::as_ptr(tag));
        tags.dedup_by_key(|tag| Arc::as_ptr(tag));
        let Some(l2) = &self.l2 else {
            for tag in tags {
                tag.learn(tag.marker(), None, NEVER);
            }
            return;
        };
        for _ in 0..MOST_LOOKS {
            // Boxed, because otherwise the future of every call would contain this one.
            tags = Box::pin(self.look_up_once(l2, tags, policy)).await;
            if tags.is_empty() {
                return;
            }
        }
    }

    /// Reads the markers and buckets of these tags. Returns the tags that must be looked up again,
    /// because they were invalidated meanwhile.
    async fn look_up_once<'a>(
        &self,
        l2: &L2,
        tags: Vec<&'a Arc<Tag>>,
        policy: &Policy,
    ) -> Vec<&'a Arc<Tag>> {
        let (now, at) = (self.clock.now(), self.clock.epoch());
        let fences: Vec<_> = tags.iter().map(|tag| self.l1.watch(&self.marker_key(tag))).collect();
        let reports = self.tags.bus_reports.load(SeqCst);
        let was_reported: Vec<_> = tags.iter().map(|tag| reports && tag.is_believed(now)).collect();
        for (tag, fence) in tags.iter().zip(&fences) {
            // While this call tests whether L2 works again, other calls need not wait for it.
            if self.tags.failed_lately(l2, tag, now) {
                self.tags.extend(tag, fence, now, at);
            }
        }
        let limit = policy.l2_limit(self.tags.serve && tags.iter().all(|tag| tag.is_known()));
        // With an open breaker no call can be made.
        let is_skipped = tags.iter().all(|tag| l2.is_skipped(&self.marker_key(tag).full));
        let (groups, markers) = match is_skipped {
            true => (Vec::new(), Vec::new()),
            false => self.read_tags(l2, &tags, limit).await,
        };
        // A tag is known if both its marker and its bucket could be read: a marker alone may be
        // older than one that the bucket lists.
        let mut was_read: Vec<bool> = tags.iter().map(|_| false).collect();
        for group in groups.iter().filter(|group| group.stored.is_ok()) {
            group.tags.iter().for_each(|i| was_read[*i] = markers[*i].is_ok());
        }
        let asked_at = self.clock.now();
        for (i, tag) in tags.iter().enumerate() {
            self.tags.looked_up(l2, tag, was_read[i], asked_at);
            if !was_read[i] {
                self.tags.extend(tag, &fences[i], asked_at, at);
            }
        }
        let (mut again, mut broken) = (Vec::new(), KeyVec::new());
        for group in groups {
            let Ok(stored) = &group.stored else { continue };
            let stored = stored.as_ref();
            let bucket = match self.kept_bucket(l2, &group.key, stored, &mut broken, policy).await {
                BucketState::Present(bucket) => Some(bucket),
                BucketState::Absent => None,
                BucketState::Replaced => {
                    again.extend(group.tags.iter().filter(|i| was_read[**i]).map(|i| tags[*i]));
                    continue;
                }
            };
            for i in group.tags {
                let (tag, was_reported) = (tags[i], was_reported[i]);
                let Ok(Ok(marker)) = markers[i].as_ref().map(|bytes| marker_of(bytes.as_ref()))
                else {
                    continue;
                };
                let reading = Reading { marker, bucket: bucket.clone(), was_reported };
                let learn = || self.tags.learn(tag, &reading, now, self.clock.now());
                match fences[i].fill(learn) {
                    // An entry that was invalidated after the older marker would become valid
                    // again.
                    Some(true) => self.l1.begin_epoch(Reason::Change),
                    Some(false) => {}
                    None => again.push(tag),
                }
            }
        }
        again
    }

    /// Reads buckets and markers in one round trip. Buckets first, because a marker must not be
    /// older than the bucket's content.
    async fn read_tags<T: AsRef<Tag>>(
        &self,
        l2: &L2,
        tags: &[T],
        limit: u64,
    ) -> (Vec<Group>, Vec<ReadResult>) {
        let mut groups = self.groups(tags);
        let markers: Vec<Key> = tags.iter().map(|tag| self.marker_key(tag.as_ref())).collect();
        let keys: Vec<&Key> = groups.iter().map(|group| &group.key).chain(&markers).collect();
        let mut stored = l2.read_each(&keys, limit).await.into_iter();
        for (group, stored) in groups.iter_mut().zip(stored.by_ref()) {
            group.stored = stored;
        }
        (groups, stored.collect())
    }

    /// The tags grouped by bucket. Nothing is read yet.
    fn groups<T: AsRef<Tag>>(&self, tags: &[T]) -> Vec<Group> {
        let mut by_key: HashMap<String, Group> = HashMap::new();
        for (i, tag) in tags.iter().enumerate() {
            let place = BucketPlace::of(tag.as_ref().key());
            let group =
                || Group { key: self.bucket_key(&place), stored: Ok(None), tags: Vec::new() };
            by_key.entry(place.key()).or_insert_with(group).tags.push(i);
        }
        let mut groups: Vec<_> = by_key.into_values().collect();
        groups.sort_unstable_by(|a, b| a.key.full.cmp(&b.key.full));
        groups
    }

    /// The bucket that was read, or a new one if there is none. `broken` lists the parts of L2 that
    /// have failed.
    async fn kept_bucket(
        &self,
        l2: &L2,
        key: &Key,
        stored: Option<&Bytes>,
        broken: &mut KeyVec<Option<u32>>,
        policy: &Policy,
    ) -> BucketState {
        if let Some(bucket) = Bucket::parse(stored) {
            return BucketState::Present(bucket);
        }
        let part = l2.part(&key.full);
        if broken.contains(&part) || l2.is_waiting(key) {
            // After a failure, other calls to the same part would only wait too. A bucket that a
            // queued change would remove is not worth storing.
            return BucketState::Absent;
        }
        let now = self.clock.epoch();
        let bucket = Bucket::new(now, policy.tag_ttl);
        match self.replace_bucket(l2, key, stored, &bucket, policy).await {
            Ok(true) => BucketState::Present(bucket),
            Ok(false) => BucketState::Replaced,
            Err(_) => {
                broken.push(part);
                BucketState::Absent
            }
        }
    }

    /// Stores a bucket in place of the bytes that were found; returns whether it succeeded.
    async fn replace_bucket(
        &self,
        l2: &L2,
        key: &Key,
        found: Option<&Bytes>,
        bucket: &Bucket,
        policy: &Policy,
    ) -> Result<bool, Arc<DriverError>> {
        let (bytes, life) = bucket.encode(self.clock.epoch());
        l2.swap(key, found, bytes, life, policy.l2_limit(false)).await
    }

    fn bucket_key(&self, place: &BucketPlace<'_>) -> Key {
        self.key(place.prefix, &place.name())
    }

    pub(crate) fn marker_key(&self, tag: &Tag) -> Key {
        self.key("", tag.key())
    }
}
