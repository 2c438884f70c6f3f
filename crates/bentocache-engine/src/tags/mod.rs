//! Tags: the state of each tag in this process, and its lookup.
//!
//! All entries with a tag share one [`Tag`], so a hit compares numbers and needs no lookup. The
//! table finds a tag by the complete key of its marker. A tag that no entry and no call holds can
//! be forgotten: without an L2 it could invalidate nothing any more, and with one its marker is
//! stored.
//!
//! - this file: the table, and what this process hears about tags
//! - [`look_up`]: reads the states of tags from L2
//! - [`bucket`]: tells a tag that was never invalidated from one whose marker was lost
//! - [`seen`]: the states of tags that values remember
//! - [`invalidate`]: the invalidation of tags
//! - [`levels`]: hidden tags, which clear an L2 that cannot clear by prefix
//! - [`marker`]: the stored form of a marker

mod bucket;
mod invalidate;
mod levels;
mod look_up;
mod marker;
mod seen;

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Weak};

use bentocache_driver::{NEVER, Tag, TagPosition};

use self::bucket::{Bucket, BucketPlace};
pub(crate) use self::invalidate::TagChange;
pub(crate) use self::levels::{LONGEST_NAME, TagSnapshot};
pub(crate) use self::marker::{marker_document, marker_of};
pub(crate) use self::seen::{FactoryStart, LoadedEntry, ObservedTag};
use crate::l1::L1;
use crate::l2::L2;
use crate::options::{BusDown, Policy};
use crate::site::{Key, RESERVED, Site};
use crate::sync::Mutex;
use crate::wire::marker::MarkerTimes;
use crate::wire::message::Kind;

/// After this many invalidations in its bucket, the position of a tag is read again before a value
/// remembers it: other processes could no longer tell whether the tag was among them.
const BEHIND: u64 = 16;
/// From this table size on, unused tags are removed when the table has doubled.
const SWEEP_FROM: usize = 1_024;

/// The identity that stands for no bucket.
const NO_BUCKET: u64 = 0;

pub(crate) struct Tags {
    site: Site,
    has_levels: bool,
    table: Mutex<TagTable>,
    /// How long a known state is relied on without a working bus, in ms.
    check_interval: u64,
    /// Whether a working bus reports changes.
    bus_reports: AtomicBool,
    /// Whether the last known marker of a tag counts while L2 cannot be asked.
    serve: bool,
    /// The parts of the store where the latest lookup failed, and the time of the failure.
    failed: Mutex<HashMap<[Option<u32>; 2], u64>>,
    /// The last state that was given to a tag without a marker. States order the events of tags.
    states: AtomicU64,
    /// The value of `states` when this process last may have missed an invalidation.
    missed_at: AtomicU64,
}

/// A call that needs tags: its tiers and its policy.
#[derive(Clone, Copy)]
pub(crate) struct TagCall<'a> {
    pub(crate) l1: &'a L1,
    pub(crate) l2: Option<&'a L2>,
    pub(crate) policy: &'a Policy,
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

/// The knowledge of this process about one bucket.
#[derive(Default)]
struct KnownBucket {
    /// The number of invalidations in the bucket that this process knows of.
    heard: u64,
    tags: Vec<Weak<Tag>>,
}

impl Tags {
    pub(crate) fn new(
        site: Site,
        check_interval: u64,
        bus_down: BusDown,
        has_levels: bool,
    ) -> Self {
        let table = TagTable { sweep_at: SWEEP_FROM, ..TagTable::default() };
        Self {
            site,
            has_levels,
            table: Mutex::new(table),
            check_interval,
            bus_reports: AtomicBool::new(false),
            serve: matches!(bus_down, BusDown::Serve),
            failed: Mutex::default(),
            states: AtomicU64::new(Tag::UNMARKED),
            missed_at: AtomicU64::new(Tag::UNMARKED),
        }
    }

    /// Whether entries have hidden tags, because L2 cannot clear by prefix.
    pub(crate) fn has_levels(&self) -> bool {
        self.has_levels
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

    /// A tag of this list that no value in this namespace of L1 has had, and a value of another
    /// namespace has, with that namespace.
    pub(crate) fn only_elsewhere<'a>(
        &self,
        prefix: &str,
        names: &[&'a str],
    ) -> Option<(&'a str, String)> {
        let table = self.table.lock();
        names.iter().find_map(|name| {
            let marker = [RESERVED, name].concat();
            if table.tags.contains_key(&*[prefix, &marker].concat()) {
                return None;
            }
            let other = table.tags.iter().find_map(|(key, tag)| {
                // The table itself holds one reference, and values hold the others.
                key.strip_suffix(&marker).filter(|_| Arc::strong_count(tag) > 1)
            })?;
            Some((*name, self.site.shown(other).into_owned()))
        })
    }

    /// Another process has invalidated the tag with this marker, or has replaced the lost bucket
    /// with this key. Only a message about an `expire` tells that no entry was deleted. If there is
    /// no L2 to read the marker from, the tag counts as invalidated now.
    pub(crate) fn changed(&self, marker_key: &str, kind: Kind, has_l2: bool) {
        if let Some(place) = BucketPlace::of_bucket(marker_key) {
            return self.lost_bucket(&place);
        }
        self.heard_of(marker_key);
        let change = if kind == Kind::Expire { TagChange::Expire } else { TagChange::Delete };
        let (now, moment) = (self.site.clock.epoch(), self.moment());
        if has_l2 {
            // A value that is being produced may be about to get this tag.
            let tag = self.tag(marker_key);
            if change == TagChange::Delete {
                tag.suspect_deleted(now.max(tag.invalidated_at() + 1), moment);
            }
            self.mark_contested(&tag);
        } else if let Some(tag) = self.table.lock().tags.get(marker_key) {
            let marker = now.max(tag.invalidated_at() + 1);
            if change == TagChange::Delete {
                tag.mark_deleted(marker, moment);
            }
            tag.learn(marker, None, NEVER);
        }
    }

    /// Records that this process begins to change the tag. What it deletes is gone here at once.
    fn begin_change(&self, tag: &Tag, change: TagChange) {
        if change == TagChange::Delete {
            let at = self.site.clock.epoch().max(tag.invalidated_at() + 1);
            tag.mark_deleted(at, self.moment());
        }
        self.mark_contested(tag);
    }

    /// Records the last deletion of the tag.
    fn deleted(&self, tag: &Tag, times: MarkerTimes) {
        if times.hard_at > 0 {
            tag.mark_deleted(times.hard_at, self.moment());
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

    /// The known keys of markers that start with `prefix`.
    pub(crate) fn markers_under(&self, prefix: &str) -> Vec<Key> {
        let table = self.table.lock();
        let tags = table.tags.values().filter(|tag| tag.key().starts_with(prefix));
        tags.map(|tag| self.marker_key(tag)).collect()
    }

    fn bucket_key(&self, place: &BucketPlace<'_>) -> Key {
        self.site.key(place.prefix, &place.name())
    }

    fn marker_key(&self, tag: &Tag) -> Key {
        self.site.key("", tag.key())
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

    /// Everything under a prefix was cleared. Unless a marker did that, the markers there are gone
    /// in all tiers.
    pub(crate) fn cleared(&self, prefix: &str, has_l2: bool) {
        if self.has_levels {
            return;
        }
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

    /// A new state for a tag without a marker. No entry in this process is valid under it.
    fn new_state(&self) -> u64 {
        self.states.fetch_add(1, Relaxed) + 1
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
