//! Sliding values: tells L2 that they are used.

use std::sync::Arc;

use super::Engine;
use crate::join::join_all;
use crate::l1::Use;
use crate::l2::Budget;

/// The number of keys of which L2 is told at the same time.
const WIDTH: usize = 32;

impl Engine {
    /// Extends the expiry of values in L2 that were used.
    pub(super) async fn tell_of_uses_forever(self: Arc<Self>) {
        loop {
            self.l1.uses.wake.notified().await;
            let uses = self.l1.uses.take(self.clock.now(), |key| self.hash(key));
            for some in uses.chunks(WIDTH) {
                let tell = some.iter().map(|one| self.tell_of_use(one));
                join_all(tell.collect()).await;
            }
        }
    }

    async fn tell_of_use(&self, one: &Use) {
        let Some(l2) = &self.l2 else { return };
        let key = self.key(&self.root, &one.key);
        let budget = Budget::new(self.policy.l2_hard_timeout);
        let told = l2.extend(&key, one.created_at, one.idle, &budget).await;
        let sliding = self.l1.get(&key).filter(|entry| entry.created_at() == one.created_at);
        let now = self.clock.now();
        if told.is_err() {
            // L2 is told at a later use.
            self.l1.uses.forget(self.hash(&one.key));
            if let Some(sliding) = sliding.as_ref().and_then(|entry| entry.sliding()) {
                sliding.note_untold(now);
            }
        }
    }
}
