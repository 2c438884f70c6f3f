//! Invalidation of tags.
//!
//! Each tag gets a new marker. First the tag's bucket counts and lists the invalidation, by
//! compare-and-swap, so that invalidations by several processes have one order. Then the marker
//! itself is stored, and then the other processes are notified. A bucket that cannot be changed is
//! replaced or removed: then the states of its tags are unknown, and entries whose tags have no
//! marker are stale.

use std::sync::Arc;

use bentocache_driver::{DriverError, NEVER, Tag, TagPosition};
use bytes::Bytes;

use super::bucket::{Bucket, BucketPlace};
use super::{Group, RESERVED};
use crate::engine::{Engine, Key, KeyVec, LAST};
use crate::error::Result;
use crate::event::EventKind;
use crate::l2::{L2, Mark, Marker, Outcome};
use crate::options::Policy;
use crate::site::as_ttl;
use crate::stats::Counter;
use crate::wire::codec::{Codec, Format};
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

const DAY: u64 = 24 * 60 * 60 * 1_000;
/// Compare-and-swap attempts before a bucket is replaced.
const MOST_ATTEMPTS: usize = 4;

/// An invalidation of one tag in progress.
struct TagInvalidation {
    marker: u64,
    position: Option<TagPosition>,
}

impl Engine {
    /// Invalidates every entry that has one of these tags.
    pub(crate) async fn delete_by_tag(
        &self,
        prefix: &str,
        names: &[String],
        policy: &Policy,
    ) -> Result<()> {
        let policy = &policy.begun();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(());
        }
        let tags: Vec<_> = self.tags.named(prefix, names.iter().copied()).collect();
        let keys: Vec<Key> =
            names.iter().map(|name| self.key(prefix, &[RESERVED, name].concat())).collect();
        let result = match &self.l2 {
            Some(l2) => self.invalidate_tags(l2, &tags, &keys, policy).await,
            None => {
                for (tag, key) in tags.iter().zip(&keys) {
                    self.l1.invalidate(key, |_| {
                        let marker = self.clock.epoch().max(tag.invalidated_at() + 1);
                        tag.learn(marker, None, NEVER);
                    });
                }
                Ok(())
            }
        };
        self.announce_all(Kind::Set, keys.iter(), policy);
        for name in names {
            self.record(Counter::TagInvalidations, || EventKind::TagInvalidated {
                tag: name.into(),
            });
        }
        result
    }

    /// The part of `delete_by_tag` that concerns L2.
    pub(super) async fn invalidate_tags(
        &self,
        l2: &L2,
        tags: &[Arc<Tag>],
        keys: &[Key],
        policy: &Policy,
    ) -> Result<()> {
        let (groups, stored) = self.read_tags(l2, tags, policy.l2_limit(false)).await;
        // No reader may rely on a marker that is not stored yet, because another call could still
        // store its marker first.
        let fences: Vec<_> = tags
            .iter()
            .zip(keys)
            .map(|(tag, key)| self.l1.change(key, |_| self.tags.mark_contested(tag)).1)
            .collect();
        let mut changes: Vec<TagInvalidation> = tags
            .iter()
            .zip(stored)
            .map(|(tag, stored)| {
                let stored = stored.ok().and_then(|bytes| marker_of(bytes.as_ref()).ok());
                let before = stored.unwrap_or(0).max(tag.invalidated_at());
                TagInvalidation { marker: self.clock.epoch().max(before + 1), position: None }
            })
            .collect();
        let lost = self.list_in_buckets(l2, groups, tags, &mut changes, policy).await;
        let markers: Vec<_> =
            keys.iter().zip(&changes).map(|(key, change)| (key, change.marker)).collect();
        let result = self.write_markers(l2, &markers, &lost, policy).await;

        for (((tag, key), fence), change) in tags.iter().zip(keys).zip(&fences).zip(&changes) {
            let (now, marker) = (self.clock.now(), change.marker);
            self.tags.heard_of(&key.full);
            let settled =
                fence.settle(|| self.tags.believe(tag, marker, change.position, now, now));
            if settled.is_none() {
                if fence.is_unchanged() {
                    l2.heard_of(key, Kind::Set, marker, policy.grace);
                } else {
                    l2.follow(key, marker);
                }
                self.tags.mark_contested(tag);
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
            let now = self.clock.epoch();
            let mut bucket =
                Bucket::parse(stored.as_ref()).unwrap_or_else(|| Bucket::new(now, policy.tag_ttl));
            for i in &group.tags {
                let (hash, marker) =
                    (BucketPlace::of(tags[*i].key()).hash, &mut changes[*i].marker);
                // Greater than the markers of other processes that were first.
                *marker = (*marker).max(bucket.marker(hash) + 1);
                bucket.push(hash, *marker);
            }
            if self.replace_bucket(l2, key, stored.as_ref(), &bucket, policy).await? {
                for i in &group.tags {
                    let now = self.clock.now();
                    let position = self.tags.position(&tags[*i], &bucket, false, now);
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
        markers: &[(&Key, u64)],
        buckets: &[Key],
        policy: &Policy,
    ) -> Result<()> {
        let now = self.clock.epoch();
        let life = as_ttl(policy.tag_ttl.saturating_add(DAY));
        let markers = markers.iter().map(|(key, value)| {
            let (bytes, end) = self.marker_document(*value, policy);
            let bucket = BucketPlace::of(&key.full).key();
            Mark { key, bytes, life, marker: Some(Marker { value: *value, end, bucket }) }
        });
        let buckets = buckets.iter().map(|key| {
            let (bytes, life) = Bucket::new(now, policy.tag_ttl).encode(now);
            Mark { key, bytes, life, marker: None }
        });
        let marks: Vec<_> = markers.chain(buckets).collect();
        let keep = policy.suppress_l2_errors;
        let outcomes = l2.mark(&marks, keep, || policy.l2_limit(false)).await;
        match outcomes.iter().find_map(Outcome::error) {
            Some(error) => Err(self.l2_error("invalidate a tag", error.clone())),
            None => Ok(()),
        }
    }

    /// The document of a marker, and its end (ms since the epoch).
    pub(crate) fn marker_document(&self, marker: u64, policy: &Policy) -> (Bytes, u64) {
        let life = policy.tag_ttl.saturating_add(DAY);
        let end = marker.saturating_add(life);
        let meta = Meta {
            created_at: marker,
            expiration: if life == NEVER { Expiration::Never } else { Expiration::At(end) },
            stale_until: (life != NEVER).then_some(end),
            ..Meta::default()
        };
        // Markers are JSON whatever the codec, so that every reader can read them.
        let bytes = Document::from_payload(
            Codec::json(),
            &meta,
            Format::Json,
            marker.to_string().as_bytes(),
        );
        (bytes, end)
    }
}

/// The marker in a stored document; 0 if there is none. A document that cannot be read, or whose
/// marker leaves no room for a later one, is an error: the tag stays unknown until it is
/// invalidated.
pub(crate) fn marker_of(bytes: Option<&Bytes>) -> Result<u64, ()> {
    let Some(bytes) = bytes else { return Ok(0) };
    let document = Document::parse(bytes).map_err(|_| ())?;
    let marker = document.value::<f64>().map_err(|_| ())? as u64;
    if marker < LAST { Ok(marker) } else { Err(()) }
}
