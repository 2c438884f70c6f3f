//! Publishes the messages that wait in the outbox, and repeats what the bus did not take.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind};
use tokio::time::Instant;

use super::outbox::Outgoing;
use super::{Bus, BusEffects, UNKNOWN, under};
use crate::event::EventKind;
use crate::site::is_reserved;
use crate::stats::Counter;
use crate::timers::Ended;

/// A message that is published this much later than its change, in ms, is too late for the fills
/// that other nodes remember.
const LATE: u64 = 1_000;
/// A clear that is published later than this, in ms, is not repeated: it would also remove
/// everything that was stored since.
const TOO_LATE: u64 = 10_000;

/// The result of an attempt to publish everything that waits.
#[derive(PartialEq, Eq)]
enum Published {
    All,
    Failed,
}

impl Bus {
    /// Publishes messages as they are queued, and retries those that failed.
    pub(crate) async fn publish_forever(self: Arc<Self>, effects: impl BusEffects) {
        let mut backoff = self.republish.clone();
        loop {
            if self.publish_waiting(&effects).await == Published::All {
                backoff.reset();
                self.wake.notified().await;
            } else {
                tokio::select! {
                    () = backoff.pause() => {}
                    // Retry early only for a new link. A new message would make this a busy loop.
                    () = self.relinked() => {}
                }
            }
        }
    }

    async fn relinked(&self) {
        while self.linked.load(SeqCst) {
            self.wake.notified().await;
        }
        while !self.linked.load(SeqCst) {
            self.wake.notified().await;
        }
    }

    /// Publishes all waiting messages before the store ends, with retries while that fails.
    pub(crate) async fn flush(&self, effects: &impl BusEffects) {
        const PAUSE: Duration = Duration::from_millis(100);
        while self.publish_waiting(effects).await == Published::Failed {
            if self.timers.until(Instant::now() + PAUSE).await == Ended::WithRuntime {
                return;
            }
        }
    }

    async fn publish_waiting(&self, effects: &impl BusEffects) -> Published {
        loop {
            let Some(next) = self.outbox.lock().take() else { return Published::All };
            let keys: Vec<&str> = next.keys.iter().map(|(key, _)| &**key).collect();
            match self.publish(next.kind, &next.namespace, &keys).await {
                Ok(()) => self.was_published(next, effects),
                Err(Some(error)) if error.kind() == ErrorKind::TooLarge => self.split(next),
                Err(error) => {
                    self.was_not_published(next, error.as_ref());
                    return Published::Failed;
                }
            }
        }
    }

    fn was_published(&self, message: Outgoing, effects: &impl BusEffects) {
        if std::mem::take(&mut self.outbox.lock().is_failing) {
            tracing::info!(store = %self.site.name, driver = self.driver.name(),
                "publishing to the bus works again");
        }
        let keys = message.keys.len();
        tracing::debug!(store = %self.site.name, kind = message.kind.as_str(), keys,
            "bus message sent");
        self.site.record(Counter::BusPublished, || EventKind::BusPublished { keys });
        let late = self.site.clock.now().saturating_sub(message.since);
        if late <= LATE {
            return;
        }
        let Outgoing { kind, namespace, keys, at, .. } = message;
        let prefix = under(&namespace);
        let clear = at.filter(|_| late <= TOO_LATE).map(|at| (self.site.key(&prefix, ""), at));
        let keys = keys
            .iter()
            .map(|(name, at)| (self.site.key(&prefix, name), *at))
            .filter(|(key, at)| *at != UNKNOWN && !is_reserved(&key.full));
        effects.published_late(kind, clear.into_iter().chain(keys).collect());
    }

    /// Smaller messages take the place of one that is too large for the bus.
    fn split(&self, message: Outgoing) {
        let smaller = message.split();
        if smaller.is_empty() {
            tracing::error!(store = %self.site.name, driver = self.driver.name(),
                "the bus does not even take the smallest message: the other nodes are not told of \
                 changes; raise its limit for messages");
            let queued = self.outbox.lock().len();
            self.site.emit(|| EventKind::RecoveryDropped { queued });
        }
        self.outbox.lock().put_back(smaller);
    }

    fn was_not_published(&self, message: Outgoing, error: Option<&DriverError>) {
        let error = self.reason(error);
        let mut outbox = self.outbox.lock();
        if std::mem::replace(&mut outbox.is_failing, true) {
            tracing::debug!(store = %self.site.name, driver = self.driver.name(), error,
                "publishing to the bus failed again");
        } else {
            tracing::warn!(store = %self.site.name, driver = self.driver.name(), error,
                "publishing to the bus failed and will be repeated until it succeeds");
        }
        // Publishing the whole message again is harmless.
        outbox.put_back(vec![message]);
    }
}
