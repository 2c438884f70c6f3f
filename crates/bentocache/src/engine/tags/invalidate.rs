//! Invalidating tags.
//!
//! Each tag gets a new marker. The tag's bucket counts and lists it first, by compare-and-swap, so
//! that invalidations by several processes are in one order; then the marker itself is stored, and
//! then the other processes are told. A bucket that cannot be changed is replaced or removed: then
//! nobody knows anything about its tags, and what has no marker is stale.

use std::sync::Arc;
use std::time::Duration;

use bentocache_core::{DriverError, NEVER, Tag, TagPosition, Write};
use bytes::Bytes;

use super::bucket::{Bucket, Place};
use super::{Group, RESERVED};
use crate::engine::recovery::Pending;
use crate::engine::{Engine, Few, Key, LAST, as_ttl};
use crate::error::Result;
use crate::event::EventKind;
use crate::options::Policy;
use crate::tier::remote::Remote;
use crate::wire::codec::{Codec, Format};
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

const DAY: u64 = 24 * 60 * 60 * 1_000;
/// Compare-and-swap attempts before a bucket is replaced.
const MOST_ATTEMPTS: usize = 4;

/// An invalidation of a tag on its way.
struct Change {
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
            Some(remote) => self.invalidate_tags(remote, &tags, &keys, policy).await,
            None => {
                for (tag, key) in tags.iter().zip(&keys) {
                    self.fences.invalidate(key.hash, || {
                        let marker = self.clock.epoch().max(tag.invalidated_at() + 1);
                        tag.learn(marker, None, NEVER);
                    });
                }
                Ok(())
            }
        };
        self.announce_all(Kind::Set, keys.iter(), policy);
        for name in names {
            self.emit(|| EventKind::TagInvalidated { tag: name.into() });
        }
        result
    }

    /// The second tier's part of `delete_by_tag`.
    async fn invalidate_tags(
        &self,
        remote: &Remote,
        tags: &[Arc<Tag>],
        keys: &[Key],
        policy: &Policy,
    ) -> Result<()> {
        let read = self.read_tags(tags, policy.l2_limit(false)).await;
        // Nobody may rely on a marker that is not stored yet: one of another call could still be
        // stored before it.
        let fences: Vec<_> = tags
            .iter()
            .zip(keys)
            .map(|(tag, key)| self.fences.change(key.hash, || self.tags.contest(tag)).1)
            .collect();
        let (groups, stored) = match read {
            Ok((groups, stored)) => (Ok(groups), stored),
            Err(_) => (Err(self.groups(tags)), Vec::new()),
        };
        let mut changes: Vec<Change> = tags
            .iter()
            .enumerate()
            .map(|(i, tag)| {
                let stored = stored.get(i).and_then(|bytes| marker_of(bytes.as_ref()).ok());
                let before = stored.unwrap_or(0).max(tag.invalidated_at());
                Change { marker: self.clock.epoch().max(before + 1), position: None }
            })
            .collect();
        let lost = self.list_in_buckets(remote, groups, tags, &mut changes, policy).await;
        let markers: Vec<_> =
            keys.iter().zip(&changes).map(|(key, change)| (key, change.marker)).collect();
        let result = self.write_markers(remote, &markers, &lost, policy).await;

        for (((tag, key), fence), change) in tags.iter().zip(keys).zip(&fences).zip(&changes) {
            let (now, marker) = (self.clock.now(), change.marker);
            self.tags.heard_of(&key.full);
            let settled =
                fence.settle(|| self.tags.believe(tag, marker, change.position, now, now));
            if settled.is_none() {
                if fence.is_unchanged() {
                    self.recovery.doubt(&key.full, Kind::Set, marker, policy.grace);
                } else {
                    self.recovery.follow(&key.full, marker);
                }
                self.tags.contest(tag);
            }
        }
        result
    }

    /// Counts and lists the invalidations in the buckets of the tags, `Ok` as they were read. Returns
    /// the buckets that must be replaced, because they were not or may not have been changed.
    async fn list_in_buckets(
        &self,
        remote: &Remote,
        groups: Result<Vec<Group>, Vec<Group>>,
        tags: &[Arc<Tag>],
        changes: &mut [Change],
        policy: &Policy,
    ) -> Vec<Key> {
        let (groups, mut works) = match groups {
            Ok(groups) => (groups, true),
            Err(groups) => (groups, false),
        };
        let mut lost = Vec::new();
        for group in groups {
            // After a failure the others are not worth waiting for.
            let listed = if works && self.recovery.pending(&group.key.full).is_none() {
                self.list_in_bucket(remote, &group, tags, changes, policy).await
            } else {
                Ok(false)
            };
            works &= listed.is_ok();
            if !listed.unwrap_or(false) {
                lost.push(group.key);
            }
        }
        lost
    }

    /// Counts and lists the invalidations in one bucket; returns whether it did.
    async fn list_in_bucket(
        &self,
        remote: &Remote,
        group: &Group,
        tags: &[Arc<Tag>],
        changes: &mut [Change],
        policy: &Policy,
    ) -> Result<bool, Arc<DriverError>> {
        let key = &*group.key.full;
        let mut stored = group.stored.clone();
        for _ in 0..MOST_ATTEMPTS {
            let now = self.clock.epoch();
            let mut bucket =
                Bucket::parse(stored.as_ref()).unwrap_or_else(|| Bucket::new(now, policy.tag_ttl));
            for i in &group.tags {
                let (hash, marker) = (Place::of(tags[*i].key()).hash, &mut changes[*i].marker);
                // Greater than those of other processes that came first.
                *marker = (*marker).max(bucket.marker(hash) + 1);
                bucket.push(hash, *marker);
            }
            if self.replace_bucket(remote, key, stored.as_ref(), &bucket, policy).await? {
                for i in &group.tags {
                    let now = self.clock.now();
                    let position = self.tags.position(&tags[*i], &bucket, false, now);
                    changes[*i].position = Some(position);
                }
                return Ok(true);
            }
            let limit = policy.l2_limit(false);
            stored = self.l2_call(remote, "get", limit, |driver| driver.get(key)).await?;
        }
        Ok(false)
    }

    /// Writes a marker, now or later.
    pub(crate) async fn write_marker(
        &self,
        remote: &Remote,
        key: &Key,
        marker: u64,
        policy: &Policy,
    ) -> Result<()> {
        self.write_markers(remote, &[(key, marker)], &[], policy).await
    }

    /// Writes markers, and replaces buckets, now or later, with one call if possible.
    async fn write_markers(
        &self,
        remote: &Remote,
        markers: &[(&Key, u64)],
        buckets: &[Key],
        policy: &Policy,
    ) -> Result<()> {
        let now = self.clock.epoch();
        let life = as_ttl(policy.tag_ttl.saturating_add(DAY));
        let markers = markers.iter().map(|(key, marker)| {
            let (bytes, end) = self.marker_document(*marker, policy);
            Outgoing { key, bytes, life, marker: Some((*marker, end)) }
        });
        let buckets = buckets.iter().map(|key| {
            let (bytes, life) = Bucket::new(now, policy.tag_ttl).encode(now);
            Outgoing { key, bytes, life, marker: None }
        });
        let before = self.recovery.now();
        let (waiting, ready): (Vec<_>, Vec<_>) =
            markers.chain(buckets).partition(|outgoing| self.must_queue(outgoing));
        let stored = self.store_outgoing(remote, &ready, policy).await;
        let mut failed = Vec::new();
        for (outgoing, stored) in ready.into_iter().zip(stored) {
            match stored {
                Ok(()) => drop(self.forget_waiting(outgoing.key, before)),
                Err(error) => failed.push((outgoing, error)),
            }
        }
        let removed = self.remove_instead(remote, &failed, policy).await;
        let mut result = Ok(());
        for (outgoing, error) in failed {
            let is_marker = outgoing.marker.is_some();
            let is_final = !policy.suppress_l2_errors || !error.is_transient();
            let is_kept = if is_marker && is_final {
                false
            } else {
                !is_marker && removed || self.queue_outgoing(outgoing)
            };
            if !is_kept {
                result = Err(self.l2_error("invalidate a tag", error));
            }
        }
        for outgoing in waiting {
            self.queue_outgoing(outgoing);
        }
        result
    }

    /// Whether a change that waits would remove it again.
    fn must_queue(&self, outgoing: &Outgoing<'_>) -> bool {
        match outgoing.marker {
            Some(_) => self.recovery.must_wait(&outgoing.key.full),
            None => self.recovery.pending(&outgoing.key.full).is_some(),
        }
    }

    /// Stores all with one call. One that can never be stored does not keep the others.
    async fn store_outgoing(
        &self,
        remote: &Remote,
        all: &[Outgoing<'_>],
        policy: &Policy,
    ) -> Vec<Result<(), Arc<DriverError>>> {
        let limit = policy.l2_limit(false);
        if let [one] = all {
            return vec![self.store_one(remote, one, limit).await];
        }
        let writes: Few<_> = all
            .iter()
            .map(|one| Write { key: &one.key.full, value: one.bytes.clone(), ttl: one.life })
            .collect();
        if writes.is_empty() {
            return Vec::new();
        }
        let set = self.l2_call(remote, "set", limit, |driver| driver.set_many(&writes)).await;
        let mut stored = vec![set.clone(); all.len()];
        if set.is_err_and(|error| !error.is_transient()) {
            for (one, stored) in all.iter().zip(&mut stored) {
                *stored = self.store_one(remote, one, limit).await;
            }
        }
        stored
    }

    async fn store_one(
        &self,
        remote: &Remote,
        one: &Outgoing<'_>,
        limit: u64,
    ) -> Result<(), Arc<DriverError>> {
        let (key, bytes) = (&*one.key.full, one.bytes.clone());
        self.l2_call(remote, "set", limit, |driver| driver.set(key, bytes, one.life)).await
    }

    /// A store that is full takes no marker, but may remove what it has. Without marker and bucket a
    /// tag is unknown, so that its entries are stale. Returns whether that was done.
    async fn remove_instead(
        &self,
        remote: &Remote,
        failed: &[(Outgoing<'_>, Arc<DriverError>)],
        policy: &Policy,
    ) -> bool {
        if !failed.iter().any(|(_, error)| error.is_refusal()) {
            return false;
        }
        let mut keys: Vec<String> = Vec::new();
        for (Outgoing { key, marker, .. }, _) in failed {
            keys.push(key.full.to_string());
            keys.extend(marker.map(|_| Place::of(&key.full).key()));
        }
        keys.sort_unstable();
        keys.dedup();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let limit = policy.l2_limit(false);
        self.l2_call(remote, "delete", limit, |driver| driver.delete(&keys)).await.is_ok()
    }

    /// Keeps a marker to write it later, and the removal of a bucket that could not be changed. Returns
    /// whether it is kept.
    fn queue_outgoing(&self, Outgoing { key, bytes, marker, .. }: Outgoing<'_>) -> bool {
        let Some((marker, end)) = marker else {
            // Whatever is stored there then: nothing is lost but knowledge.
            return self.recover(key, Pending::Delete { at: LAST });
        };
        match self.recovery.pending(&key.full) {
            // The greater one is the one to keep.
            Some(Pending::Write { created_at, .. }) if created_at >= marker => true,
            _ => self.recover_write(key, bytes, marker, end),
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
        // Markers are JSON whatever the codec: every reader can read them.
        let bytes = Document::from_payload(
            Codec::json(),
            &meta,
            Format::Json,
            marker.to_string().as_bytes(),
        );
        (bytes, end)
    }
}

/// A marker, with its end (ms since the epoch), or a bucket on its way to the second tier.
struct Outgoing<'a> {
    key: &'a Key,
    bytes: Bytes,
    life: Option<Duration>,
    marker: Option<(u64, u64)>,
}

/// The marker in a stored document; 0 when there is none. What cannot be read, or leaves no room for
/// a later marker, is an error: the tag stays unknown until it is invalidated.
pub(crate) fn marker_of(bytes: Option<&Bytes>) -> Result<u64, ()> {
    let Some(bytes) = bytes else { return Ok(0) };
    let document = Document::parse(bytes).map_err(|_| ())?;
    let marker = document.value::<f64>().map_err(|_| ())? as u64;
    if marker < LAST { Ok(marker) } else { Err(()) }
}
