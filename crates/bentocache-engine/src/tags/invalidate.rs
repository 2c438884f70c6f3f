//! Invalidation of tags.
//!
//! Each tag gets a new marker. First the tag's bucket counts and lists the invalidation, by
//! compare-and-swap, so that invalidations by several processes have one order. Then the marker
//! itself is stored, and then the other processes are notified. A bucket that cannot be changed is
//! replaced or removed: then the states of its tags are unknown, and entries whose tags have no
//! marker are stale.

use std::sync::Arc;

use bentocache_driver::{DriverError, NEVER, Tag, TagPosition};

use super::bucket::{Bucket, BucketPlace};
use super::look_up::Group;
use super::marker::{marker_document, marker_life, marker_of};
use super::{TagCall, Tags};
use crate::l2::{L2, Mark, Marker, Outcome};
use crate::options::Policy;
use crate::site::{Key, KeyVec, RESERVED, as_ttl};
use crate::wire::marker::MarkerTimes;
use crate::wire::message::Kind;

/// Compare-and-swap attempts before a bucket is replaced.
const MOST_ATTEMPTS: usize = 4;

/// What an invalidation makes of the entries with a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagChange {
    /// They are stale, and may be served under grace.
    Expire,
    /// They are gone.
    Delete,
}

impl TagChange {
    /// The message that announces it. The Node library announces a `set` of the marker, which may
    /// be of either kind.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Expire => Kind::Expire,
            Self::Delete => Kind::Set,
        }
    }

    /// The times of a marker `at` this time, after the `earlier` ones.
    fn times(self, at: u64, earlier: MarkerTimes) -> MarkerTimes {
        let hard_at = if self == Self::Delete { at } else { earlier.hard_at.min(at) };
        MarkerTimes { at, hard_at }
    }
}

/// An invalidation of one tag in progress.
struct TagInvalidation {
    change: TagChange,
    times: MarkerTimes,
    position: Option<TagPosition>,
}

impl Tags {
    /// Invalidates these tags of a namespace. Returns the keys of their markers too, which must be
    /// announced in any case.
    pub(crate) async fn invalidate(
        &self,
        call: TagCall<'_>,
        prefix: &str,
        names: &[&str],
        change: TagChange,
    ) -> (Vec<Key>, Result<(), Arc<DriverError>>) {
        let tags: Vec<_> = self.named(prefix, names.iter().copied()).collect();
        let key = |name: &&str| self.site.key(prefix, &[RESERVED, name].concat());
        let keys: Vec<Key> = names.iter().map(key).collect();
        if let Some(l2) = call.l2 {
            let result = self.invalidate_in_l2(call, l2, &tags, &keys, change).await;
            return (keys, result);
        }
        for (tag, key) in tags.iter().zip(&keys) {
            call.l1.invalidate(key, |_| {
                let marker = self.site.clock.epoch().max(tag.invalidated_at() + 1);
                self.deleted(tag, change.times(marker, MarkerTimes::default()));
                tag.learn(marker, None, NEVER);
            });
        }
        (keys, Ok(()))
    }

    pub(super) async fn invalidate_in_l2(
        &self,
        call: TagCall<'_>,
        l2: &L2,
        tags: &[Arc<Tag>],
        keys: &[Key],
        change: TagChange,
    ) -> Result<(), Arc<DriverError>> {
        let policy = call.policy;
        let (groups, stored) = self.read(l2, tags, policy.l2_limit(false)).await;
        // No reader may rely on a marker that is not stored yet, because another call could still
        // store its marker first.
        let fences: Vec<_> = tags
            .iter()
            .zip(keys)
            .map(|(tag, key)| call.l1.change(key, |_| self.begin_change(tag, change)).1)
            .collect();
        let mut changes: Vec<TagInvalidation> = tags
            .iter()
            .zip(stored)
            .map(|(tag, stored)| {
                // What a message told of and cannot be read may have been a deletion.
                let suspected = if stored.is_err() { tag.suspected_at() } else { 0 };
                let hard_at = tag.deleted_at().max(suspected);
                let known = MarkerTimes { at: tag.invalidated_at(), hard_at };
                let stored = stored.ok().and_then(|bytes| marker_of(bytes.as_ref()).ok());
                let before = stored.unwrap_or_default().merged(known);
                let times = change.times(self.site.clock.epoch().max(before.at + 1), before);
                TagInvalidation { change, times, position: None }
            })
            .collect();
        let lost = self.list_in_buckets(l2, groups, tags, &mut changes, policy).await;
        let markers: Vec<_> =
            keys.iter().zip(&changes).map(|(key, change)| (key, change.times)).collect();
        let result = self.write_markers(l2, &markers, &lost, policy).await;

        for (((tag, key), fence), change) in tags.iter().zip(keys).zip(&fences).zip(&changes) {
            let (now, marker) = (self.site.clock.now(), change.times.at);
            self.heard_of(&key.full);
            self.deleted(tag, change.times);
            let settled = fence.settle(|| self.believe(tag, marker, change.position, now, now));
            if settled.is_none() {
                if fence.is_unchanged() {
                    l2.heard_of(key, Kind::Set, marker, policy.grace);
                } else {
                    l2.follow(key, marker);
                }
                self.mark_contested(tag);
            }
        }
        result
    }

    /// Counts and lists the invalidations in the buckets of the tags. Returns the buckets that must
    /// be replaced, because they were not changed, or may not have been.
    async fn list_in_buckets(
        &self,
        l2: &L2,
        groups: Vec<Group>,
        tags: &[Arc<Tag>],
        changes: &mut [TagInvalidation],
        policy: &Policy,
    ) -> Vec<Key> {
        let (mut lost, mut broken) = (Vec::new(), KeyVec::new());
        for group in groups {
            // After a failure, calls for other buckets of the same part would only wait too.
            let part = l2.part(&group.key.full);
            let listed = if broken.contains(&part) || l2.is_waiting(&group.key) {
                Ok(false)
            } else {
                self.list_in_bucket(l2, &group, tags, changes, policy).await
            };
            if listed.is_err() {
                broken.push(part);
            }
            if !listed.unwrap_or(false) {
                lost.push(group.key);
            }
        }
        lost
    }

    /// Counts and lists the invalidations in one bucket; returns whether it succeeded.
    async fn list_in_bucket(
        &self,
        l2: &L2,
        group: &Group,
        tags: &[Arc<Tag>],
        changes: &mut [TagInvalidation],
        policy: &Policy,
    ) -> Result<bool, Arc<DriverError>> {
        let key = &group.key;
        let mut stored = group.stored.clone()?;
        for _ in 0..MOST_ATTEMPTS {
            let now = self.site.clock.epoch();
            let mut bucket =
                Bucket::parse(stored.as_ref()).unwrap_or_else(|| Bucket::new(now, policy.tag_ttl));
            for i in &group.tags {
                let hash = BucketPlace::of(tags[*i].key()).hash;
                let TagInvalidation { change, times, .. } = &mut changes[*i];
                // Greater than the markers of other processes that were first.
                let listed = bucket.marker(hash);
                *times = change.times(times.at.max(listed.at + 1), times.merged(listed));
                bucket.push(hash, *times);
            }
            if self.replace_bucket(l2, key, stored.as_ref(), &bucket, policy).await? {
                for i in &group.tags {
                    let now = self.site.clock.now();
                    let position = self.position(&tags[*i], &bucket, false, now);
                    changes[*i].position = Some(position);
                }
                return Ok(true);
            }
            stored = l2.read_one(key, policy.l2_limit(false)).await?;
        }
        Ok(false)
    }

    /// Writes markers and replaces buckets, now or from the recovery queue, in one call if
    /// possible.
    async fn write_markers(
        &self,
        l2: &L2,
        markers: &[(&Key, MarkerTimes)],
        buckets: &[Key],
        policy: &Policy,
    ) -> Result<(), Arc<DriverError>> {
        let now = self.site.clock.epoch();
        let life = as_ttl(marker_life(policy.tag_ttl));
        let markers = markers.iter().map(|(key, times)| {
            let (bytes, end) = marker_document(*times, policy.tag_ttl);
            let bucket = BucketPlace::of(&key.full).key();
            Mark { key, bytes, life, marker: Some(Marker { times: *times, end, bucket }) }
        });
        let buckets = buckets.iter().map(|key| {
            let (bytes, life) = Bucket::new(now, policy.tag_ttl).encode(now);
            Mark { key, bytes, life, marker: None }
        });
        let marks: Vec<_> = markers.chain(buckets).collect();
        let keep = policy.suppress_l2_errors;
        let outcomes = l2.mark(&marks, keep, || policy.l2_limit(false)).await;
        match outcomes.iter().find_map(Outcome::error) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}
