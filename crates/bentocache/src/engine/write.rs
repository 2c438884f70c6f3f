//! What stores, and what takes back what was stored too late. What invalidates is in
//! `invalidate.rs`.
//!
//! Every change moves the key's fence and changes the first tier in one step, then changes the
//! second tier, then tells the other processes. A change of the second tier that overlapped with
//! another one of this process leaves the first tier to be checked against the second, so that
//! both agree whichever came last.

use std::sync::Arc;

use bentocache_core::{DriverError, Entry, Inserted, NEVER, Write};
use bytes::Bytes;

use super::fence::Fence;
use super::flight::Hit;
use super::recovery::Pending;
use super::tags::{RESERVED, Seen, is_reserved};
use super::{CacheValue, Engine, Few, Key, LAST, Span, as_ttl, chain, until};
use crate::error::{BoxError, Error, Result};
use crate::event::{EventKind, Tier};
use crate::options::Policy;
use crate::tier::remote::Remote;
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

/// A value on its way into the tiers.
struct Draft {
    entry: Arc<Entry>,
    /// For the second tier: the bytes, how long to keep them, and their end (ms since the epoch).
    stored: Option<(Bytes, u64, u64)>,
    /// Why there are no bytes although there is a second tier.
    unencodable: Option<BoxError>,
    weight: u64,
}

impl Engine {
    /// Stores values that the caller has, all under keys of the same handle.
    pub(crate) async fn set_many<T: CacheValue>(
        &self,
        values: Vec<(Key, T)>,
        tags: &[String],
        policy: &Policy,
    ) -> Result<()> {
        let Some((first, _)) = values.first() else { return Ok(()) };
        for (key, _) in &values {
            self.check_key(key)?;
        }
        if policy.ttl == 0 {
            let keys: Vec<_> = values.into_iter().map(|(key, _)| key).collect();
            return Box::pin(self.delete(&keys, policy)).await.map(drop);
        }
        let tags = tags.iter().map(String::as_str);
        let seen = self.see_tags(first.prefix(), tags, policy).await;
        let created_at = self.clock.epoch();
        let mut drafts = Vec::with_capacity(values.len());
        for (key, value) in values {
            let draft = self.draft(&key, value, created_at, &seen, policy);
            if let Some(source) = draft.unencodable {
                return Err(Error::Encode { key: self.key_in_errors(&key), source: source.into() });
            }
            drafts.push((key, draft));
        }
        let fences: Few<_> = drafts
            .iter()
            .map(|(key, draft)| {
                let (inserted, fence) = self.fences.change(key.hash, || {
                    if policy.skip_l1_write {
                        // What is there is out of date now.
                        Inserted { replaced: self.l1_remove(&key.full), ..Inserted::default() }
                    } else {
                        self.l1_insert(draft.entry.clone(), draft.weight)
                    }
                });
                self.discard(&inserted);
                fence
            })
            .collect();
        let stored = self.store_all(&drafts, &fences, policy).await;
        for ((key, draft), fence) in drafts.iter().zip(&fences) {
            if self.l2.is_none() {
                continue;
            }
            let settled = fence.settle(|| self.distrust_other(key, draft));
            if stored.is_err() || settled.is_none() {
                self.distrust(key);
            }
        }
        stored?;
        for (key, _) in &drafts {
            self.emit(|| EventKind::Written { key: self.shown(&key.full) });
        }
        Ok(())
    }

    /// The second tier's part of `set_many`: one round trip, then the announcement.
    async fn store_all(
        &self,
        drafts: &[(Key, Draft)],
        fences: &[Fence],
        policy: &Policy,
    ) -> Result<()> {
        let keys = || drafts.iter().map(|(key, _)| key);
        let Some(remote) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) else {
            self.announce_all(Kind::Set, keys(), policy);
            return Ok(());
        };
        let writes: Few<_> = drafts
            .iter()
            .filter_map(|(key, draft)| Some((key, draft.stored.as_ref()?)))
            .map(|(key, (bytes, life, _))| Write {
                key: &key.full,
                value: bytes.clone(),
                ttl: as_ttl(*life),
            })
            .collect();
        keys().for_each(|key| self.recovery.supersede(&key.full));
        let before = self.recovery.now();
        let result = if keys().any(|key| self.recovery.must_wait(&key.full)) {
            None
        } else {
            Some(self.l2_write(remote, &writes, policy).await)
        };
        match result {
            Some(Ok(())) => {
                fences.iter().for_each(Fence::has_reached);
                for key in keys() {
                    self.forget_waiting(key, before);
                }
                self.announce_all(Kind::Set, keys(), policy);
                Ok(())
            }
            Some(Err(error)) if !error.is_transient() => {
                // It can never be stored, so it is no use to say that it was; and what was there
                // before must not come back.
                let at = self.clock.epoch();
                for (key, _) in keys().zip(fences).filter(|(_, fence)| fence.is_unchanged()) {
                    self.recover(key, Pending::Delete { at });
                }
                self.recovery.kick();
                Err(self.l2_error("set", error))
            }
            Some(Err(error)) if !policy.suppress_l2_errors => Err(self.l2_error("set", error)),
            failed => {
                let mut kept = true;
                for ((key, draft), fence) in drafts.iter().zip(fences) {
                    let Some((bytes, _, end)) = &draft.stored else { continue };
                    let created_at = draft.entry.created_at();
                    if fence.is_unchanged() {
                        kept &= self.recover_write(key, bytes.clone(), created_at, *end);
                    } else if fence.is_outdone() {
                        // A later change of the key counts. It may or may not have been written.
                        self.recover_take_back(key, self.digest(bytes), created_at);
                    } else {
                        // Until that change is there, what is older must not be found.
                        kept &= self.recover_delete(key, created_at, fence);
                    }
                }
                match failed {
                    // Stored nowhere, so it is no use to say that it was.
                    Some(Err(error)) if !kept && self.l1.is_none() => {
                        Err(self.l2_error("set", error))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Stores what a factory produced, except under keys that were invalidated meanwhile. Every
    /// value comes back as an entry, stored or not.
    pub(crate) async fn store_produced<T: CacheValue>(
        &self,
        values: Vec<(Key, T, &Fence)>,
        created_at: u64,
        seen: &[Seen],
        policy: &Policy,
    ) -> Result<Vec<Arc<Entry>>> {
        let mut entries = Vec::with_capacity(values.len());
        if policy.ttl == 0 {
            // Nothing is stored, and what is there is deleted.
            let held = |(key, _, fence): &(Key, T, &Fence)| fence.holds().then(|| key.clone());
            let keys: Vec<_> = values.iter().filter_map(held).collect();
            for (key, value, _) in values {
                let epoch = self.epoch();
                let span = Span {
                    created_at,
                    life: 0,
                    fresh_for: 0,
                    l1_ttl: 0,
                    end: 0,
                    graced: false,
                    epoch,
                };
                entries.push(self.entry(&key, value, &span, None));
            }
            Box::pin(self.delete(&keys, policy)).await?;
            return Ok(entries);
        }
        let mut fills = Vec::with_capacity(values.len());
        for (key, value, fence) in values {
            let draft = self.draft(&key, value, created_at, seen, policy);
            entries.push(draft.entry.clone());
            if let Some(error) = &draft.unencodable {
                // The caller gets the value all the same.
                tracing::warn!(store = %self.name, key = self.logged(&key.full),
                    error = %chain(&**error),
                    "a value cannot be encoded and is not stored in the second tier");
            }
            if self.check_key(&key).is_err() || !fence.holds() {
                continue;
            }
            if !policy.skip_l1_write {
                match fence.fill(|| self.l1_insert(draft.entry.clone(), draft.weight)) {
                    Some(inserted) => self.discard(&inserted),
                    None => continue,
                }
            }
            fills.push((key, draft, fence));
        }
        Box::pin(self.store_fills(&fills, policy)).await?;
        for (key, ..) in &fills {
            self.emit(|| EventKind::Written { key: self.shown(&key.full) });
        }
        Ok(entries)
    }

    /// The second tier's part of `store_produced`: one round trip.
    async fn store_fills(&self, fills: &[(Key, Draft, &Fence)], policy: &Policy) -> Result<()> {
        let announce = policy.announce_fills || policy.force_fresh;
        let mut writes = Vec::with_capacity(fills.len());
        for (key, draft, fence) in fills {
            let announce = announce || fence.replaces_fresh();
            let stored = draft.stored.as_ref().filter(|_| !policy.skip_l2_write);
            match (&self.l2, stored) {
                (Some(_), Some((bytes, life, _))) => {
                    if let Some(bus) = &self.bus {
                        bus.filled(self, key, bytes, draft.entry.created_at(), false);
                    }
                    self.recovery.supersede(&key.full);
                    writes.push(Write { key: &key.full, value: bytes.clone(), ttl: as_ttl(*life) });
                }
                (Some(_), None) if draft.unencodable.is_some() => {
                    self.remove_older(key, fence).await;
                }
                _ if announce => self.announce(Kind::Set, key, policy),
                _ => {}
            }
        }
        let (Some(remote), false) = (&self.l2, writes.is_empty()) else { return Ok(()) };
        let before = self.recovery.now();
        let result = if fills.iter().any(|(key, ..)| self.recovery.must_wait(&key.full)) {
            None
        } else {
            Some(self.l2_write(remote, &writes, policy).await)
        };
        for (key, draft, fence) in fills {
            let Some((bytes, _, end)) = &draft.stored else { continue };
            fence.fill(|| self.distrust_other(key, draft));
            let created_at = draft.entry.created_at();
            match &result {
                // The key was invalidated while it was written: take back our own value.
                Some(Ok(())) if !fence.holds() => {
                    self.take_back(remote, key, bytes, created_at).await;
                }
                Some(Ok(())) => {
                    // Others may have read what a change that waited was to remove.
                    let waited = self.forget_waiting(key, before);
                    if waited || announce || fence.replaces_fresh() {
                        self.announce(Kind::Set, key, policy);
                    }
                }
                // It may or may not have been written.
                _ if !fence.holds() => self.recover_take_back(key, self.digest(bytes), created_at),
                Some(Err(_)) if !policy.suppress_l2_errors => self.distrust(key),
                Some(Err(error)) if !error.is_transient() => {
                    self.remove_older(key, fence).await;
                }
                _ => {
                    self.recover_write(key, bytes.clone(), created_at, *end);
                }
            }
            if policy.skip_l1_write {
                // What is there is older than what the second tier has now.
                self.distrust(key);
            }
        }
        match result {
            Some(Err(error)) if !policy.suppress_l2_errors => Err(self.l2_error("set", error)),
            _ => Ok(()),
        }
    }

    async fn l2_write(
        &self,
        remote: &Remote,
        writes: &[Write<'_>],
        policy: &Policy,
    ) -> Result<(), Arc<DriverError>> {
        let limit = policy.l2_limit(false);
        match writes {
            [one] => {
                let Write { key, value, ttl } = one.clone();
                self.l2_call(remote, "set", limit, |driver| driver.set(key, value, ttl)).await
            }
            many => self.l2_call(remote, "set", limit, |driver| driver.set_many(many)).await,
        }
    }

    /// Removes a value of our own from both tiers, if exactly that is still in the second. Other
    /// processes may have read it there.
    pub(crate) async fn take_back(
        &self,
        remote: &Remote,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
    ) {
        let limit = self.policy.l2_hard_timeout;
        let done = self
            .l2_call(remote, "delete", limit, |driver| driver.delete_if(&key.full, bytes))
            .await;
        self.distrust(key);
        match done {
            Ok(true) => self.announce(Kind::Delete, key, &self.policy),
            Ok(false) => {}
            Err(_) => self.recover_take_back(key, self.digest(bytes), created_at),
        }
    }

    /// After a failed factory: gives a stale entry another while as a fresh one, wherever it lives, but never past its
    /// end: the source is in trouble and must not be asked all the time.
    /// `markers` are those of its tags when the factory began.
    pub(crate) async fn back_off(
        &self,
        key: &Key,
        stale: &Hit,
        markers: &[Seen],
        policy: &Policy,
        fence: &Fence,
    ) {
        let now = self.clock.now();
        let entry = &stale.entry;
        let until_then = now.saturating_add(policy.grace_backoff);
        if policy.grace == 0 {
            // It may not be served as a stale one, but a refresh ahead of expiry can wait.
            entry.hold_refresh(until_then);
            return;
        }
        let is_stale = entry.fresh_until() <= now || !self.tags_hold(entry);
        let held = fence.fill(|| {
            entry.hold_refresh(until_then);
            if !is_stale {
                return None;
            }
            entry.freshen(until_then);
            for (tag, marker) in entry.tags().iter().zip(markers) {
                // An invalidation since then counts.
                tag.accept(marker.state);
            }
            entry.verify(now, self.epoch());
            (stale.tier == Tier::L2 && !policy.skip_l1_write).then(|| {
                let weight = self.weight(entry, None);
                self.l1_insert(entry.clone(), weight)
            })
        });
        let Some(inserted) = held else { return };
        if let Some(inserted) = inserted {
            self.discard(&inserted);
        }
        let Some(remote) = self.l2.as_ref().filter(|_| is_stale && !policy.skip_l2_write) else {
            return;
        };
        let limit = policy.l2_limit(false);
        let stored = self.l2_call(remote, "get", limit, |driver| driver.get(&key.full)).await;
        let Ok(Some(bytes)) = stored else { return };
        let Ok(document) = Document::parse(&bytes) else { return };
        if document.meta.created_at != entry.created_at() {
            return;
        }
        let epoch = self.clock.epoch();
        let end = document.meta.stale_until.unwrap_or(NEVER);
        let fresh = epoch.saturating_add(policy.grace_backoff).min(end);
        let mut meta = Meta { expiration: Expiration::At(fresh), ..document.meta.clone() };
        Seen::store(markers, &mut meta);
        let left = as_ttl(until(end, epoch));
        let rewritten = document.rewrite(&meta);
        // A failure leaves the entry stale there, which is what it is.
        let _ = self
            .l2_call(remote, "update", limit, |driver| {
                driver.update(&key.full, &bytes, rewritten, left)
            })
            .await;
    }

    /// Makes the value ready for both tiers. Encodes it once, if at all.
    fn draft<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        created_at: u64,
        seen: &[Seen],
        policy: &Policy,
    ) -> Draft {
        let now = self.clock.epoch();
        let jitter = if policy.jitter == 0 { 0 } else { fastrand::u64(..=policy.jitter) };
        let mut life = if policy.ttl == NEVER { NEVER } else { policy.ttl.saturating_add(jitter) };
        let mut grace = policy.grace;
        if !seen.is_empty() {
            life = life.min(policy.tag_ttl);
            grace = grace.min(policy.tag_ttl - life);
        }
        let mut expiration = now.saturating_add(life);
        let mut end = expiration.saturating_add(grace);
        if life == NEVER || expiration > LAST {
            (life, expiration, end) = (NEVER, NEVER, NEVER);
        } else if end > LAST {
            end = LAST;
        }
        let (mut stored, mut unencodable) = (None, None);
        if self.l2.is_some() && !policy.skip_l2_write {
            let scope = &key.prefix()[self.root.len().min(key.prefix().len())..];
            let before_tag = key.prefix().len() + RESERVED.len();
            let mut meta = Meta {
                created_at,
                expiration: if life == NEVER {
                    Expiration::Never
                } else {
                    Expiration::At(expiration)
                },
                tags: seen.iter().map(|seen| seen.tag.key()[before_tag..].into()).collect(),
                tag_scope: (!seen.is_empty()).then(|| scope.into()),
                stale_until: (life != NEVER).then_some(end),
                ..Meta::default()
            };
            Seen::store(seen, &mut meta);
            match Document::encode(self.codec, &meta, &value) {
                Ok(bytes) => stored = Some((bytes, until(end, now), end)),
                Err(error) => unencodable = Some(error),
            }
        }
        let tags = (!seen.is_empty()).then(|| seen.iter().map(Seen::remembered).collect());
        let span = Span {
            created_at,
            life: if life == NEVER { NEVER } else { expiration.saturating_sub(created_at) },
            fresh_for: life,
            l1_ttl: policy.l1_ttl,
            end: until(end, now),
            graced: policy.grace > 0,
            epoch: self.epoch(),
        };
        let entry = self.entry(key, value, &span, tags);
        let weight = self.weight(&entry, stored.as_ref().map(|(bytes, ..)| bytes.len()));
        Draft { entry, stored, unencodable, weight }
    }

    pub(super) fn l1_remove(&self, key: &str) -> Option<Arc<Entry>> {
        self.l1.as_ref().and_then(|local| local.remove(key))
    }

    /// If it is not what was just stored, a reader found it in the second tier before. To be
    /// called under the key's fence.
    fn distrust_other(&self, key: &Key, draft: &Draft) {
        let here = self.l1.as_ref().and_then(|local| local.get(&key.full));
        if let Some(here) = here.filter(|here| !Arc::ptr_eq(here, &draft.entry)) {
            here.distrust();
        }
    }

    /// What the first tier has for the key must be checked before it is used again.
    pub(crate) fn distrust(&self, key: &Key) {
        self.fences.invalidate(key.hash, || {
            if let Some(entry) = self.l1.as_ref().and_then(|local| local.get(&key.full)) {
                entry.distrust();
            }
        });
    }

    /// Refuses keys that would be taken for what is known of a tag.
    pub(super) fn check_key(&self, key: &Key) -> Result<()> {
        if is_reserved(&self.shown(&key.full)) {
            return Err(Error::InvalidKey {
                key: key.name().into(),
                reason: "\"___bc:t:\" and \"___bc:b:\" at the start of a key or after a colon are \
                         reserved for tags",
            });
        }
        Ok(())
    }
}
