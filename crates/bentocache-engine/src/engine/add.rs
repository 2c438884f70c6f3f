//! `add`: stores a value only if nothing fresh is there.
//!
//! With an L2, L2 decides which of several concurrent calls succeeds, so it is asked before L1
//! changes. Without one, the lock of the key's fence decides.

use std::sync::Arc;

use bentocache_driver::{DriverError, ErrorKind};

use super::find::Presence;
use super::set::Draft;
use super::{CacheValue, Engine, Key};
use crate::error::{Error, Result};
use crate::event::EventKind;
use crate::l1::fence::Fence;
use crate::l1::{Slot, Verdict};
use crate::l2::{Budget, L2, MOST_ATTEMPTS};
use crate::options::Policy;
use crate::stats::Counter;

/// What L1 says about a value that is to be added.
enum Here {
    Fresh,
    /// A tag of the entry must be looked up first.
    Unknown,
    NotFresh,
}

impl Engine {
    /// Stores the value if no tier has a fresh value under the key; returns whether it did.
    pub(crate) async fn add<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        tags: &[String],
        policy: &Policy,
    ) -> Result<bool> {
        let policy = &policy.begun();
        self.check_key(key)?;
        self.check_tags(&self.tag_prefix(key.prefix()), tags)?;
        if policy.ttl == 0 {
            return Ok(false);
        }
        let l2 = self.l2.as_ref().filter(|_| !policy.skip_l2_write);
        if let Some(entry) = self.l1.get(key).filter(|_| l2.is_none() || policy.takes_hits())
            && self.is_fresh_in_l1(&entry, policy).await
        {
            return Ok(false);
        }
        let added = match l2 {
            Some(l2) => self.add_to_both(l2, key, value, tags, policy).await?,
            None => self.add_to_l1(key, value, tags, policy).await?,
        };
        let Some(draft) = added else { return Ok(false) };
        self.delete_other_versions([key], policy).await?;
        self.announce_set(key, draft.entry.created_at(), policy);
        self.record(Counter::Writes, || EventKind::Written { key: self.shown(&key.full) });
        Ok(true)
    }

    /// Adds the value to both tiers. Returns what was stored, or `None` if a fresh value was there.
    async fn add_to_both<T: CacheValue>(
        &self,
        l2: &L2,
        key: &Key,
        value: T,
        tags: &[String],
        policy: &Policy,
    ) -> Result<Option<Draft>> {
        let failed = |error| self.l2_error("add", error);
        let budget = Budget::new(policy.l2_limit(false));
        l2.under_way([key]).ended().await;
        let (mut value, mut drafted) = (Some(value), None);
        for _ in 0..MOST_ATTEMPTS {
            let found = l2.look(key, &budget).await.map_err(failed)?;
            if let Some(bytes) = &found.visible {
                match self.presence(key, bytes, self.l1.get(key), policy).await {
                    Presence::Fresh => return Ok(None),
                    Presence::Unknown => return Err(failed(unknown_tags())),
                    Presence::NotFresh => {}
                }
            }
            if let Some(value) = value.take() {
                drafted = Some(self.draft_to_add(key, value, tags, policy).await?);
            }
            let Some(draft) = &drafted else { break };
            // No flight that began before stores its value from here on.
            let begun = self.l1.try_change(key, |slot| {
                let is_fresh = policy.takes_hits() && matches!(self.here(slot), Here::Fresh);
                (!is_fresh).then_some(())
            });
            let Some(((), fence)) = begun else { return Ok(None) };
            let Some(put) = draft.put(key, &fence, false) else { break };
            match l2.add(&put, found.stored, &budget).await {
                Ok(true) => {
                    self.settle_added(key, draft, &fence, policy);
                    return Ok(drafted);
                }
                Ok(false) => {}
                Err(error) => {
                    self.l1.mark_unverified(key);
                    return Err(failed(error));
                }
            }
        }
        Err(failed(contended()))
    }

    /// L2 has the value: puts it into L1, unless the key was changed meanwhile.
    fn settle_added(&self, key: &Key, draft: &Draft, fence: &Fence, policy: &Policy) {
        let settled = self.l1.settle(key, fence, |slot| {
            if policy.skip_l1_write {
                slot.remove();
            } else {
                slot.insert(draft.entry.clone(), draft.weight);
            }
        });
        if settled.is_none() {
            self.l1.mark_unverified(key);
        }
    }

    /// Adds the value to L1 alone, under the lock of the key's fence.
    async fn add_to_l1<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        tags: &[String],
        policy: &Policy,
    ) -> Result<Option<Draft>> {
        if policy.skip_l1_write {
            return Ok(None);
        }
        let draft = self.draft_to_add(key, value, tags, policy).await?;
        for attempt in 1..=MOST_ATTEMPTS {
            let mut is_unknown = false;
            let change = self.l1.try_change(key, |slot| match self.here(slot) {
                Here::Fresh => None,
                Here::Unknown if attempt < MOST_ATTEMPTS => {
                    is_unknown = true;
                    None
                }
                Here::Unknown | Here::NotFresh => {
                    Some(slot.insert(draft.entry.clone(), draft.weight))
                }
            });
            match change {
                Some((true, _)) => return Ok(Some(draft)),
                Some((false, _)) => return Err(self.too_large(key, &draft.entry, draft.weight)),
                None if is_unknown => {
                    if let Some(entry) = self.l1.get(key)
                        && self.is_fresh_in_l1(&entry, policy).await
                    {
                        return Ok(None);
                    }
                }
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn here(&self, slot: &Slot<'_>) -> Here {
        let Some(entry) = slot.entry() else { return Here::NotFresh };
        match self.l1.judge(&entry, self.clock.now()) {
            Verdict::Fresh => Here::Fresh,
            Verdict::UnknownTag => Here::Unknown,
            Verdict::Stale | Verdict::Unverified | Verdict::Dead => Here::NotFresh,
        }
    }

    async fn draft_to_add<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        tags: &[String],
        policy: &Policy,
    ) -> Result<Draft> {
        let prefix = &*self.tag_prefix(key.prefix());
        let tags = tags.iter().map(String::as_str);
        let call = self.tag_call(policy);
        let snapshot = self.tags.see(call, prefix, tags, std::iter::once(key)).await;
        let mut draft = self.draft(key, value, self.clock.epoch(), &snapshot, None, policy);
        match draft.unencodable.take() {
            None => Ok(draft),
            Some(source) => {
                Err(Error::Encode { key: self.key_in_errors(key), source: source.into() })
            }
        }
    }
}

/// The error when nobody can tell whether the stored value is still valid.
fn unknown_tags() -> Arc<DriverError> {
    let message = "the tags of the stored value could not be read, so nobody can tell whether it \
                   is fresh; try again when L2 answers";
    Arc::new(DriverError::new(ErrorKind::Unavailable, message))
}

/// The error when the key changed at every attempt.
fn contended() -> Arc<DriverError> {
    let message = format!(
        "the key was changed by others at each of {MOST_ATTEMPTS} attempts; try again, or spread \
         the changes over several keys"
    );
    Arc::new(DriverError::new(ErrorKind::Unavailable, message))
}
