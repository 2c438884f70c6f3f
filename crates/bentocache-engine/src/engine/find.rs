//! Lookups in the tiers: L1, then L2, and the state of each entry found.

use std::error::Error as StdError;
use std::sync::Arc;

use bentocache_driver::{Entry, Life, NEVER, Tag, TagSeen};
use bytes::Bytes;

use super::flight::Located;
use super::set::check_name;
use super::{CacheValue, Engine, Key, KeyVec, Lifetime, chain, convert, until, value_of};
use crate::clock::is_plausible;
use crate::error::Result;
use crate::event::{EventKind, Tier};
use crate::l1::fence::Fence;
use crate::l1::{Use, Verdict, is_gone};
use crate::options::Policy;
use crate::stats::Counter;
use crate::tags::LoadedEntry;
use crate::value::{Held, Unread};
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

/// The result of a lookup in the tiers.
#[derive(Debug)]
pub(super) enum Found {
    Fresh(Located),
    /// The newest stale entry. It may be served to callers that allow stale values.
    Stale(Located),
    Nothing,
}

impl Found {
    fn stale(entry: Option<Arc<Entry>>, tier: Tier) -> Self {
        let entry = entry.filter(|entry| !is_gone(entry));
        entry.map_or(Self::Nothing, |entry| Self::Stale(Located { entry, tier }))
    }
}

/// Whether a stored document is fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Fresh,
    NotFresh,
    /// It depends on a tag that cannot be read.
    Unknown,
}

/// A document of L2, read but not yet judged.
enum ReadDocument {
    /// The document is the entry that L1 holds, so its decoded value can stay. If its tags are no
    /// longer valid, the document is decoded again, because it may remember more about its tags.
    Same(Arc<Entry>, Box<Meta>, Option<LoadedEntry>),
    Other(LoadedEntry),
    Nothing,
}

impl ReadDocument {
    fn loaded(&self) -> Option<&LoadedEntry> {
        match self {
            Self::Same(.., loaded) => loaded.as_ref(),
            Self::Other(loaded) => Some(loaded),
            Self::Nothing => None,
        }
    }

    fn same(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Same(entry, ..) => Some(entry),
            Self::Other(_) | Self::Nothing => None,
        }
    }
}

pub(super) fn tags_of<'a>(
    entries: impl IntoIterator<Item = &'a Arc<Entry>>,
) -> impl Iterator<Item = &'a Arc<Tag>> {
    entries.into_iter().flat_map(|entry| entry.tags()).map(TagSeen::tag)
}

impl Engine {
    /// The entry of L1, if it has this verdict. A fresh entry and a stale entry can be served
    /// without a lookup in L2.
    pub(super) fn entry_in_l1(&self, key: &Key, wanted: Verdict) -> Option<Located> {
        let entry = self.l1.get(key)?;
        let verdict = self.l1.judge(&entry, self.clock.now());
        (verdict == wanted).then_some(Located { entry, tier: Tier::L1 })
    }

    /// Looks the key up in both tiers. An entry that is returned is readable as a `T`. The caller
    /// has taken the fence before.
    pub(super) async fn find<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
        fence: &Fence,
    ) -> Result<Found> {
        let policy = &policy.begun();
        // 1. L1. An unverified entry is kept, to be compared with the document of L2.
        let epoch = self.l1.epoch();
        let local = self.local::<T>(key, policy);
        self.tags.resolve(self.tag_call(policy), tags_of(local.as_ref())).await;
        let l2 = self.l2.as_ref().filter(|_| !policy.skip_l2_read);
        let found = self.judge_local(local.as_ref(), l2.is_some(), policy);
        let Some(l2) = l2.filter(|_| !matches!(found, Found::Fresh(_))) else { return Ok(found) };

        // 2. L2.
        let bytes = match l2.read_one(key, policy.l2_limit(local.is_some())).await {
            Ok(bytes) => bytes,
            Err(_) if policy.suppress_l2_errors => return Ok(self.found_unchecked(local)),
            Err(error) => return Err(self.l2_error("get", error)),
        };
        Ok(self.judge_stored::<T>(key, local, bytes, epoch, fence, policy).await)
    }

    /// The result when L2 is unavailable.
    fn found_unchecked(&self, entry: Option<Arc<Entry>>) -> Found {
        match entry {
            Some(entry) if self.l1.serves_unchecked(&entry, self.clock.now()) => {
                Found::Fresh(Located { entry, tier: Tier::L1 })
            }
            entry => Found::stale(entry, Tier::L1),
        }
    }

    /// The result when L2 has these bytes.
    async fn judge_stored<T: CacheValue>(
        &self,
        key: &Key,
        local: Option<Arc<Entry>>,
        bytes: Option<Bytes>,
        epoch: u32,
        fence: &Fence,
        policy: &Policy,
    ) -> Found {
        let read = self.read::<T>(key, local.as_ref(), bytes, epoch, fence, policy);
        self.tags.resolve(self.tag_call(policy), tags_of(read.same())).await;
        self.resolve_loaded(read.loaded().as_slice(), policy).await;
        self.settle(key, local, read, epoch, fence, policy)
    }

    /// The value of a `get` in a store without L1, where no L1 entry must be updated. A fresh value
    /// without tags, the common case, needs no entry and no fence.
    pub(super) async fn get_stored<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
    ) -> Result<Option<T>> {
        let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_read) else {
            return Ok(self.got(key, Found::Nothing, policy));
        };
        let policy = &policy.begun();
        let bytes = match l2.read_one(key, policy.l2_limit(false)).await {
            Ok(bytes) => bytes,
            Err(_) if policy.suppress_l2_errors => None,
            Err(error) => return Err(self.l2_error("get", error)),
        };
        if !self.tags.has_levels()
            && let Some((meta, value)) = bytes.as_ref().and_then(|bytes| Document::quick(bytes))
            && remaining(&meta, self.clock.epoch(), policy).0 > 0
        {
            self.record_hit(&key.full, Tier::L2, false);
            if let Some(idle) = meta.idle
                && let Some(name) = key.local()
            {
                let created_at = meta.created_at;
                self.l1.uses.note_stored(Use { key: name.into(), created_at, idle });
            }
            return Ok(Some(value));
        }
        let fence = self.l1.watch(key);
        let found = self.judge_stored::<T>(key, None, bytes, 1, &fence, policy).await;
        Ok(self.got(key, found, policy))
    }

    /// As [`find`](Self::find) for many keys, in one pass over L1 and one round trip to L2.
    pub(super) async fn find_many<T: CacheValue>(
        &self,
        keys: &[&Key],
        policy: &Policy,
        fences: &[&Fence],
    ) -> Result<KeyVec<Found>> {
        let policy = &policy.begun();
        // 1. L1. Unverified entries are kept, to be compared with the documents of L2.
        let epoch = self.l1.epoch();
        let local: KeyVec<_> = keys.iter().map(|key| self.local::<T>(key, policy)).collect();
        let call = self.tag_call(policy);
        self.tags.resolve(call, tags_of(local.iter().flatten())).await;
        let l2 = self.l2.as_ref().filter(|_| !policy.skip_l2_read);
        let mut found: KeyVec<_> = local
            .iter()
            .map(|entry| self.judge_local(entry.as_ref(), l2.is_some(), policy))
            .collect();

        // 2. L2, for the keys without a fresh entry.
        let open: KeyVec<usize> =
            (0..keys.len()).filter(|i| !matches!(found[*i], Found::Fresh(_))).collect();
        let Some(l2) = l2.filter(|_| !open.is_empty()) else { return Ok(found) };
        let has_stale = open.iter().all(|i| local[*i].is_some());
        let wanted: KeyVec<_> = open.iter().map(|i| keys[*i]).collect();
        let documents = l2.read_each(&wanted, policy.l2_limit(has_stale)).await;
        let mut reads = KeyVec::new();
        let mut answered: KeyVec<usize> = KeyVec::new();
        for (i, document) in open.into_iter().zip(documents) {
            let local = local[i].as_ref();
            match document {
                Ok(bytes) => {
                    answered.push(i);
                    reads.push(self.read::<T>(keys[i], local, bytes, epoch, fences[i], policy));
                }
                // A failing part of the store does not affect keys in other parts.
                Err(_) if policy.suppress_l2_errors => {
                    found[i] = self.found_unchecked(local.cloned());
                }
                Err(error) => return Err(self.l2_error("get", error)),
            }
        }
        self.tags.resolve(call, tags_of(reads.iter().filter_map(ReadDocument::same))).await;
        let loaded: KeyVec<_> = reads.iter().filter_map(ReadDocument::loaded).collect();
        self.resolve_loaded(&loaded, policy).await;
        drop(loaded);
        for (i, read) in answered.into_iter().zip(reads) {
            found[i] = self.settle(keys[i], local[i].clone(), read, epoch, fences[i], policy);
        }
        Ok(found)
    }

    /// The entry of L1, if it is alive and readable as a `T`.
    fn local<T: CacheValue>(&self, key: &Key, policy: &Policy) -> Option<Arc<Entry>> {
        let entry = self.l1.get(key).filter(|_| !policy.skip_l1_read)?;
        if self.clock.now() >= entry.dead_at() {
            return None;
        }
        if value_of::<T>(&entry).is_some() {
            return Some(entry);
        }
        match convert::<T>(&entry, self.codec) {
            Ok(value) if Unread::of(&entry).is_some() => Some(self.now_read(key, &entry, value)),
            Ok(_) => Some(entry),
            Err(error) => {
                self.unreadable::<T>(key, &*error);
                None
            }
        }
    }

    /// Puts the decoded value in the place of one that a snapshot has brought back. Returns its
    /// entry.
    #[cold]
    pub(super) fn now_read<T: CacheValue>(
        &self,
        key: &Key,
        unread: &Arc<Entry>,
        value: T,
    ) -> Arc<Entry> {
        let weight = self.weight(unread, Unread::of(unread).map(|value| value.payload().len()));
        let mut value = Some(value);
        let mut read = |now| {
            let value = value.take()?;
            Some(Arc::new(with_value(unread, value, now)) as Arc<Entry>)
        };
        let fence = self.l1.watch(key);
        let stored = self.l1.fill(key, &fence, |slot| {
            // It may have been invalidated, or read by another caller.
            slot.entry().filter(|entry| Arc::ptr_eq(entry, unread))?;
            let read = read(self.clock.now())?;
            slot.insert(read.clone(), weight);
            Some(read)
        });
        stored.flatten().or_else(|| read(self.clock.now())).unwrap_or_else(|| unread.clone())
    }

    fn judge_local(
        &self,
        entry: Option<&Arc<Entry>>,
        look_further: bool,
        policy: &Policy,
    ) -> Found {
        let Some(entry) = entry else { return Found::Nothing };
        let hit = Located { entry: entry.clone(), tier: Tier::L1 };
        match self.l1.judge(entry, self.clock.now()) {
            Verdict::Fresh | Verdict::Unverified if look_further && policy.l1_ttl == 0 => {
                Found::Nothing
            }
            Verdict::Fresh => Found::Fresh(hit),
            Verdict::Unverified if look_further => Found::Nothing,
            // If a tag cannot be looked up, its entries count as stale.
            Verdict::Stale | Verdict::UnknownTag | Verdict::Unverified => {
                Found::stale(Some(hit.entry), hit.tier)
            }
            Verdict::Dead => Found::Nothing,
        }
    }

    /// Decodes the document of L2.
    fn read<T: CacheValue>(
        &self,
        key: &Key,
        local: Option<&Arc<Entry>>,
        bytes: Option<Bytes>,
        epoch: u32,
        fence: &Fence,
        policy: &Policy,
    ) -> ReadDocument {
        let Some(bytes) = bytes else { return ReadDocument::Nothing };
        // Fingerprints are only compared for entries of L1.
        let fingerprint = if self.l1.is_there() { self.fingerprint(&bytes) } else { 0 };
        if local.is_none()
            && let Some((meta, value)) = Document::quick(&bytes)
        {
            return ReadDocument::Other(self.entry_of::<T>(
                key,
                value,
                &meta,
                fingerprint,
                epoch,
                policy,
            ));
        }
        let Some(document) = self.document(key, &bytes) else { return ReadDocument::Nothing };
        if let Some(local) = local {
            // Two values created in the same millisecond have equal ages but different
            // fingerprints.
            if local.is_of(document.meta.created_at, fingerprint) {
                let anew = !self.tags_hold(local);
                let loaded = anew
                    .then(|| self.decode::<T>(key, &document, fingerprint, epoch, policy))
                    .flatten();
                return ReadDocument::Same(local.clone(), Box::new(document.meta), loaded);
            }
        }
        match self.decode::<T>(key, &document, fingerprint, epoch, policy) {
            Some(loaded) => ReadDocument::Other(loaded),
            None => {
                if remaining(&document.meta, self.clock.epoch(), policy).0 > 0 {
                    fence.found_fresh_for_others();
                }
                ReadDocument::Nothing
            }
        }
    }

    /// The entry in these bytes, if it is one and holds a `T`.
    pub(super) fn entry_in<T: CacheValue>(
        &self,
        key: &Key,
        bytes: &Bytes,
        epoch: u32,
        policy: &Policy,
    ) -> Option<LoadedEntry> {
        let document = self.document(key, bytes)?;
        self.decode::<T>(key, &document, self.fingerprint(bytes), epoch, policy)
    }

    fn document(&self, key: &Key, bytes: &Bytes) -> Option<Document> {
        Document::parse(bytes).map_err(|error| self.decode_failed(key, error.reason())).ok()
    }

    fn decode<T: CacheValue>(
        &self,
        key: &Key,
        document: &Document,
        fingerprint: u32,
        epoch: u32,
        policy: &Policy,
    ) -> Option<LoadedEntry> {
        let value =
            document.value::<T>().map_err(|error| self.unreadable::<T>(key, &*error)).ok()?;
        Some(self.entry_of(key, value, &document.meta, fingerprint, epoch, policy))
    }

    pub(super) fn entry_of<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        meta: &Meta,
        fingerprint: u32,
        epoch: u32,
        policy: &Policy,
    ) -> LoadedEntry {
        let now = self.clock.epoch();
        let life = match meta.expiration {
            Expiration::Never => NEVER,
            Expiration::At(end) => end.saturating_sub(meta.life_begins_at()),
        };
        let (fresh_for, end) = remaining(meta, now, policy);
        let tags = self.tags.unjudged(key, meta, now);
        let graced = match (meta.expiration, meta.stale_until) {
            (Expiration::At(fresh), Some(end)) => end > fresh,
            (_, end) => end.is_some() || policy.grace > 0,
        };
        let created_at = meta.created_at;
        // If messages were missed since the read began, the entry must be checked again.
        let l1_ttl = policy.l1_ttl;
        let (idle, is_told) = (meta.idle, false);
        let span = Lifetime {
            created_at,
            fingerprint,
            life,
            fresh_for,
            l1_ttl,
            end,
            graced,
            idle,
            is_told,
            epoch,
        };
        LoadedEntry::new(self.entry(key, value, &span, tags, meta.validators.as_deref()), meta)
    }

    /// Judges whether these entries are valid under their tags.
    pub(super) async fn resolve_loaded(&self, loaded: &[&LoadedEntry], policy: &Policy) {
        let lost = self.tags.resolve_loaded(self.tag_call(policy), loaded).await;
        self.announce_all(Kind::Set, lost.iter(), &self.policy);
    }

    /// Decides between the entries of both tiers, and updates L1.
    fn settle(
        &self,
        key: &Key,
        local: Option<Arc<Entry>>,
        read: ReadDocument,
        epoch: u32,
        fence: &Fence,
        policy: &Policy,
    ) -> Found {
        let now = self.clock.now();
        match read {
            ReadDocument::Nothing => {
                // L2 has no document: the local entry may be served as stale at most.
                if let Some(entry) = &local {
                    entry.expire();
                }
                Found::stale(local, Tier::L1)
            }
            ReadDocument::Same(_, _, Some(LoadedEntry { entry, .. }))
                if entry.ends_at() > now && self.tags_hold(&entry) =>
            {
                self.promote(key, entry, fence, policy)
            }
            ReadDocument::Same(entry, meta, _) => {
                self.settle_same(key, entry, &meta, epoch, fence, policy)
            }
            ReadDocument::Other(LoadedEntry { entry, .. }) if entry.dead_at() <= now => {
                Found::stale(local, Tier::L1)
            }
            ReadDocument::Other(LoadedEntry { entry, .. })
                if entry.ends_at() > now && self.tags_hold(&entry) =>
            {
                self.promote(key, entry, fence, policy)
            }
            ReadDocument::Other(LoadedEntry { entry, .. }) => {
                if entry.ends_at() > now && is_valid_by_age(&entry) {
                    fence.found_fresh_for_others();
                }
                match local {
                    // A creation time in the future comes from a wrong clock and proves nothing.
                    Some(local)
                        if local.created_at() > entry.created_at()
                            && is_plausible(local.created_at(), self.clock.epoch()) =>
                    {
                        Found::stale(Some(local), Tier::L1)
                    }
                    _ => Found::stale(Some(entry), Tier::L2),
                }
            }
        }
    }

    /// Brings the entry of L1 up to date: L2 has the same one.
    fn settle_same(
        &self,
        key: &Key,
        entry: Arc<Entry>,
        meta: &Meta,
        epoch: u32,
        fence: &Fence,
        policy: &Policy,
    ) -> Found {
        let (now, epoch_now) = (self.clock.now(), self.clock.epoch());
        let (mut fresh_for, _) = remaining(meta, epoch_now, policy);
        if !is_plausible(meta.created_at, epoch_now) {
            // The age is unknown: it counts from the first read.
            fresh_for = fresh_for.min(until(entry.ends_at(), now));
        }
        self.l1.fill(key, fence, |_| {
            entry.verify(now, epoch);
            entry.freshen(now.saturating_add(fresh_for.min(policy.l1_ttl)));
        });
        if fresh_for > 0 && self.tags_hold(&entry) {
            Found::Fresh(Located { entry, tier: Tier::L2 })
        } else {
            Found::stale(Some(entry), Tier::L1)
        }
    }

    /// Copies a fresh entry of L2 into L1.
    fn promote(&self, key: &Key, entry: Arc<Entry>, fence: &Fence, policy: &Policy) -> Found {
        if self.l1.is_there() && !policy.skip_l1_write {
            let weight = self.weight(&entry, None);
            self.l1.fill(key, fence, |slot| slot.insert(entry.clone(), weight));
        }
        Found::Fresh(Located { entry, tier: Tier::L2 })
    }

    /// Whether every tag of the entry is known and the entry is valid under it.
    pub(super) fn tags_hold(&self, entry: &Entry) -> bool {
        if entry.tags().is_empty() {
            return true;
        }
        let now = self.clock.now();
        entry
            .tags()
            .iter()
            .all(|tag| tag.tag().is_believed(now) && tag.is_valid(entry.created_at()))
    }

    /// Whether any tier has a fresh value. Decodes no value and copies nothing to L1.
    pub(crate) async fn exists(&self, key: &Key, policy: &Policy) -> Result<bool> {
        check_name(key)?;
        let fresh = self.exists_in_tiers(key, policy).await?;
        tracing::debug!(store = %self.name, key = self.logged(&key.full), fresh, "looked for");
        Ok(fresh)
    }

    async fn exists_in_tiers(&self, key: &Key, policy: &Policy) -> Result<bool> {
        let policy = &policy.begun();
        let entry = self.l1.get(key).filter(|_| !policy.skip_l1_read);
        if let Some(entry) = entry.as_ref().filter(|_| policy.l1_ttl > 0 || self.l2.is_none())
            && self.is_fresh_in_l1(entry, policy).await
        {
            return Ok(true);
        }
        let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_read) else {
            return Ok(false);
        };
        let bytes = match l2.read_one(key, policy.l2_limit(false)).await {
            Ok(bytes) => bytes,
            Err(_) if policy.suppress_l2_errors => {
                return Ok(matches!(self.found_unchecked(entry), Found::Fresh(_)));
            }
            Err(error) => return Err(self.l2_error("get", error)),
        };
        let Some(bytes) = bytes else { return Ok(false) };
        Ok(self.presence(key, &bytes, entry, policy).await == Presence::Fresh)
    }

    /// Whether an entry of L1 is fresh. Looks its tags up if necessary.
    pub(super) async fn is_fresh_in_l1(&self, entry: &Arc<Entry>, policy: &Policy) -> bool {
        if self.l1.judge(entry, self.clock.now()) == Verdict::UnknownTag {
            self.tags.resolve(self.tag_call(policy), tags_of([entry])).await;
        }
        self.l1.judge(entry, self.clock.now()) == Verdict::Fresh
    }

    /// Whether a document of L2 is fresh. Decodes no value. `local` is the entry of L1.
    pub(super) async fn presence(
        &self,
        key: &Key,
        bytes: &Bytes,
        local: Option<Arc<Entry>>,
        policy: &Policy,
    ) -> Presence {
        let Some(Document { meta, .. }) = self.document(key, bytes) else {
            return Presence::NotFresh;
        };
        let epoch = self.l1.epoch();
        let probe = self.entry_of(key, (), &meta, 0, epoch, policy);
        self.resolve_loaded(&[&probe], policy).await;
        let probe = probe.entry;
        // The age of an entry with a creation time in the future counts from its first read.
        let ends_at = match local {
            Some(entry)
                if !is_plausible(meta.created_at, self.clock.epoch())
                    && entry.is_of(meta.created_at, self.fingerprint(bytes)) =>
            {
                entry.ends_at().min(probe.ends_at())
            }
            _ => probe.ends_at(),
        };
        let now = self.clock.now();
        match ends_at > now {
            false => Presence::NotFresh,
            true if self.tags_hold(&probe) => Presence::Fresh,
            true if probe.tags().iter().all(|seen| seen.tag().is_believed(now)) => {
                Presence::NotFresh
            }
            true => Presence::Unknown,
        }
    }

    /// Reports a value that cannot be read as a `T`. The codec's message quotes no part of the
    /// value.
    #[cold]
    pub(super) fn unreadable<T>(&self, key: &Key, error: &(dyn StdError + 'static)) {
        let type_name = std::any::type_name::<T>();
        self.decode_failed(key, &format!("it is no `{type_name}`: {}", chain(error)));
    }

    pub(super) fn decode_failed(&self, key: &Key, reason: &str) {
        tracing::warn!(store = %self.name, key = self.logged(&key.full), reason,
            "an entry cannot be decoded and counts as a miss");
        self.record(Counter::DecodeFailures, || EventKind::DecodeFailed {
            key: self.shown(&key.full),
            reason: reason.into(),
        });
    }
}

/// The entry with its value decoded, in the state that it has now.
fn with_value<T: CacheValue>(entry: &Entry, value: T, now: u64) -> Entry<Held<T>> {
    let life = Life {
        created_at: entry.created_at(),
        // A snapshot does not have it.
        fingerprint: 0,
        life: entry.life(),
        ends_at: entry.ends_at(),
        fresh_until: entry.fresh_until(),
        dead_at: entry.dead_at(),
        verified_at: now.saturating_sub(entry.unverified_for(now)),
        epoch: entry.epoch(),
        graced: entry.is_graced(),
    };
    let tags = entry.tags().iter().map(|seen| TagSeen::new(seen.tag().clone(), seen.seen()));
    let tags = (!entry.tags().is_empty()).then(|| tags.collect());
    let read = Entry::new(entry.key(), Held(value), life, tags)
        .with_validators(entry.validators().cloned().unwrap_or_default());
    if entry.refresh_after() > 0 {
        read.hold_refresh(entry.refresh_after());
    }
    read
}

/// Whether the Node library considers the entry valid. It compares the entry's age only.
fn is_valid_by_age(entry: &Entry) -> bool {
    entry.tags().iter().all(|seen| entry.created_at() > seen.tag().invalidated_at())
}

/// The remaining fresh time and the remaining time until removal of a stored entry. Neither exceeds
/// the lifetime that its writer chose, even if the clocks differ.
fn remaining(meta: &Meta, now: u64, policy: &Policy) -> (u64, u64) {
    let (fresh_for, end) = remaining_by_time(meta, now, policy);
    let tells_no_time = meta.expiration == Expiration::At(0) && meta.stale_until.is_none();
    let begins_at = meta.life_begins_at();
    if begins_at <= now || tells_no_time {
        return (fresh_for, end);
    }
    let ahead = begins_at - now;
    let less = |left: u64| if left == NEVER { NEVER } else { left.saturating_sub(ahead) };
    (less(fresh_for), less(end))
}

fn remaining_by_time(meta: &Meta, now: u64, policy: &Policy) -> (u64, u64) {
    match (meta.expiration, meta.stale_until) {
        (Expiration::Never, end) => (NEVER, end.map_or(NEVER, |end| until(end, now))),
        // The Node library stores no end, and sometimes no expiry time either.
        (Expiration::At(0), None) => (0, policy.grace),
        (Expiration::At(fresh), end) => {
            let end = end.unwrap_or_else(|| fresh.saturating_add(policy.grace)).max(fresh);
            (until(fresh, now), until(end, now))
        }
    }
}
