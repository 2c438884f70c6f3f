//! Stores values, and takes back values that were stored too late. Invalidations are in
//! `remove.rs`.
//!
//! Every change advances the key's fence and updates L1 in one step, then changes L2, then notifies
//! the other processes. If two changes of this process overlapped in L2, the entry of L1 is marked
//! as unverified, so that both tiers agree whichever change came last.

use std::sync::Arc;

use bentocache_driver::{Entry, NEVER, Validators};
use bytes::Bytes;

use super::flight::{Flight, Located};
use super::{CacheValue, Engine, Key, KeyVec, LAST, Lifetime, chain, until};
use crate::advisor::{Search, setup};
use crate::error::{BoxError, Error, ErrorKey, Result};
use crate::event::{EventKind, Tier};
use crate::l1::fence::Fence;
use crate::l1::{Slot, is_level};
use crate::l2::{Budget, L2, NewDocument, OlderDocument, Outcome};
use crate::options::Policy;
use crate::site::{RESERVED, VERSION, has_part, is_reserved};
use crate::stats::Counter;
use crate::tags::{ObservedTag, TagSnapshot};
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;
use crate::wire::{codec, round_trip};

/// A value prepared for both tiers.
pub(super) struct Draft {
    pub(super) entry: Arc<Entry>,
    /// For L2: the bytes, their ttl in ms, and their end (ms since the epoch).
    stored: Option<(Bytes, u64, u64)>,
    /// The reason why there are no bytes although there is an L2.
    pub(super) unencodable: Option<BoxError>,
    pub(super) weight: u64,
}

impl Draft {
    pub(super) fn put<'a>(
        &'a self,
        key: &'a Key,
        fence: &'a Fence,
        replaces: bool,
    ) -> Option<NewDocument<'a>> {
        let (bytes, life, end) = self.stored.as_ref()?;
        let created_at = self.entry.created_at();
        Some(NewDocument { key, bytes, life: *life, end: *end, created_at, replaces, fence })
    }

    /// If a reader loaded another entry from L2 before this one was stored there, marks that entry
    /// as unverified.
    fn check_other(&self, slot: &Slot<'_>) {
        if let Some(other) = slot.entry().filter(|other| !Arc::ptr_eq(other, &self.entry)) {
            other.mark_unverified();
        }
    }
}

/// A `set` of one key that L1 has.
pub(super) struct BegunSet {
    pub(super) key: Key,
    draft: Draft,
    fence: Fence,
}

impl BegunSet {
    pub(super) fn created_at(&self) -> u64 {
        self.draft.entry.created_at()
    }

    pub(super) fn put(&self) -> Option<NewDocument<'_>> {
        self.draft.put(&self.key, &self.fence, false)
    }
}

/// A value of a factory that L1 has.
pub(super) struct BegunFill {
    pub(super) key: Key,
    draft: Draft,
    flight: Arc<Flight>,
}

impl BegunFill {
    pub(super) fn fence(&self) -> &Fence {
        self.flight.fence()
    }

    pub(super) fn put(&self, replaces: bool) -> Option<NewDocument<'_>> {
        self.draft.put(&self.key, self.fence(), replaces)
    }
}

/// The ends of a new value; [`NEVER`] is no end.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    /// Until when it is fresh, in ms from now.
    pub(super) life: u64,
    /// The same since the epoch.
    pub(super) fresh: u64,
    /// Until when it is stored, in ms since the epoch.
    pub(super) end: u64,
}

impl Ends {
    /// A value with tags must not outlive their markers.
    pub(super) fn new(policy: &Policy, now: u64, has_tags: bool) -> Self {
        let jitter = if policy.jitter == 0 { 0 } else { fastrand::u64(..=policy.jitter) };
        let mut life = if policy.ttl == NEVER { NEVER } else { policy.ttl.saturating_add(jitter) };
        let mut grace = policy.grace;
        if has_tags {
            life = life.min(policy.tag_ttl);
            grace = grace.min(policy.tag_ttl - life);
        }
        let fresh = now.saturating_add(life);
        if life == NEVER || fresh > LAST {
            return Self { life: NEVER, fresh: NEVER, end: NEVER };
        }
        Self { life, fresh, end: fresh.saturating_add(grace).min(LAST) }
    }

    /// The ends in L2, where `l2_ttl` limits the fresh and the stale time together.
    pub(super) fn in_l2(self, l2_ttl: u64, now: u64) -> Self {
        let last = now.saturating_add(l2_ttl);
        if last >= self.end || last > LAST {
            return self;
        }
        Self { life: self.life.min(l2_ttl), fresh: self.fresh.min(last), end: last }
    }
}

/// The keys of a call that failed, while the other keys were stored.
pub(super) struct Failed {
    /// The number of keys in the call.
    most: usize,
    keys: Vec<(ErrorKey, Error)>,
}

impl Failed {
    pub(super) fn new(most: usize) -> Self {
        Self { most, keys: Vec::new() }
    }

    pub(super) fn add(&mut self, key: ErrorKey, error: Error) {
        self.keys.push((key, error));
    }

    /// One error if there is one cause, else an error that names each key.
    pub(super) fn into_result(mut self) -> Result<()> {
        let all_failed = self.keys.len() == self.most;
        let is_same = |error: &Error| match (error, &self.keys.first()) {
            (Error::L2 { source, .. }, Some((_, Error::L2 { source: first, .. }))) => {
                Arc::ptr_eq(source, first)
            }
            _ => false,
        };
        let is_one = self.most == 1 || (all_failed && self.keys.iter().all(|(_, e)| is_same(e)));
        match self.keys.is_empty() {
            true => Ok(()),
            false if is_one => Err(self.keys.swap_remove(0).1),
            false => Err(Error::Keys { failed: self.keys.into(), of: self.most }),
        }
    }
}

impl Engine {
    /// Stores values that the caller provides, all under keys of one handle.
    pub(crate) async fn set_many<T: CacheValue>(
        self: &Arc<Self>,
        values: Vec<(Key, T)>,
        tags: &[String],
        policy: &Policy,
    ) -> Result<()> {
        let Some((first, _)) = values.first() else { return Ok(()) };
        let policy = &policy.begun();
        let most = values.len();
        for (key, _) in &values {
            self.check_key(key)?;
        }
        let prefix = self.tag_prefix(first.prefix()).into_owned();
        self.check_tags(&prefix, tags)?;
        if policy.ttl == 0 {
            let keys: Vec<_> = values.into_iter().map(|(key, _)| key).collect();
            return Box::pin(self.delete(&keys, policy)).await.map(drop);
        }
        let tags = tags.iter().map(String::as_str);
        let keys = values.iter().map(|(key, _)| key);
        let snapshot = self.tags.see(self.tag_call(policy), &prefix, tags, keys).await;
        let others = self.other_versions(values.iter().map(|(key, _)| key));
        let mut failed = Failed::new(most);
        let drafts = self.drafts(values, &snapshot, policy, &mut failed);
        let (sets, kept): (Vec<_>, KeyVec<_>) =
            drafts.into_iter().map(|(key, draft)| self.set_in_l1(key, draft, policy)).unzip();
        if let Some(tickets) = self.tickets(&sets, policy) {
            for BegunSet { key, .. } in &sets {
                self.record(Counter::Writes, || EventKind::Written { key: self.shown(&key.full) });
            }
            self.set_later(sets, tickets, policy);
            let others = self.delete_others(&others, policy).await;
            return failed.into_result().and(others);
        }
        let outcomes = self.set_in_l2(&sets, policy).await;
        let others = self.delete_others(&others, policy).await;
        for ((set, kept), outcome) in sets.iter().zip(kept).zip(outcomes) {
            let key = &set.key;
            match self.end_set(set, outcome, policy).and(kept) {
                Ok(()) => self
                    .record(Counter::Writes, || EventKind::Written { key: self.shown(&key.full) }),
                Err(error) => failed.add(self.key_in_errors(key), error),
            }
        }
        failed.into_result().and(others)
    }

    /// The part of a `set` that concerns L2.
    async fn set_in_l2(&self, sets: &[BegunSet], policy: &Policy) -> Vec<Outcome> {
        let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) else {
            return sets.iter().map(|_| Outcome::Reached { others_waited: false }).collect();
        };
        let budget = Budget::new(policy.l2_limit(false));
        l2.under_way(sets.iter().map(|set| &set.key)).ended().await;
        let puts: KeyVec<_> = sets.iter().filter_map(BegunSet::put).collect();
        l2.set(&puts, &budget, self.rule(policy)).await
    }

    /// Prepares the values that can be encoded.
    fn drafts<T: CacheValue>(
        &self,
        values: Vec<(Key, T)>,
        snapshot: &TagSnapshot,
        policy: &Policy,
        failed: &mut Failed,
    ) -> Vec<(Key, Draft)> {
        let created_at = self.clock.epoch();
        let mut drafts = Vec::with_capacity(values.len());
        for (key, value) in values {
            let draft = self.draft(&key, value, created_at, snapshot, None, policy);
            if let Some(source) = draft.unencodable {
                let key = self.key_in_errors(&key);
                failed.add(key.clone(), Error::Encode { key, source: source.into() });
            } else {
                drafts.push((key, draft));
            }
        }
        drafts
    }

    /// The part of a `set` that concerns L1. An error if the value is stored nowhere: L1 refuses
    /// it, and it is not for an L2.
    fn set_in_l1(&self, key: Key, draft: Draft, policy: &Policy) -> (BegunSet, Result<()>) {
        let (is_kept, fence) = self.l1.change(&key, |slot| {
            if policy.skip_l1_write {
                // The former entry is out of date now.
                slot.remove();
                return true;
            }
            slot.insert(draft.entry.clone(), draft.weight)
        });
        let is_nowhere = !is_kept && (self.l2.is_none() || policy.skip_l2_write);
        let refused = || self.too_large(&key, &draft.entry, draft.weight);
        let result = if is_nowhere { Err(refused()) } else { Ok(()) };
        (BegunSet { key, draft, fence }, result)
    }

    /// The end of a `set` of one key, with this outcome in L2.
    fn end_set(&self, set: &BegunSet, outcome: Outcome, policy: &Policy) -> Result<()> {
        let BegunSet { key, draft, fence } = set;
        // L1 has the value, and the recovery queue has no room for it.
        let only_here = policy.suppress_l2_errors
            && self.l1.is_there()
            && !policy.skip_l1_write
            && matches!(outcome, Outcome::Failed(_));
        if self.l2.is_some() {
            let settled = self.l1.settle(key, fence, |slot| draft.check_other(slot));
            if (outcome.error().is_some() && !only_here) || settled.is_none() {
                self.l1.mark_unverified(key);
            }
        }
        match outcome {
            Outcome::Reached { .. } | Outcome::Removed => {
                self.announce_set(key, draft.entry.created_at(), policy);
            }
            Outcome::Failed(error) | Outcome::Refused(error) if !only_here => {
                return Err(self.l2_error("set", error));
            }
            _ => {}
        }
        Ok(())
    }

    /// Stores the values that a factory produced, except under keys that were invalidated
    /// meanwhile. Returns an entry for every value, whether stored or not.
    pub(super) async fn store_produced<T: CacheValue>(
        self: &Arc<Self>,
        values: Vec<(Key, T, Arc<Flight>)>,
        created_at: u64,
        snapshot: &TagSnapshot,
        validators: Option<&Validators>,
        policy: &Policy,
    ) -> Result<Vec<Arc<Entry>>> {
        let policy = &policy.begun();
        if policy.ttl == 0 {
            return self.store_nothing(values, created_at, policy).await;
        }
        let mut entries = Vec::with_capacity(values.len());
        let mut fills = Vec::with_capacity(values.len());
        for (key, value, flight) in values {
            let fence = flight.fence();
            let draft = self.draft(&key, value, created_at, snapshot, validators, policy);
            entries.push(draft.entry.clone());
            if let Some(error) = &draft.unencodable {
                // The caller gets the value even then.
                tracing::warn!(store = %self.name, key = self.logged(&key.full),
                    error = %chain(&**error),
                    "a value cannot be encoded and is not stored in L2");
            }
            if self.check_key(&key).is_err() || !fence.holds() {
                continue;
            }
            if !policy.skip_l1_write {
                let insert = |slot: &mut Slot| slot.insert(draft.entry.clone(), draft.weight);
                match self.l1.fill(&key, fence, insert) {
                    Some(false) if self.l2.is_none() || policy.skip_l2_write => continue,
                    Some(_) => {}
                    None => continue,
                }
            }
            fills.push(BegunFill { key, draft, flight });
        }
        let keys: KeyVec<_> = fills.iter().map(|fill| fill.key.clone()).collect();
        match self.fill_tickets(&fills, policy) {
            Some(tickets) => self.fill_later(fills, tickets, policy),
            None => {
                if let Some(l2) = &self.l2 {
                    l2.under_way(&keys).ended().await;
                }
                Box::pin(self.store_fills(&fills, policy)).await?;
            }
        }
        if policy.force_fresh {
            self.delete_other_versions(&keys, policy).await?;
        }
        for key in &keys {
            self.record(Counter::Writes, || EventKind::Written { key: self.shown(&key.full) });
        }
        Ok(entries)
    }

    /// For a ttl of 0: existing values are deleted.
    async fn store_nothing<T: CacheValue>(
        &self,
        values: Vec<(Key, T, Arc<Flight>)>,
        created_at: u64,
        policy: &Policy,
    ) -> Result<Vec<Arc<Entry>>> {
        let held =
            |(key, _, flight): &(Key, T, Arc<Flight>)| flight.fence().holds().then(|| key.clone());
        let keys: Vec<_> = values.iter().filter_map(held).collect();
        let span = Lifetime { created_at, epoch: self.l1.epoch(), ..Lifetime::default() };
        let entries =
            values.into_iter().map(|(key, value, _)| self.entry(&key, value, &span, None, None));
        let entries = entries.collect();
        Box::pin(self.delete(&keys, policy)).await?;
        Ok(entries)
    }

    /// The part of `store_produced` that concerns L2: one round trip.
    pub(super) async fn store_fills(&self, fills: &[BegunFill], policy: &Policy) -> Result<()> {
        let announces = policy.announce_fills || policy.force_fresh;
        let rule = self.rule(policy);
        let (mut puts, mut drafts) = (Vec::with_capacity(fills.len()), Vec::new());
        for fill in fills {
            let (key, draft, fence) = (&fill.key, &fill.draft, fill.fence());
            let replaces = announces || fence.replaces_fresh();
            match fill.put(replaces).filter(|_| !policy.skip_l2_write) {
                Some(put) => {
                    let bus = self.bus.as_ref();
                    if bus.is_some_and(|bus| !bus.fills(key, put.bytes, put.created_at)) {
                        // The value could not be taken back later, so it is not stored. The
                        // document that it was to replace is removed even then.
                        self.remove_older(key, fence).await;
                        continue;
                    }
                    puts.push(put);
                    drafts.push(draft);
                }
                None if self.l2.is_some() && draft.unencodable.is_some() => {
                    self.remove_older(key, fence).await;
                }
                None if replaces => self.announce(Kind::Set, key, policy),
                None => {}
            }
        }
        let (Some(l2), false) = (&self.l2, puts.is_empty()) else { return Ok(()) };
        let budget = Budget::new(policy.l2_limit(false));
        let outcomes = l2.fill(&puts, &budget, rule).await;
        let mut result = Ok(());
        for ((draft, put), outcome) in drafts.into_iter().zip(&puts).zip(outcomes) {
            if let Err(error) = self.end_fill(l2, draft, put, outcome, policy).await {
                result = Err(error);
            }
        }
        result
    }

    /// The end of a fill of one key, with this outcome in L2.
    async fn end_fill(
        &self,
        l2: &L2,
        draft: &Draft,
        put: &NewDocument<'_>,
        outcome: Outcome,
        policy: &Policy,
    ) -> Result<()> {
        let NewDocument { key, bytes, created_at, fence, replaces, .. } = *put;
        let mut result = Ok(());
        self.l1.fill(key, fence, |slot| draft.check_other(slot));
        let is_unstored =
            matches!(outcome, Outcome::Lost { was_sent: false } | Outcome::Refused(_));
        if let Some(bus) = self.bus.as_ref().filter(|_| is_unstored) {
            bus.is_unstored(key, self.digest(bytes));
        }
        match outcome {
            // The key was invalidated during the write: take back the value.
            Outcome::Reached { .. } if !fence.holds() => {
                self.take_back(l2, key, bytes, created_at).await;
            }
            // Other nodes may have read a document that a queued change was to remove.
            Outcome::Reached { others_waited } if others_waited || replaces => {
                self.announce_set(key, created_at, policy);
            }
            Outcome::Refused(error) => {
                tracing::warn!(store = %self.name, key = self.logged(&key.full),
                    error = %chain(&*error),
                    "L2 refuses a value that a factory produced; its caller gets it all the same");
                if fence.holds() {
                    self.remove_older(key, fence).await;
                }
            }
            Outcome::Failed(error) => {
                self.l1.mark_unverified(key);
                result = Err(self.l2_error("set", error));
            }
            _ => {}
        }
        if policy.skip_l1_write {
            // The entry in L1 is now older than the document in L2.
            self.l1.mark_unverified(key);
        }
        result
    }

    /// Removes a value of this process from both tiers, if exactly that value is still in L2. Other
    /// processes may have read it there.
    async fn take_back(&self, l2: &L2, key: &Key, bytes: &Bytes, created_at: u64) {
        let budget = Budget::new(self.policy.l2_hard_timeout);
        let taken = l2.take_back(key, bytes, created_at, &budget).await;
        self.l1.mark_unverified(key);
        if taken {
            self.announce(Kind::Delete, key, &self.policy);
        }
    }

    /// Removes a document that is older than a value that can never be stored.
    async fn remove_older(&self, key: &Key, fence: &Fence) {
        let Some(l2) = &self.l2 else { return };
        match l2.remove_older(key, fence, &Budget::new(self.policy.l2_hard_timeout)).await {
            OlderDocument::Nothing => {}
            OlderDocument::Removed => self.announce(Kind::Delete, key, &self.policy),
            OlderDocument::Younger => self.l1.mark_unverified(key),
        }
    }

    /// After a failed factory: makes a stale entry fresh for the backoff time in both tiers, but
    /// never past its end, so that a failing source is not called on every read. `markers` are the
    /// states of its tags when the factory began.
    pub(super) async fn back_off(
        &self,
        key: &Key,
        stale: &Located,
        markers: &[ObservedTag],
        policy: &Policy,
        fence: &Fence,
    ) {
        let now = self.clock.now();
        let entry = &stale.entry;
        let until_then = now.saturating_add(policy.grace_backoff);
        if policy.grace == 0 {
            // The entry may not be served as stale, but an early refresh can wait.
            entry.hold_refresh(until_then);
            return;
        }
        let is_stale = entry.fresh_until() <= now || !self.tags_hold(entry);
        let held = self.l1.fill(key, fence, |slot| {
            entry.hold_refresh(until_then);
            if !is_stale {
                return;
            }
            entry.freshen(until_then);
            for (tag, marker) in entry.tags().iter().zip(markers) {
                // A tag invalidation since then counts, and a clear always counts.
                if !is_level(tag.tag()) {
                    tag.accept(marker.state);
                }
            }
            entry.verify(now, self.l1.epoch());
            if stale.tier == Tier::L2 && !policy.skip_l1_write {
                slot.insert(entry.clone(), self.weight(entry, None));
            }
        });
        if held.is_none() {
            return;
        }
        let Some(l2) = self.l2.as_ref().filter(|_| is_stale && !policy.skip_l2_write) else {
            return;
        };
        let rewrite = |stored: &Bytes| {
            backed_off(stored, entry, markers, self.clock.epoch(), policy.grace_backoff)
        };
        // If this fails, the entry stays stale in L2, which is correct.
        l2.rewrite(key, &Budget::new(policy.l2_limit(false)), rewrite).await;
    }

    /// Prepares the value for both tiers. Encodes it at most once.
    pub(super) fn draft<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        created_at: u64,
        snapshot: &TagSnapshot,
        validators: Option<&Validators>,
        policy: &Policy,
    ) -> Draft {
        let (seen, levels) = (&snapshot.tags, snapshot.levels(key));
        let now = self.clock.epoch();
        if !seen.is_empty() && policy.ttl > policy.tag_ttl {
            self.advisor.report(setup::ttl_above_tag_ttl());
        }
        let ends = Ends::new(policy, now, !seen.is_empty() || !levels.is_empty());
        let (mut stored, mut unencodable) = (None, None);
        let idle = (policy.sliding != NEVER).then_some(policy.sliding);
        if self.l2.is_some() && !policy.skip_l2_write {
            let there = ends.in_l2(policy.l2_ttl, now);
            let validators = validators.cloned().map(Box::new);
            let meta = self.meta(key, created_at, &there, seen, levels);
            let meta = Meta { idle, validators, ..meta };
            match round_trip::encode(self.codec, &meta, &value) {
                Ok(bytes) => stored = Some((bytes, meta.stored_for(there.end, now), there.end)),
                Err(error) => unencodable = Some(error),
            }
        }
        let levels = levels.iter().map(ObservedTag::remembered);
        let mut tags = ObservedTag::all_remembered(seen).chain(levels).peekable();
        let tags = tags.peek().is_some().then(|| tags.collect());
        let span = Lifetime {
            created_at,
            fingerprint: match &stored {
                Some((bytes, ..)) if self.l1.is_there() => self.fingerprint(bytes),
                _ => 0,
            },
            life: until(ends.fresh, created_at),
            fresh_for: ends.life,
            l1_ttl: policy.l1_ttl,
            end: until(ends.end, now),
            graced: policy.grace > 0,
            idle,
            is_told: true,
            epoch: self.l1.epoch(),
        };
        let encoded = stored.as_ref().map(|(bytes, ..)| bytes.len()).or_else(|| {
            // A value without a document for L2 still has a size.
            self.l1.is_weighted().then(|| codec::encoded_len(self.codec.format(), &value).ok())?
        });
        self.advise_on_size(&value, encoded);
        let entry = self.entry(key, value, &span, tags, validators);
        let weight = self.weight(&entry, encoded);
        Draft { entry, stored, unencodable, weight }
    }

    /// Looks for values that are too large for an L1 which only limits their number.
    fn advise_on_size<T: CacheValue>(&self, value: &T, encoded: Option<usize>) {
        const LARGE: usize = 1 << 20;
        /// Of the values that are not encoded anyway, one in so many is measured.
        const SAMPLE: u32 = 64;
        let Some(left) = self.advisor.searches(Search::LargeValues) else { return };
        let size = match encoded {
            Some(size) => size,
            None if left % SAMPLE == 0 => {
                codec::encoded_len(self.codec.format(), value).unwrap_or_default()
            }
            None => return,
        };
        if size > LARGE {
            self.advisor.found(
                Search::LargeValues,
                format!(
                    "a value has {} MB, and L1 is limited only by its default of 100,000 entries, \
                     which may be more than the memory of this machine",
                    size >> 20
                ),
                "set `Memory::new().max_size(…)`, for example to \"512mb\"",
            );
        }
    }

    /// What the document of a value tells about it.
    fn meta(
        &self,
        key: &Key,
        created_at: u64,
        ends: &Ends,
        seen: &[ObservedTag],
        levels: &[ObservedTag],
    ) -> Meta {
        let has_end = ends.life != NEVER;
        let prefix = &*self.tag_prefix(key.prefix());
        let scope = &prefix[self.root.len().min(prefix.len())..];
        let before_tag = prefix.len() + RESERVED.len();
        let mut meta = Meta {
            created_at,
            expiration: if has_end { Expiration::At(ends.fresh) } else { Expiration::Never },
            tags: seen.iter().map(|seen| seen.tag.key()[before_tag..].into()).collect(),
            tag_scope: (!seen.is_empty()).then(|| scope.into()),
            stale_until: has_end.then_some(ends.end),
            ..Meta::default()
        };
        ObservedTag::store(seen, &mut meta);
        ObservedTag::store_levels(levels, &mut meta);
        meta
    }

    /// The policy for a value that got these tags from its factory: stored nowhere if one of the
    /// tags could never be invalidated. The caller gets the value even then.
    pub(super) fn storable(&self, policy: Policy, prefix: &str, tags: &[String]) -> Policy {
        match self.check_tags(prefix, tags) {
            Ok(()) => policy,
            Err(error) => {
                tracing::warn!(store = %self.name,
                    error = self.logged_error(&error),
                    "a factory gave its value a tag that L2 cannot hold; the value \
                     is not stored");
                Policy { skip_l1_write: true, skip_l2_write: true, ..policy }
            }
        }
    }

    /// Rejects tags that could never be invalidated, because their markers cannot be stored.
    pub(super) fn check_tags(&self, prefix: &str, tags: &[String]) -> Result<()> {
        let Some(l2) = self.l2.as_ref().filter(|_| !tags.is_empty()) else { return Ok(()) };
        let Some(most) = l2.max_key() else { return Ok(()) };
        let needs = |tag: &String| prefix.len() + RESERVED.len() + tag.len();
        match tags.iter().find(|tag| needs(tag) > most) {
            Some(tag) => Err(Error::TagTooLong {
                tag: tag.as_str().into(),
                driver: l2.name(),
                most,
                needs: needs(tag),
            }),
            None => Ok(()),
        }
    }

    /// Rejects empty keys, and keys that collide with the keys of markers and buckets.
    pub(super) fn check_key(&self, key: &Key) -> Result<()> {
        check_name(key)?;
        if has_part(key.name(), VERSION) {
            return Err(Error::InvalidKey {
                key: ErrorKey::new(key.name(), true),
                reason: "\"___bc:v:\" at the start of a key or after a colon is reserved for \
                         versions; read other versions through `.version(n)`",
            });
        }
        if is_reserved(&self.shown(&key.full)) {
            return Err(Error::InvalidKey {
                key: ErrorKey::new(key.name(), true),
                reason: "\"___bc:t:\", \"___bc:b:\" and \"___bc:c:\" at the start of a key or after \
                         a colon are reserved for tags and clears",
            });
        }
        Ok(())
    }
}

/// Rejects empty keys.
pub(super) fn check_name(key: &Key) -> Result<()> {
    if key.name().is_empty() {
        let reason = "an empty key is often a missing id; give the value a name of its own";
        return Err(Error::InvalidKey { key: ErrorKey::new("", true), reason });
    }
    Ok(())
}

/// The stored document as fresh for the backoff time, and how long to keep it; `None` if it is not
/// that of the entry. `markers` are the states of its tags.
fn backed_off(
    stored: &Bytes,
    entry: &Entry,
    markers: &[ObservedTag],
    now: u64,
    backoff: u64,
) -> Option<(Bytes, u64)> {
    let document = Document::parse(stored).ok()?;
    if document.meta.created_at != entry.created_at() {
        return None;
    }
    let end = document.meta.stale_until.unwrap_or(NEVER);
    let fresh = now.saturating_add(backoff).min(end);
    let mut meta = Meta { expiration: Expiration::At(fresh), ..document.meta.clone() };
    ObservedTag::store(&markers[..meta.tags.len().min(markers.len())], &mut meta);
    Some((document.rewrite(&meta), meta.stored_for(end, now)))
}
