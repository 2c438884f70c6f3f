//! Receives the messages of other processes, and follows the state of the link.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bentocache_driver::{BusEvent, BusStream, DriverError};

use super::gap::GapMessage;
use super::{BETWEEN_NODES, Bus, BusEffects, PATIENCE, PROBE, under};
use crate::event::EventKind;
use crate::site::Key;
use crate::stats::Counter;
use crate::wire::message::{self, Kind, Message};

impl Bus {
    /// Subscribes, within a time that the start of the store can wait. The error is the driver's,
    /// if it had one in that time.
    pub(crate) async fn subscribe(
        &self,
        effects: &impl BusEffects,
    ) -> Result<BusStream, Option<DriverError>> {
        let subscribe = self.driver.subscribe(self.topic());
        let stream = tokio::time::timeout(PATIENCE, subscribe).await.map_err(|_| None)??;
        self.linked(effects);
        Ok(stream)
    }

    /// There is no subscription, for now.
    pub(crate) fn not_subscribed(&self, error: Option<&DriverError>) {
        tracing::warn!(store = %self.site.name, driver = self.driver.name(),
            error = self.reason(error), "subscribing to the bus failed and will be repeated");
    }

    /// Receives messages of other processes, and subscribes again when the stream ends.
    pub(crate) async fn listen_forever(
        self: Arc<Self>,
        mut stream: Option<BusStream>,
        effects: impl BusEffects,
    ) {
        if stream.is_none() {
            self.unlinked(&effects);
        }
        loop {
            if let Some(stream) = &mut stream {
                while let Some(event) = next(stream).await {
                    self.receive(event, &effects);
                }
                self.unlinked(&effects);
            }
            self.resubscribe.clone().pause().await;
            let subscribed = self.subscribe(&effects).await;
            stream = subscribed.inspect_err(|error| self.not_subscribed(error.as_ref())).ok();
        }
    }

    fn receive(&self, event: BusEvent, effects: &impl BusEffects) {
        match event {
            BusEvent::Message(bytes) => match message::decode(&bytes) {
                Ok(message) => self.receive_message(message, effects),
                Err(malformed) => {
                    tracing::debug!(store = %self.site.name, reason = malformed.reason(),
                        "a message on the bus was ignored");
                    self.site.record(Counter::BusRejected, || EventKind::BusRejected);
                }
            },
            BusEvent::Changed(keys) => {
                let root = &*self.site.root;
                let names: Vec<_> = keys.iter().filter_map(|key| key.strip_prefix(root)).collect();
                tracing::debug!(store = %self.site.name, kind = "changed", keys = names.len(),
                    "bus message received");
                self.site
                    .record(Counter::BusReceived, || EventKind::BusReceived { keys: names.len() });
                self.changed_elsewhere(Kind::Set, root, &names, effects);
            }
            BusEvent::AllChanged => {
                self.position.fetch_add(1, SeqCst);
                self.fills.gap(self.site.clock.now());
                self.gap_begins();
                effects.may_have_missed();
                self.gap_ends();
            }
            BusEvent::Lost => self.unlinked(effects),
            BusEvent::Restored => self.linked(effects),
            _ => {}
        }
    }

    fn receive_message(&self, message: Message, effects: &impl BusEffects) {
        let namespace = &*message.namespace;
        if message.sender == self.sender {
            self.came_back(namespace);
        } else if namespace.starts_with(BETWEEN_NODES) {
            if let Some(message) = GapMessage::of(message) {
                self.receive_gap_message(message, effects);
            }
        } else {
            let keys = message.keys.len();
            tracing::debug!(store = %self.site.name, kind = message.kind.as_str(), keys,
                "bus message received");
            self.site.record(Counter::BusReceived, || EventKind::BusReceived { keys });
            if message.kind == Kind::Clear {
                self.cleared_elsewhere(&under(namespace), effects);
            } else {
                self.changed_elsewhere(message.kind, &under(namespace), &message.keys, effects);
            }
        }
    }

    /// Handles a message that this node sent itself.
    fn came_back(&self, namespace: &str) {
        let number = namespace.strip_prefix(PROBE);
        if let Some(probe) = number.and_then(|number| number.parse::<u64>().ok()) {
            self.echo.send_modify(|last| *last = probe.max(*last));
        }
    }

    fn changed_elsewhere<S: AsRef<str>>(
        &self,
        kind: Kind,
        prefix: &str,
        names: &[S],
        effects: &impl BusEffects,
    ) {
        let keys: Vec<Key> =
            names.iter().map(|name| self.site.key(prefix, name.as_ref())).collect();
        let now = self.site.clock.now();
        keys.iter().for_each(|key| self.last_changes.changed(key, now));
        effects.changed_elsewhere(kind, &keys);
        let ours = keys.iter().filter_map(|key| self.fills.take(key, kind, now));
        effects.take_back(ours.collect());
    }

    fn cleared_elsewhere(&self, prefix: &str, effects: &impl BusEffects) {
        effects.cleared_elsewhere(prefix);
        let now = self.site.clock.now();
        self.last_changes.cleared(prefix, now);
        effects.take_back(self.fills.take_under(prefix, now));
    }

    fn unlinked(&self, effects: &impl BusEffects) {
        self.fills.begin_gap(self.site.clock.now());
        self.gap_begins();
        self.since.set(false, || self.site.clock.epoch());
        if self.linked.swap(false, SeqCst) {
            tracing::warn!(store = %self.site.name, driver = self.driver.name(),
                "the bus is down: changes of other processes may be missed");
            self.site.record(Counter::BusLosses, || EventKind::BusLost);
        }
        effects.unlinked();
    }

    fn linked(&self, effects: &impl BusEffects) {
        effects.linked();
        self.position.fetch_add(1, SeqCst);
        self.fills.end_gap();
        self.gap_ends();
        self.since.set(true, || self.site.clock.epoch());
        if !self.linked.swap(true, SeqCst) {
            tracing::info!(store = %self.site.name, driver = self.driver.name(),
                "the bus is connected");
            self.site.emit(|| EventKind::BusRestored);
        }
        self.wake.notify_one();
        effects.bus_is_back();
    }
}

async fn next(stream: &mut BusStream) -> Option<BusEvent> {
    std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}
