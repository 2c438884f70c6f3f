//! What the engine tells other processes over the bus, and what it does about their messages.

use std::sync::Arc;

use super::Engine;
use crate::bus::{Bus, BusEffects, Fill};
use crate::l1::Reason;
use crate::l2::{Budget, BusPosition, L2};
use crate::options::Policy;
use crate::site::{Key, is_reserved};
use crate::wire::message::Kind;

impl Engine {
    /// The current position in the history of the bus.
    pub(super) fn heard(&self) -> BusPosition {
        self.bus.as_deref().and_then(Bus::heard)
    }

    /// The bus, if changes under this policy are announced.
    fn announces(&self, policy: &Policy) -> Option<&Bus> {
        self.bus.as_deref().filter(|_| !policy.skip_bus_notify)
    }

    pub(super) fn announce(&self, kind: Kind, key: &Key, policy: &Policy) {
        self.announce_all(kind, std::iter::once(key), policy);
    }

    pub(super) fn announce_all<'a>(
        &self,
        kind: Kind,
        keys: impl Iterator<Item = &'a Key>,
        policy: &Policy,
    ) {
        if let Some(bus) = self.announces(policy) {
            bus.announce_all(kind, keys);
        }
    }

    /// Announces a value with this creation time, in ms since the epoch.
    pub(super) fn announce_set(&self, key: &Key, created_at: u64, policy: &Policy) {
        if let Some(bus) = self.announces(policy) {
            bus.announce_set(key, created_at);
        }
    }

    pub(super) fn announce_clear(&self, namespace: &str, policy: &Policy) {
        if let Some(bus) = self.announces(policy) {
            bus.announce_clear(namespace);
        }
    }
}

impl BusEffects for Arc<Engine> {
    fn changed_elsewhere(&self, kind: Kind, keys: &[Key]) {
        for key in keys {
            self.l1.invalidate(key, |slot| {
                if kind == Kind::Delete {
                    slot.remove();
                } else if let Some(entry) = slot.entry() {
                    entry.expire();
                    entry.mark_unverified();
                }
            });
            if let Some(l2) = &self.l2 {
                l2.heard_of(key, kind, self.clock.epoch(), self.policy.grace);
            }
            if is_reserved(&key.full) {
                self.tags.changed(&key.full, kind, self.l2.is_some());
            }
        }
    }

    fn cleared_elsewhere(&self, prefix: &str) {
        // Fences first, for readers in progress. The entries follow in a task.
        self.l1.invalidate_all();
        self.tags.cleared_elsewhere(prefix);
        if let Some(l2) = &self.l2 {
            l2.heard_of_clear(prefix);
        }
        let (engine, prefix) = (self.clone(), prefix.to_owned());
        self.spawn(async move { engine.clear_local(&prefix).await });
    }

    /// Removes the values, if they are still stored. Removals that fail are queued.
    fn take_back(&self, ours: Vec<Fill>) {
        if ours.is_empty() {
            return;
        }
        let engine = self.clone();
        self.spawn(async move {
            let Some(l2) = &engine.l2 else { return };
            for Fill { key, digests, created_at, .. } in ours {
                let budget = Budget::new(engine.policy.l2_hard_timeout);
                if l2.find_and_take_back(&key, &digests, created_at, &budget).await {
                    engine.announce(Kind::Delete, &key, &engine.policy);
                }
                engine.l1.mark_unverified(&key);
            }
        });
    }

    /// Repeats the invalidations.
    fn published_late(&self, kind: Kind, changes: Vec<(Key, u64)>) {
        if self.l2.is_none() || changes.is_empty() {
            return;
        }
        let engine = self.clone();
        self.spawn(async move {
            let Some(l2) = &engine.l2 else { return };
            if kind == Kind::Clear {
                // In a store that clears by levels, the marker also invalidates values of nodes
                // that did not know of the clear.
                for (prefix, at) in changes.iter().filter(|_| l2.can_clear()) {
                    l2.repeat_invalidation(prefix, kind, *at);
                }
                return;
            }
            let names: Vec<&Key> = changes.iter().map(|(key, _)| key).collect();
            let stored = l2.read_each(&names, engine.policy.l2_hard_timeout).await;
            for ((key, at), stored) in changes.iter().zip(stored) {
                // If nothing is stored, there is nothing older to remove.
                if !matches!(stored, Ok(None)) {
                    l2.repeat_invalidation(key, kind, *at);
                }
            }
        });
    }

    fn linked(&self) {
        // Tags and entries known from before may have changed during the gap.
        self.tags.set_bus_reports(true, self.clock.now());
        self.tags.mark_all_doubtful("");
        self.l1.mark_all_unverified(Reason::Gap);
        self.l1.set_bus_reports(true);
    }

    fn unlinked(&self) {
        self.tags.set_bus_reports(false, self.clock.now());
        self.l1.set_bus_reports(false);
    }

    fn may_have_missed(&self) {
        self.tags.mark_all_doubtful("");
        self.l1.mark_all_unverified(Reason::Change);
    }

    fn bus_is_back(&self) {
        self.l2.iter().for_each(L2::kick);
    }
}
