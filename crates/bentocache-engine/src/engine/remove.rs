//! Invalidations: delete, expire, clear, delete by tag, pull and prune.
//!
//! The order is that of every change, see `set.rs`: fence and L1 in one step, then L2, then the
//! other processes.

use std::sync::Arc;

use bentocache_driver::{NEVER, TagSeen};
use bytes::Bytes;

use super::flight::Located;
use super::set::Failed;
use super::{CacheValue, Engine, Key};
use crate::advisor::Search;
use crate::error::Result;
use crate::event::log::HIDDEN;
use crate::event::{EventKind, Tier};
use crate::join::join_all;
use crate::l1::fence::Fence;
use crate::l1::{Slot, Verdict, is_gone};
use crate::l2::{Budget, Outcome, Rule};
use crate::options::Policy;
use crate::stats::Counter;
use crate::tags::TagChange;
use crate::wire::message::Kind;

impl Engine {
    /// Deletes keys in both tiers and on all nodes, in every version; returns how many existed.
    pub(crate) async fn delete(&self, keys: &[Key], policy: &Policy) -> Result<u64> {
        for key in keys {
            self.check_key(key)?;
        }
        let policy = &policy.begun();
        let deleted = self.delete_these(keys, policy).await;
        let others = self.delete_other_versions(keys, policy).await;
        for key in keys {
            self.record(Counter::Deletes, || EventKind::Deleted { key: self.shown(&key.full) });
        }
        others.and(deleted)
    }

    /// Deletes the other versions of these keys. It comes after the change of the keys themselves, and
    /// within the same limit: a deletion that has no time left waits in the recovery queue.
    pub(super) async fn delete_other_versions<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a Key>,
        policy: &Policy,
    ) -> Result<()> {
        self.delete_others(&self.other_versions(keys), policy).await
    }

    /// As [`delete_other_versions`](Self::delete_other_versions), of keys that are known already.
    pub(super) async fn delete_others(&self, others: &[Key], policy: &Policy) -> Result<()> {
        if others.is_empty() {
            return Ok(());
        }
        // Boxed, because most stores have no versions, and their futures stay small.
        Box::pin(self.delete_these(others, policy)).await.map(drop)
    }

    async fn delete_these(&self, keys: &[Key], policy: &Policy) -> Result<u64> {
        if keys.is_empty() {
            return Ok(0);
        }
        let (now, at) = (self.clock.now(), self.clock.epoch());
        let (removed, fences): (Vec<_>, Vec<_>) = keys
            .iter()
            .map(|key| {
                self.l1.change(key, |slot| slot.remove().is_some_and(|entry| entry.dead_at() > now))
            })
            .unzip();
        let here = removed.iter().filter(|was_alive: &&bool| **was_alive).count() as u64;
        let mut failed = Failed::new(keys.len());
        let mut deleted = here;
        if let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
            let budget = Budget::new(policy.l2_limit(false));
            l2.under_way(keys).ended().await;
            let (outcomes, there) = l2.delete(keys, &fences, at, &budget, self.rule(policy)).await;
            // The tiers may hold different keys; the larger number is reported.
            deleted = there.max(here);
            for ((key, fence), outcome) in keys.iter().zip(&fences).zip(outcomes) {
                if let Some(error) = outcome.error() {
                    let error = self.l2_error("delete", error.clone());
                    failed.add(self.key_in_errors(key), error);
                }
                self.settle_removal(key, fence);
            }
        }
        self.announce_all(Kind::Delete, keys.iter(), policy);
        failed.into_result().map(|()| deleted)
    }

    /// How a failed change of L2 is treated.
    pub(super) fn rule(&self, policy: &Policy) -> Rule {
        Rule { keep: policy.suppress_l2_errors, heard: self.heard() }
    }

    /// Makes keys stale in both tiers and on all nodes, in every version.
    pub(crate) async fn expire(&self, keys: &[Key], policy: &Policy) -> Result<()> {
        for key in keys {
            self.check_key(key)?;
        }
        let (policy, others) = (&policy.begun(), self.other_versions(keys));
        let expired = self.expire_these(keys, policy).await;
        let expired = match &*others {
            [] => expired,
            others => expired.and(Box::pin(self.expire_these(others, policy)).await),
        };
        for key in keys {
            self.record(Counter::Expirations, || EventKind::Expired { key: self.shown(&key.full) });
        }
        expired
    }

    async fn expire_these(&self, keys: &[Key], policy: &Policy) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut failed = Failed::new(keys.len());
        let budget = Budget::new(policy.l2_limit(false));
        let fences: Vec<_> = keys.iter().map(|key| self.expire_in_l1(key, policy)).collect();
        if let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
            let (at, rule) = (self.clock.epoch(), self.rule(policy));
            l2.under_way(keys).ended().await;
            let outcomes = l2.expire(keys, at, policy.grace, &budget, rule).await;
            for ((key, fence), outcome) in keys.iter().zip(&fences).zip(outcomes) {
                if let Some(error) = outcome.error() {
                    let error = self.l2_error("expire", error.clone());
                    failed.add(self.key_in_errors(key), error);
                }
                let settled = self.l1.settle(key, fence, |slot| {
                    let Some(entry) = slot.entry() else { return };
                    entry.expire();
                    if !entry.is_graced() {
                        slot.remove();
                    }
                });
                if settled.is_none() {
                    self.l1.mark_unverified(key);
                }
            }
        }
        self.announce_all(Kind::Expire, keys.iter(), policy);
        failed.into_result()
    }

    fn expire_in_l1(&self, key: &Key, policy: &Policy) -> Fence {
        let expire = |slot: &mut Slot<'_>| {
            let Some(entry) = slot.entry() else { return };
            entry.expire();
            if entry.ends_at() == NEVER && entry.dead_at() == NEVER {
                // An entry without an end gets the grace of this call.
                entry.end_by(self.clock.now().saturating_add(policy.grace));
            }
            if !entry.is_graced() {
                slot.remove();
            }
        };
        self.l1.change(key, expire).1
    }

    /// Deletes keys, invalidates tags and clears namespaces at the same time, within one limit for
    /// L2. Returns the first error.
    pub(crate) async fn invalidate(
        self: &Arc<Self>,
        keys: &[Key],
        (tag_prefix, tags, expired_tags): (&str, &[String], &[String]),
        prefixes: &[Arc<str>],
        policy: &Policy,
    ) -> Result<()> {
        keys.iter().try_for_each(|key| self.check_key(key))?;
        let policy = &policy.begun();
        let clears = async {
            let mut result = Ok(());
            let each = prefixes.iter().map(|prefix| self.clear(prefix, policy)).collect();
            for cleared in join_all(each).await {
                result = result.and(cleared);
            }
            result
        };
        let (deleted, expired, by_tag, cleared) = tokio::join!(
            self.delete(keys, policy),
            self.change_tags(TagChange::Expire, tag_prefix, expired_tags, policy),
            self.change_tags(TagChange::Delete, tag_prefix, tags, policy),
            clears,
        );
        deleted.map(drop).and(by_tag).and(expired).and(cleared)
    }

    /// Removes everything whose key starts with `prefix`, in every version.
    pub(crate) async fn clear(self: &Arc<Self>, prefix: &str, policy: &Policy) -> Result<()> {
        let mut result = Ok(());
        for prefix in self.all_versions(prefix) {
            result = result.and(self.clear_this(&prefix, policy).await);
        }
        self.record(Counter::Clears, || EventKind::Cleared {
            namespace: self.shown(prefix).trim_end_matches(':').to_owned().into(),
        });
        result
    }

    async fn clear_this(self: &Arc<Self>, prefix: &str, policy: &Policy) -> Result<()> {
        let mut result = Ok(());
        let at = self.clock.epoch();
        self.l1.invalidate_all();
        if let Some(l2) = self.l2.as_ref().filter(|l2| l2.can_clear()) {
            l2.all_under_way(prefix).ended().await;
            let outcome = l2.clear(&self.key(prefix, ""), at, self.rule(policy)).await;
            if let Outcome::Failed(error) | Outcome::Refused(error) = outcome {
                result = Err(self.l2_error("clear", error));
            }
        } else if let Some(l2) = &self.l2 {
            l2.heard_of_clear(prefix);
            let cleared = self.tags.clear_level(self.tag_call(&policy.begun()), prefix).await;
            result = cleared.map_err(|error| self.l2_error("clear", error));
        }
        self.clear_local(prefix).await;
        let namespace = prefix.strip_suffix(':').unwrap_or(prefix);
        self.announce_clear(namespace, policy);
        result
    }

    /// The part of a clear that concerns L1.
    pub(super) async fn clear_local(self: &Arc<Self>, prefix: &str) {
        /// From this many entries on, a scan would block an async worker for too long.
        const MANY: usize = 4_096;
        self.tags.cleared(prefix, self.l2.is_some());
        if self.l1.len() < MANY {
            self.l1.clear(prefix);
            return;
        }
        let (engine, again) = (self.clone(), prefix);
        let prefix = prefix.to_owned();
        let clear = move || engine.l1.clear(&prefix);
        match self.runtime.spawn_blocking(clear).await {
            Ok(()) => {}
            Err(error) if error.is_panic() => {
                tracing::error!(store = %self.name, "clearing L1 panicked");
            }
            // The runtime has ended.
            Err(_) => self.l1.clear(again),
        }
    }

    /// Deletes or expires every entry that has one of these tags.
    pub(crate) async fn change_tags(
        &self,
        change: TagChange,
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
        self.advise_on_scope(prefix, &names);
        let (markers, result) =
            self.tags.invalidate(self.tag_call(policy), prefix, &names, change).await;
        self.announce_all(change.kind(), markers.iter(), policy);
        for name in names {
            self.record(Counter::TagInvalidations, || match change {
                TagChange::Expire => EventKind::TagExpired { tag: name.into() },
                TagChange::Delete => EventKind::TagInvalidated { tag: name.into() },
            });
        }
        result.map_err(|error| self.l2_error("invalidate a tag", error))
    }

    /// Looks for a tag that only values of other namespaces have.
    fn advise_on_scope(&self, prefix: &str, names: &[&str]) {
        if self.advisor.searches(Search::TagOfOtherScope).is_none() {
            return;
        }
        let Some((tag, scope)) = self.tags.only_elsewhere(prefix, names) else { return };
        let (tag, scope, prefix) = match self.log_keys {
            true => (tag, &*scope, &*self.shown(prefix)),
            false => (HIDDEN, HIDDEN, HIDDEN),
        };
        self.advisor.found(
            Search::TagOfOtherScope,
            format!(
                "the tag {tag:?} was invalidated through a handle of {}, and only values of {} have \
                 it, which keep it: tags belong to a namespace",
                namespace_of(prefix),
                namespace_of(scope),
            ),
            "call `delete_by_tag` on a handle of that namespace, or set `.tag_scope(\"store\")`",
        );
    }

    /// Removes the value everywhere, in every version. Returns it, the tier where it was found, and
    /// whether it was stale.
    pub(crate) async fn pull<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
    ) -> Result<Option<(T, Tier, bool)>> {
        self.check_key(key)?;
        let policy = &policy.begun();
        let pulled = self.pull_this(key, policy).await;
        self.delete_other_versions([key], policy).await.and(pulled)
    }

    async fn pull_this<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
    ) -> Result<Option<(T, Tier, bool)>> {
        let before = self.l1.get(key);
        if let Some(entry) = &before {
            let tags = entry.tags().iter().map(TagSeen::tag);
            self.tags.resolve(self.tag_call(policy), tags).await;
        }
        let at = self.clock.epoch();
        let (here, fence) = self.l1.change(key, |slot| slot.remove().cloned());
        let mut found = here.map(|entry| Located { entry, tier: Tier::L1 });
        let mut result = Ok(());
        if let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_write) {
            let budget = Budget::new(policy.l2_limit(false));
            l2.under_way([key]).ended().await;
            let (outcome, bytes) = l2.pull(key, &fence, at, &budget, self.rule(policy)).await;
            match (outcome, bytes) {
                (Outcome::Failed(error) | Outcome::Refused(error), _) => {
                    result = Err(self.l2_error("pull", error));
                }
                // L2 decides which caller gets the value.
                (_, Some(bytes)) => found = self.pulled::<T>(key, &bytes, policy).await,
                (Outcome::Reached { .. }, None) => found = None,
                // L2 cannot tell. The value of L1 is returned, as a read would return it.
                (_, None) => {}
            }
            self.settle_removal(key, &fence);
        }
        self.announce(Kind::Delete, key, policy);
        self.record(Counter::Deletes, || EventKind::Deleted { key: self.shown(&key.full) });
        result?;
        let now = self.clock.now();
        let is_there = |hit: &Located| now < hit.entry.dead_at() && !is_gone(&hit.entry);
        let Some(hit) = found.filter(is_there) else { return Ok(None) };
        let fresh = match hit.tier {
            Tier::L1 => self.l1.judge(&hit.entry, now) == Verdict::Fresh,
            Tier::L2 => now < hit.entry.ends_at() && self.tags_hold(&hit.entry),
        };
        if !fresh && policy.grace == 0 {
            return Ok(None);
        }
        let value = self.read_value::<T>(&hit);
        let value = value.map_err(|error| self.unreadable::<T>(key, &*error)).ok();
        Ok(value.map(|value| (value, hit.tier, !fresh)))
    }

    async fn pulled<T: CacheValue>(
        &self,
        key: &Key,
        bytes: &Bytes,
        policy: &Policy,
    ) -> Option<Located> {
        let epoch = self.l1.epoch();
        let loaded = self.entry_in::<T>(key, bytes, epoch, policy)?;
        self.resolve_loaded(&[&loaded], policy).await;
        Some(Located { entry: loaded.entry, tier: Tier::L2 })
    }

    /// Removes expired entries in tiers that do not do so themselves; returns how many.
    pub(crate) async fn prune(self: &Arc<Self>) -> Result<u64> {
        let mut pruned = self.prune_local().await as u64;
        if let Some(l2) = &self.l2 {
            let removed = l2.prune().await;
            pruned += removed.map_err(|error| self.l2_error("prune", error))?;
        }
        tracing::debug!(store = %self.name, removed = pruned, "pruned");
        Ok(pruned)
    }

    /// Removes dead entries from L1, off the async workers.
    pub(super) async fn prune_local(self: &Arc<Self>) -> usize {
        if !self.l1.is_there() {
            return 0;
        }
        let engine = self.clone();
        self.runtime.spawn_blocking(move || engine.l1.prune()).await.unwrap_or_default()
    }

    /// Ends a removal: removes again what a reader has loaded from L2 meanwhile.
    fn settle_removal(&self, key: &Key, fence: &Fence) {
        let settled = self.l1.settle(key, fence, |slot| {
            slot.remove();
        });
        if settled.is_none() {
            // A later change may have overlapped with it in L2.
            self.l1.mark_unverified(key);
        }
    }
}

/// A namespace in a sentence.
fn namespace_of(prefix: &str) -> String {
    match prefix.trim_end_matches(':') {
        "" => "the store itself".to_owned(),
        namespace => format!("the namespace {namespace:?}"),
    }
}
