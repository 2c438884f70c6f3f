//! The changes that a replay of L2's recovery queue makes in the other modules.

use bytes::Bytes;

use super::Engine;
use crate::l1::Reason;
use crate::l2::{BusPosition, ReplayEffects};
use crate::options::Policy;
use crate::site::Key;
use crate::tags::{marker_document, marker_of};
use crate::wire::marker::MarkerTimes;
use crate::wire::message::Kind;

impl ReplayEffects for Engine {
    fn mark_unverified(&self, key: &Key) {
        self.l1.mark_unverified(key);
    }

    fn mark_all_unverified(&self) {
        self.l1.mark_all_unverified(Reason::Change);
    }

    fn announce(&self, kind: Kind, key: &Key) {
        Engine::announce(self, kind, key, &self.policy);
    }

    fn announce_clear(&self, namespace: &str) {
        Engine::announce_clear(self, namespace, &self.policy);
    }

    fn remember(&self, key: &Key, bytes: &Bytes, created_at: u64, hides_nothing: bool) {
        if let Some(bus) = &self.bus {
            bus.sets_late(key, bytes, created_at, hides_nothing);
        }
    }

    fn touches(&self, key: &Key, bytes: &Bytes, created_at: u64) {
        if let Some(bus) = &self.bus {
            bus.touches(key, bytes, created_at);
        }
    }

    async fn prove_heard(&self) -> BusPosition {
        self.bus.as_ref()?.prove_heard().await
    }

    fn markers_under(&self, prefix: &str) -> Vec<Key> {
        self.tags.markers_under(prefix)
    }

    fn marker_of(&self, stored: Option<&Bytes>) -> Result<MarkerTimes, ()> {
        marker_of(stored)
    }

    fn marker_document(&self, times: MarkerTimes) -> (Bytes, u64) {
        marker_document(times, self.policy.tag_ttl)
    }

    async fn clear_level(&self, prefix: &Key) {
        let policy = Policy { suppress_l2_errors: true, ..self.policy }.begun();
        // Failed calls are queued, and a final refusal is reported by the call that gets it.
        let _ = self.tags.clear_level(self.tag_call(&policy), &prefix.full).await;
    }

    fn marker_changed(&self, key: &Key, times: MarkerTimes) {
        let kind = if times.hard_at > 0 { Kind::Set } else { Kind::Expire };
        self.tags.changed(&key.full, kind, true);
    }
}
