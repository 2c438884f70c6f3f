//! Reads the states of tags from L2.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bentocache_driver::{DriverError, NEVER, Tag, TagPosition};
use bytes::Bytes;

use super::bucket::{Bucket, BucketPlace};
use super::marker::marker_of;
use super::{NO_BUCKET, TagCall, Tags};
use crate::l1::fence::Fence;
use crate::l1::{Reason, is_level};
use crate::l2::L2;
use crate::options::Policy;
use crate::site::{Key, KeyVec};
use crate::wire::marker::MarkerTimes;

/// The number of times that one call reads the marker of a tag that is being invalidated.
const MOST_LOOKS: usize = 3;

/// The result of reading one key of L2.
pub(super) type ReadResult = Result<Option<Bytes>, Arc<DriverError>>;

/// A tag that is being looked up.
struct Asked<'a> {
    tag: &'a Arc<Tag>,
    /// Of the marker's key.
    fence: Fence,
    /// Whether a working bus would have reported an invalidation since the previous lookup.
    was_reported: bool,
    marker: ReadResult,
}

/// The data of a tag in L2.
struct Reading {
    /// 0 if there is no marker.
    marker: MarkerTimes,
    /// `None` if the bucket does not exist and cannot be stored.
    bucket: Option<Bucket>,
    /// Whether a working bus would have reported an invalidation since the previous lookup.
    was_reported: bool,
}

/// A bucket, its stored document, and the indices of its tags.
pub(super) struct Group {
    pub(super) key: Key,
    pub(super) stored: ReadResult,
    pub(super) tags: Vec<usize>,
}

/// Whether a bucket is in L2.
enum BucketState {
    Present(Bucket),
    /// There is none, and it cannot be stored now.
    Absent,
    /// Another bucket has just been stored in its place.
    Replaced,
}

impl Tags {
    /// Looks up the unknown tags among these, with one read of L2 for all. A tag that cannot be
    /// read stays unknown.
    pub(crate) async fn resolve<'a>(
        &self,
        call: TagCall<'_>,
        tags: impl Iterator<Item = &'a Arc<Tag>>,
    ) {
        let mut tags = tags.peekable();
        if tags.peek().is_none() {
            return;
        }
        let now = self.site.clock.now();
        self.look_up(call, tags.filter(|tag| !tag.is_believed(now)).collect()).await;
    }

    /// Looks tags up, including those whose state is known.
    pub(super) async fn look_up(&self, call: TagCall<'_>, mut tags: Vec<&Arc<Tag>>) {
        if tags.is_empty() {
            return;
        }
        tags.sort_unstable_by_key(|tag| Arc::as_ptr(tag));
        tags.dedup_by_key(|tag| Arc::as_ptr(tag));
        let Some(l2) = call.l2 else {
            for tag in tags {
                tag.learn(tag.marker(), None, NEVER);
            }
            return;
        };
        for _ in 0..MOST_LOOKS {
            // Boxed, because otherwise the future of every call would contain this one.
            tags = Box::pin(self.look_up_once(call, l2, tags)).await;
            if tags.is_empty() {
                return;
            }
        }
    }

    /// Reads the markers and buckets of these tags. Returns the tags that must be looked up again,
    /// because they were invalidated meanwhile.
    async fn look_up_once<'a>(
        &self,
        call: TagCall<'_>,
        l2: &L2,
        tags: Vec<&'a Arc<Tag>>,
    ) -> Vec<&'a Arc<Tag>> {
        let (now, at) = (self.site.clock.now(), self.site.clock.epoch());
        let fences: Vec<_> = tags.iter().map(|tag| call.l1.watch(&self.marker_key(tag))).collect();
        let reports = self.bus_reports.load(SeqCst);
        let ask = |(tag, fence): (&&'a Arc<Tag>, Fence)| {
            let was_reported = reports && tag.is_believed(now);
            Asked { tag, fence, was_reported, marker: Ok(None) }
        };
        let mut asked: Vec<_> = tags.iter().zip(fences).map(ask).collect();
        for Asked { tag, fence, .. } in &asked {
            // While this call tests whether L2 works again, other calls need not wait for it.
            if self.failed_lately(l2, tag, now) {
                self.extend(tag, fence, now, at);
            }
        }
        let mut groups = Vec::new();
        // With an open breaker no call can be made.
        if !tags.iter().all(|tag| l2.is_skipped(tag.key())) {
            let may_serve = self.serve && tags.iter().all(|tag| tag.is_known());
            let limit = call.policy.l2_limit(may_serve);
            let markers;
            (groups, markers) = self.read(l2, &tags, limit).await;
            asked.iter_mut().zip(markers).for_each(|(asked, marker)| asked.marker = marker);
        }
        self.note_answers(l2, &asked, &groups, at);
        let (mut again, mut broken) = (Vec::new(), KeyVec::new());
        for group in &groups {
            let changed = self.learn_group(call, l2, group, &asked, now, &mut broken).await;
            again.extend(changed);
        }
        again
    }

    /// Records which tags could be read, and extends the known states of the others.
    fn note_answers(&self, l2: &L2, asked: &[Asked<'_>], groups: &[Group], since: u64) {
        // A tag is known if both its marker and its bucket could be read: a marker alone may be
        // older than one that the bucket lists.
        let mut was_read = vec![false; asked.len()];
        for group in groups.iter().filter(|group| group.stored.is_ok()) {
            group.tags.iter().for_each(|i| was_read[*i] = asked[*i].marker.is_ok());
        }
        let now = self.site.clock.now();
        for (Asked { tag, fence, .. }, was_read) in asked.iter().zip(was_read) {
            self.looked_up(l2, tag, was_read, now);
            if !was_read {
                self.extend(tag, fence, now, since);
            }
        }
    }

    /// Learns the states of the tags of one bucket. Returns those that must be looked up again.
    async fn learn_group<'a>(
        &self,
        call: TagCall<'_>,
        l2: &L2,
        group: &Group,
        asked: &[Asked<'a>],
        began: u64,
        broken: &mut KeyVec<Option<u32>>,
    ) -> Vec<&'a Arc<Tag>> {
        let Ok(stored) = &group.stored else { return Vec::new() };
        let kept = self.kept_bucket(l2, &group.key, stored.as_ref(), broken, call.policy).await;
        let read = group.tags.iter().map(|i| &asked[*i]).filter(|asked| asked.marker.is_ok());
        let bucket = match kept {
            BucketState::Present(bucket) => Some(bucket),
            BucketState::Absent => None,
            BucketState::Replaced => return read.map(|asked| asked.tag).collect(),
        };
        let mut again = Vec::new();
        for &Asked { tag, ref fence, was_reported, ref marker } in read {
            let Ok(Ok(marker)) = marker.as_ref().map(|bytes| marker_of(bytes.as_ref())) else {
                continue;
            };
            let reading = Reading { marker, bucket: bucket.clone(), was_reported };
            let learn = || self.learn(tag, &reading, began, self.site.clock.now());
            match fence.fill(learn) {
                // An entry that was invalidated after the older marker would become valid again.
                Some(true) => call.l1.begin_epoch(Reason::Change),
                Some(false) => {}
                None => again.push(tag),
            }
        }
        again
    }

    /// Reads buckets and markers in one round trip. Buckets first, because a marker must not be
    /// older than the bucket's content.
    pub(super) async fn read<T: AsRef<Tag>>(
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
        let now = self.site.clock.epoch();
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
    pub(super) async fn replace_bucket(
        &self,
        l2: &L2,
        key: &Key,
        found: Option<&Bytes>,
        bucket: &Bucket,
        policy: &Policy,
    ) -> Result<bool, Arc<DriverError>> {
        let (bytes, life) = bucket.encode(self.site.clock.epoch());
        l2.swap(key, found, bytes, life, policy.l2_limit(false)).await
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
    pub(super) fn failed_lately(&self, l2: &L2, tag: &Tag, now: u64) -> bool {
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

    /// Applies a lookup of a tag that started at `began`. The state must still be reliable at
    /// `now`. Returns whether an older marker has replaced a known one.
    fn learn(&self, tag: &Tag, reading: &Reading, began: u64, now: u64) -> bool {
        let BucketPlace { hash, .. } = BucketPlace::of(tag.key());
        let (old, old_position) = tag.state();
        let listed = reading.bucket.as_ref().map(|bucket| bucket.marker(hash));
        let times = reading.marker.merged(listed.unwrap_or_default());
        let marker = times.at;
        self.deleted(tag, times);
        if marker == 0 {
            // The marker that a message told of is lost, or could not be stored.
            self.deleted(tag, MarkerTimes { at: 0, hard_at: tag.suspected_at() });
        }
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
}

/// The parts of L2 that have the marker and the bucket of a tag.
fn parts_of(l2: &L2, tag: &Tag) -> [Option<u32>; 2] {
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
