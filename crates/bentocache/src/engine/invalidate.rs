//! What invalidates: delete, expire, clear, pull and prune.
//!
//! The order is that of every change, see `write.rs`: fence and first tier in one step, then the
//! second tier, then the other processes.

use std::sync::Arc;

use bentocache_core::{DriverError, NEVER, TagSeen};
use bytes::Bytes;

use super::fence::Fence;
use super::flight::Hit;
use super::recovery::Pending;
use super::{CacheValue, Engine, Key, value_of};
use crate::error::Result;
use crate::event::{EventKind, Tier};
use crate::options::Policy;
use crate::tier::local::State;
use crate::tier::remote::Remote;
use crate::wire::message::Kind;

/// How long a call of the second tier may take that goes through everything, in ms.
pub(crate) const THROUGH_ALL: u64 = 60_000;

impl Engine {
    /// Deletes keys everywhere; returns how many were there.
    pub(crate) async fn delete(&self, keys: &[Key], policy: &Policy) -> Result<u64> {
        if keys.is_empty() {
            return Ok(0);
        }
        for key in keys {
            self.check_key(key)?;
        }
        let (now, at) = (self.clock.now(), self.clock.epoch());
        let (removed, fences): (Vec<_>, Vec<_>) = keys
            .iter()
            .map(|key| self.fences.change(key.hash, || self.l1_remove(&key.full)))
            .unzip();
        let here = removed.iter().flatten().filter(|entry| entry.dead_at() > now).count() as u64;
        drop(removed);
        let mut result = Ok(here);
        if let Some(remote) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
            let there: Vec<&str> = keys.iter().map(|key| &*key.full).collect();
            let must_wait = there.iter().any(|key| self.recovery.must_wait(key));
            let limit = policy.l2_limit(false);
            keys.iter().for_each(|key| self.recovery.supersede(&key.full));
            let before = self.recovery.now();
            let deleted = if must_wait {
                None
            } else {
                Some(self.l2_call(remote, "delete", limit, |driver| driver.delete(&there)).await)
            };
            match deleted {
                Some(Ok(there)) => {
                    fences.iter().for_each(Fence::has_reached);
                    for key in keys {
                        self.forget_waiting(key, before);
                    }
                    // The tiers may have different ones; the larger number is a safe answer.
                    result = Ok(there.max(here));
                }
                failed => {
                    let kept = keys
                        .iter()
                        .zip(&fences)
                        .all(|(key, fence)| self.recover_delete(key, at, fence));
                    if let Some(Err(error)) = failed
                        && !(policy.suppress_l2_errors && kept)
                    {
                        result = Err(self.l2_error("delete", error));
                    }
                }
            }
            for (key, fence) in keys.iter().zip(&fences) {
                self.settle_removal(key, fence);
            }
        }
        self.announce_all(Kind::Delete, keys.iter(), policy);
        for key in keys {
            self.emit(|| EventKind::Deleted { key: self.shown(&key.full) });
        }
        result
    }

    /// Makes keys stale everywhere.
    pub(crate) async fn expire(&self, keys: &[Key], policy: &Policy) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            self.check_key(key)?;
        }
        let mut result = Ok(());
        for key in keys {
            let (gone, fence) = self.fences.change(key.hash, || {
                let local = self.l1.as_ref()?;
                let entry = local.get(&key.full)?;
                entry.expire();
                if entry.ends_at() == NEVER && entry.dead_at() == NEVER {
                    // What was to last for ever gets the grace of this call.
                    entry.end_by(self.clock.now().saturating_add(policy.grace));
                }
                if entry.is_graced() { None } else { local.remove(&key.full) }
            });
            drop(gone);
            if let Some(remote) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
                if let Err(error) = self.expire_stored(remote, key, policy).await {
                    result = Err(self.l2_error("expire", error));
                }
                let settled = fence.settle(|| {
                    let local = self.l1.as_ref()?;
                    let entry = local.get(&key.full)?;
                    entry.expire();
                    if entry.is_graced() { None } else { local.remove(&key.full) }
                });
                match settled {
                    Some(gone) => drop(gone),
                    None => self.distrust(key),
                }
            }
        }
        self.announce_all(Kind::Expire, keys.iter(), policy);
        for key in keys {
            self.emit(|| EventKind::Expired { key: self.shown(&key.full) });
        }
        result
    }

    async fn expire_stored(
        &self,
        remote: &Remote,
        key: &Key,
        policy: &Policy,
    ) -> Result<(), Arc<DriverError>> {
        let at = self.clock.epoch();
        let limit = policy.l2_limit(false);
        let expire = Pending::Expire { at, grace: policy.grace };
        let if_it_fails = match self.recovery.pending(&key.full) {
            None | Some(Pending::TakeBack { .. }) => expire,
            // It is stored as stale. Should something younger be there, which other processes have
            // written, then that has to be made stale as well, or to go.
            Some(Pending::Write { .. }) => {
                self.recovery.doubt(&key.full, Kind::Expire, at, policy.grace);
                Pending::Delete { at }
            }
            // What waits reaches as far as this now.
            Some(Pending::Delete { .. }) => {
                self.recover(key, Pending::Delete { at });
                return Ok(());
            }
            Some(Pending::Expire { .. }) => {
                self.recover(key, expire);
                return Ok(());
            }
            Some(Pending::Clear { .. }) => return Ok(()),
        };
        let stored = self.l2_call(remote, "get", limit, |d| d.get(&key.full)).await;
        let result = match stored {
            Ok(stored) => self.l2_expire(remote, key, stored, at, policy.grace, limit).await,
            Err(error) => Err(error),
        };
        match result {
            Err(_) if policy.suppress_l2_errors && self.recover(key, if_it_fails) => Ok(()),
            result => result,
        }
    }

    /// Removes everything whose key starts with `prefix`.
    pub(crate) async fn clear(self: &Arc<Self>, prefix: &str, policy: &Policy) -> Result<()> {
        let mut result = Ok(());
        let at = self.clock.epoch();
        self.fences.invalidate_all();
        self.recovery.supersede_under(prefix);
        if let Some(remote) = &self.l2 {
            let before = self.recovery.now();
            let clear = self.l2_call(remote, "clear", THROUGH_ALL, |driver| driver.clear(prefix));
            let cleared = clear.await;
            match cleared {
                Ok(()) => self.forget_waiting_under(prefix, before),
                Err(error) => {
                    let kept = policy.suppress_l2_errors
                        && error.is_transient()
                        && self.recover(&self.key(prefix, ""), Pending::Clear { at });
                    if !kept {
                        result = Err(self.l2_error("clear", error));
                    }
                }
            }
        }
        self.clear_local(prefix).await;
        let namespace = prefix.strip_suffix(':').unwrap_or(prefix);
        self.announce_clear(namespace, policy);
        self.emit(|| EventKind::Cleared {
            namespace: self.shown(prefix).trim_end_matches(':').to_owned().into(),
        });
        result
    }

    /// The first tier's part of a clear.
    pub(crate) async fn clear_local(self: &Arc<Self>, prefix: &str) {
        /// From this many entries on, going through them is no work for an async worker.
        const MANY: usize = 4_096;
        // Readers that began before must not bring back what is cleared.
        self.fences.invalidate_all();
        self.tags.forget_all(prefix, self.l2.is_some());
        let Some(local) = &self.l1 else { return };
        if local.driver.len() < MANY {
            local.clear(prefix);
            return;
        }
        let (engine, prefix) = (self.clone(), prefix.to_owned());
        let clear = move || engine.l1.iter().for_each(|local| local.clear(&prefix));
        let cleared = self.runtime.spawn_blocking(clear).await;
        if cleared.is_err() {
            tracing::error!(store = %self.name, "clearing the first tier panicked");
        }
    }

    /// The value, which is gone everywhere, where it was, and whether it was stale.
    pub(crate) async fn pull<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
    ) -> Result<Option<(T, Tier, bool)>> {
        self.check_key(key)?;
        let before = self.l1.as_ref().and_then(|local| local.get(&key.full));
        if let Some(entry) = &before {
            self.resolve_tags(entry.tags().iter().map(TagSeen::tag), policy).await;
        }
        let at = self.clock.epoch();
        let (here, fence) = self.fences.change(key.hash, || self.l1_remove(&key.full));
        let mut found = here.map(|entry| Hit { entry, tier: Tier::L1 });
        let mut result = Ok(());
        if let Some(remote) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
            let limit = policy.l2_limit(false);
            let pending = self.recovery.pending(&key.full);
            self.recovery.supersede(&key.full);
            let before = self.recovery.now();
            let pulled = match pending {
                Some(pending) if !pending.needs_stored() => {
                    self.recover_delete(key, at, &fence);
                    self.recovery.kick();
                    Ok(pending.applied_to(key, None, |bytes| self.digest(bytes)))
                }
                pending => {
                    let pull = self.l2_call(remote, "pull", limit, |d| d.pull(&key.full)).await;
                    if pull.is_ok() {
                        fence.has_reached();
                    }
                    match pending {
                        Some(pending) if pull.is_ok() => {
                            self.forget_waiting(key, before);
                            pull.map(|bytes| {
                                pending.applied_to(key, bytes, |bytes| self.digest(bytes))
                            })
                        }
                        _ => pull,
                    }
                }
            };
            match pulled {
                // The second tier decides who gets the value.
                Ok(bytes) => {
                    found = match bytes {
                        Some(bytes) => self.pulled::<T>(key, &bytes, policy).await,
                        None => None,
                    };
                }
                Err(error) => {
                    self.recover_delete(key, at, &fence);
                    if !policy.suppress_l2_errors {
                        result = Err(self.l2_error("pull", error));
                    }
                }
            }
            self.settle_removal(key, &fence);
        }
        self.announce(Kind::Delete, key, policy);
        self.emit(|| EventKind::Deleted { key: self.shown(&key.full) });
        result?;
        let now = self.clock.now();
        let Some(hit) = found.filter(|hit| now < hit.entry.dead_at()) else { return Ok(None) };
        let fresh = match (&self.l1, hit.tier) {
            (Some(local), Tier::L1) => local.judge(&hit.entry, now) == State::Fresh,
            _ => now < hit.entry.ends_at() && self.tags_hold(&hit.entry),
        };
        if !fresh && policy.grace == 0 {
            return Ok(None);
        }
        let value =
            value_of::<T>(&hit.entry).cloned().or_else(|| super::converted(&hit.entry, self.codec));
        if value.is_none() {
            self.decode_failed(key, "the value has another type");
        }
        Ok(value.map(|value| (value, hit.tier, !fresh)))
    }

    async fn pulled<T: CacheValue>(
        &self,
        key: &Key,
        bytes: &Bytes,
        policy: &Policy,
    ) -> Option<Hit> {
        let epoch = self.epoch();
        let loaded = self.entry_in::<T>(key, bytes, epoch, policy)?;
        self.resolve_loaded(&[&loaded], policy).await;
        Some(Hit { entry: loaded.entry, tier: Tier::L2 })
    }

    /// Removes what has expired where nothing else does; returns how many.
    pub(crate) async fn prune(self: &Arc<Self>) -> Result<u64> {
        let mut pruned = self.prune_local().await as u64;
        if let Some(remote) = &self.l2 {
            let removed = self.l2_call(remote, "prune", THROUGH_ALL, |driver| driver.prune()).await;
            pruned += removed.map_err(|error| self.l2_error("prune", error))?;
        }
        Ok(pruned)
    }

    /// Removes dead entries from the first tier, off the async workers.
    pub(crate) async fn prune_local(self: &Arc<Self>) -> usize {
        let Some(local) = &self.l1 else { return 0 };
        let (driver, now) = (local.driver.clone(), self.clock.now());
        self.runtime.spawn_blocking(move || driver.prune(now)).await.unwrap_or_default()
    }

    /// Ends a removal: what a reader found in the second tier meanwhile is removed too.
    fn settle_removal(&self, key: &Key, fence: &Fence) {
        match fence.settle(|| self.l1_remove(&key.full)) {
            Some(gone) => drop(gone),
            // A later change may have overlapped with it in the second tier.
            None => self.distrust(key),
        }
    }
}
