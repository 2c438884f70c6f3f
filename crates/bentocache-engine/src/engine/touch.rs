//! `touch`: another life for a value that is there.
//!
//! A touch is no change of the value: it advances the key's fence only where it shortens the life,
//! so that a factory under way may still store its value. Whatever else changes the key wins.

use std::sync::Arc;

use bentocache_driver::{DriverError, Entry, Life, NEVER};
use bytes::Bytes;

use super::find::tags_of;
use super::set::{Ends, Failed};
use super::{Engine, Key, KeyVec, until};
use crate::clock::is_plausible;
use crate::error::Result;
use crate::event::EventKind;
use crate::join::join_all;
use crate::l1::fence::Fence;
use crate::l1::{Slot, Verdict};
use crate::l2::{Budget, L2, NewLife, Span, Touched};
use crate::options::Policy;
use crate::stats::Counter;
use crate::wire::document::{Document, Expiration};
use crate::wire::message::Kind;

/// The number of documents that are changed at the same time.
const WIDTH: usize = 32;

impl Engine {
    /// Gives each key that has a fresh value another life; returns which keys have one.
    pub(crate) async fn touch(&self, keys: &[Key], policy: &Policy) -> Result<Vec<bool>> {
        let policy = &policy.begun();
        keys.iter().try_for_each(|key| self.check_key(key))?;
        let mut touched = Vec::with_capacity(keys.len());
        if policy.ttl == 0 {
            for key in keys {
                touched.push(self.delete(std::slice::from_ref(key), policy).await? > 0);
            }
            return Ok(touched);
        }
        let life = self.new_life(policy);
        let mut failed = Failed::new(keys.len());
        match self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
            Some(l2) => {
                for keys in keys.chunks(WIDTH) {
                    for (key, result) in
                        keys.iter().zip(self.touch_in_l2(l2, keys, &life, policy).await)
                    {
                        touched.push(result.unwrap_or_else(|error| {
                            failed.add(self.key_in_errors(key), error);
                            false
                        }));
                    }
                }
            }
            None => {
                let entries: KeyVec<_> = keys.iter().map(|key| self.l1.get(key)).collect();
                self.resolve_tags(&entries, policy).await;
                for (key, entry) in keys.iter().zip(entries) {
                    touched.push(self.touch_in_l1(key, entry.as_ref(), &life, policy));
                }
            }
        }
        for (key, _) in keys.iter().zip(&touched).filter(|(_, is_touched)| **is_touched) {
            self.record(Counter::Touches, || EventKind::Touched { key: self.shown(&key.full) });
        }
        failed.into_result().map(|()| touched)
    }

    /// The life that the options of a call give, with a jitter.
    fn new_life(&self, policy: &Policy) -> NewLife {
        let at = self.clock.epoch();
        let l2_ttl = match self.l2.is_some() && !policy.skip_l2_write {
            true => policy.l2_ttl,
            false => NEVER,
        };
        let span = |ends: Ends| {
            let Ends { fresh, end, .. } = ends.in_l2(l2_ttl, at);
            Span { fresh, end }
        };
        let plain = Ends::new(policy, at, false);
        let with_jitter = Policy { ttl: plain.life, jitter: 0, ..*policy };
        let tagged = Ends::new(&with_jitter, at, true);
        NewLife { at, plain: span(plain), tagged: span(tagged) }
    }

    async fn resolve_tags(&self, entries: &[Option<Arc<Entry>>], policy: &Policy) {
        self.tags.resolve(self.tag_call(policy), tags_of(entries.iter().flatten())).await;
    }

    /// The touch of a key in a store without L2, or that is not for L2.
    fn touch_in_l1(
        &self,
        key: &Key,
        entry: Option<&Arc<Entry>>,
        life: &NewLife,
        policy: &Policy,
    ) -> bool {
        let fence = self.l1.watch(key);
        let is_fresh =
            |entry: &&Arc<Entry>| self.l1.judge(entry, self.clock.now()) == Verdict::Fresh;
        let Some(entry) = entry.filter(is_fresh) else { return false };
        let is_shorter = self.is_shorter(entry, life);
        let is_touched = self.renew(key, &fence, life, policy, is_shorter, |there| {
            Arc::ptr_eq(there, entry).then_some(None)
        });
        if is_touched {
            self.announce(Kind::Set, key, policy);
        }
        is_touched
    }

    /// The touch of some keys in both tiers.
    async fn touch_in_l2(
        &self,
        l2: &L2,
        keys: &[Key],
        life: &NewLife,
        policy: &Policy,
    ) -> Vec<Result<bool>> {
        l2.under_way(keys).ended().await;
        let fences: KeyVec<_> = keys.iter().map(|key| self.l1.watch(key)).collect();
        let wanted: KeyVec<_> = keys.iter().collect();
        let read = l2.read_each(&wanted, policy.l2_limit(false)).await;
        let is_down = read.iter().any(|read| read.as_ref().is_err_and(|e| e.is_transient()));
        let entries: KeyVec<_> = keys.iter().map(|key| self.l1.get(key)).collect();
        if is_down {
            self.resolve_tags(&entries, policy).await;
        }
        let stored = read.iter().map(|read| read.as_ref().ok().and_then(Option::as_ref)).collect();
        let are_fresh = self.are_fresh(keys, stored, &entries, policy).await;
        let mut touches = Vec::with_capacity(keys.len());
        let each = keys.iter().zip(&fences).zip(entries).zip(read).zip(are_fresh);
        for ((((key, fence), entry), read), is_fresh) in each {
            let fresh = read.map(|found| found.filter(|_| is_fresh));
            touches.push(self.touch_one(l2, (key, fence), fresh, entry, life, policy));
        }
        join_all(touches).await
    }

    /// The touch of a key with this fresh document.
    async fn touch_one(
        &self,
        l2: &L2,
        (key, fence): (&Key, &Fence),
        fresh: Result<Option<Bytes>, Arc<DriverError>>,
        entry: Option<Arc<Entry>>,
        life: &NewLife,
        policy: &Policy,
    ) -> Result<bool> {
        match fresh {
            Ok(Some(found)) => self.touch_stored(l2, (key, fence), found, life, policy).await,
            Ok(None) => {
                // L1 may have what L2 does not have any more.
                self.l1.mark_unverified(key);
                Ok(false)
            }
            Err(error) => {
                let is_kept = error.is_transient()
                    && policy.suppress_l2_errors
                    && self.keep_touch(l2, (key, fence), entry, life, policy);
                if is_kept { Ok(true) } else { Err(self.l2_error("touch", error)) }
            }
        }
    }

    /// Whether these documents are fresh, by their times and by their tags.
    async fn are_fresh(
        &self,
        keys: &[Key],
        stored: KeyVec<Option<&Bytes>>,
        entries: &[Option<Arc<Entry>>],
        policy: &Policy,
    ) -> KeyVec<bool> {
        let epoch = self.l1.epoch();
        let probes: KeyVec<_> = keys
            .iter()
            .zip(&stored)
            .map(|(key, stored)| {
                let document = Document::parse((*stored)?).ok()?;
                Some(self.entry_of(key, (), &document.meta, 0, epoch, policy))
            })
            .collect();
        let loaded: KeyVec<_> = probes.iter().flatten().collect();
        self.resolve_loaded(&loaded, policy).await;
        let (now, epoch_now) = (self.clock.now(), self.clock.epoch());
        let each = probes.iter().zip(&stored).zip(entries).map(|((probe, stored), entry)| {
            let (Some(probe), Some(stored)) = (probe, stored) else { return false };
            let probe = &probe.entry;
            // The age of an entry with a creation time in the future counts from its first read.
            let ends_at = match entry {
                Some(entry)
                    if !is_plausible(probe.created_at(), epoch_now)
                        && entry.is_of(probe.created_at(), self.fingerprint(stored)) =>
                {
                    entry.ends_at().min(probe.ends_at())
                }
                _ => probe.ends_at(),
            };
            ends_at > now && self.tags_hold(probe)
        });
        each.collect()
    }

    async fn touch_stored(
        &self,
        l2: &L2,
        (key, fence): (&Key, &Fence),
        found: Bytes,
        life: &NewLife,
        policy: &Policy,
    ) -> Result<bool> {
        let before = self.fingerprint(&found);
        let budget = Budget::new(policy.l2_limit(false));
        let remember = |bytes: &Bytes, created_at| {
            if let Some(bus) = &self.bus {
                bus.touches(key, bytes, created_at);
            }
        };
        let Ok(Document { meta, .. }) = Document::parse(&found) else { return Ok(false) };
        let new = life.of(!meta.tags.is_empty() || meta.levels.is_some());
        let is_shorter = match meta.expiration {
            Expiration::Never => new.fresh != NEVER,
            Expiration::At(fresh) => new.fresh < fresh,
        };
        let touch = l2.touch(key, found, life, &budget, self.rule(policy), &remember);
        let after = match touch.await {
            Ok(Touched::Reached(bytes)) => {
                self.announce(Kind::Set, key, policy);
                Some(self.fingerprint(&bytes))
            }
            // The replay announces it, and has L1 checked.
            Ok(Touched::Queued) => None,
            Ok(Touched::Replaced) => {
                self.l1.mark_unverified(key);
                return Ok(true);
            }
            Ok(Touched::Nothing) => {
                self.l1.mark_unverified(key);
                return Ok(false);
            }
            Err(error) => {
                // L2 may have either life.
                self.l1.mark_unverified(key);
                return Err(self.l2_error("touch", error));
            }
        };
        self.renew(key, fence, life, policy, is_shorter, |there| {
            there.is_of(meta.created_at, before).then_some(Some(after.unwrap_or(before)))
        });
        Ok(true)
    }

    /// While L2 cannot be asked: the entry of L1 gets the life, and the touch waits.
    fn keep_touch(
        &self,
        l2: &L2,
        (key, fence): (&Key, &Fence),
        entry: Option<Arc<Entry>>,
        life: &NewLife,
        policy: &Policy,
    ) -> bool {
        let now = self.clock.now();
        let is_fresh = |entry: &Arc<Entry>| {
            self.l1.judge(entry, now) == Verdict::Fresh || self.l1.serves_unchecked(entry, now)
        };
        let Some(entry) = entry.filter(is_fresh) else { return false };
        let is_shorter = self.is_shorter(&entry, life);
        l2.keep_touch(key, life)
            && self.renew(key, fence, life, policy, is_shorter, |there| {
                Arc::ptr_eq(there, &entry).then_some(None)
            })
    }

    /// Whether the life ends before the present one of an entry of L1.
    fn is_shorter(&self, entry: &Entry, life: &NewLife) -> bool {
        let fresh_for = until(life.of(!entry.tags().is_empty()).fresh, life.at);
        self.clock.now().saturating_add(fresh_for) < entry.ends_at()
    }

    /// Gives the entry of L1 the life, if `is_it` accepts it. `is_it` returns the fingerprint of
    /// its stored form, if that is known. Returns whether there was such an entry. A shorter life
    /// advances the fence, because a reader under way has the longer one.
    fn renew(
        &self,
        key: &Key,
        fence: &Fence,
        life: &NewLife,
        policy: &Policy,
        is_shorter: bool,
        is_it: impl Fn(&Arc<Entry>) -> Option<Option<u32>>,
    ) -> bool {
        let (now, epoch) = (self.clock.now(), self.l1.epoch());
        let renew = |slot: &mut Slot<'_>| {
            let Some(entry) = slot.entry() else { return false };
            let Some(fingerprint) = is_it(&entry) else { return false };
            let Span { fresh, end } = life.of(!entry.tags().is_empty());
            let fresh_for = until(fresh, life.at);
            entry.renew(&Life {
                created_at: entry.created_at(),
                fingerprint: fingerprint.unwrap_or_else(|| entry.fingerprint()),
                life: fresh_for,
                ends_at: now.saturating_add(fresh_for),
                fresh_until: now.saturating_add(fresh_for.min(policy.l1_ttl)),
                dead_at: now.saturating_add(until(end, life.at)),
                verified_at: now,
                epoch: if fingerprint.is_some() { epoch } else { entry.epoch() },
                graced: policy.grace > 0,
            });
            if let Some(sliding) = entry.sliding() {
                sliding.note_told(now);
            }
            true
        };
        let renewed = if is_shorter {
            self.l1.settle(key, fence, renew)
        } else {
            self.l1.fill(key, fence, renew)
        };
        renewed.unwrap_or(false)
    }
}
