//! The bus: sends the changes of this process to other processes, and applies theirs.

mod fills;
mod gap;
mod last_changes;
mod outbox;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bentocache_driver::kit::Backoff;
use bentocache_driver::{BusEvent, BusStream, DriverError, DynBus, ErrorKind, NEVER, Topic};
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use self::fills::{Fill, FillSource, Fills};
use self::gap::{Gap, GapMessage};
use self::last_changes::LastChanges;
use self::outbox::{Outbox, Outgoing};
use super::tags::is_reserved;
use super::{Engine, Key, chain};
use crate::event::EventKind;
use crate::l1::Reason;
use crate::l2::{Budget, BusPosition, L2};
use crate::options::{BusDown, Policy, RecoveryOptions, backoff};
use crate::stats::{BusHealth, BusStats, Counter, Counters, Since};
use crate::sync::Mutex;
use crate::timers::Ended;
use crate::wire::message::{self, Kind, Message, Sender};

/// The time limit of one driver call.
const PATIENCE: Duration = Duration::from_secs(1);
/// A message that is published this much later than its change, in ms, is too late for the fills
/// that other nodes remember.
const LATE: u64 = 1_000;
/// A clear that is published later than this, in ms, is not repeated: it would also remove
/// everything that was stored since.
const TOO_LATE: u64 = 10_000;
/// The time of a change that need not be repeated when it is published late.
const UNKNOWN: u64 = 0;
/// Namespace prefix of the messages that nodes of this library send each other about the bus
/// itself. No cache uses it, so other readers take such a message for one about keys that they do
/// not have.
const BETWEEN_NODES: &str = "___bc:bus:";
/// A node sends such a message to prove that it receives messages.
const PROBE: &str = "___bc:bus:probe:";

pub(crate) struct Bus {
    pub(crate) driver: Arc<dyn DynBus>,
    channel: String,
    sender: Sender,
    outbox: Mutex<Outbox>,
    /// Something waits to be published, or publishing may work again.
    wake: Notify,
    /// Before messages are published again.
    republish: Backoff,
    /// Before a subscription is made again. It does not grow: what is missed meanwhile is a gap.
    resubscribe: Backoff,
    down: BusDown,
    /// Whether messages of other processes arrive.
    linked: AtomicBool,
    since: Since,
    /// The number of times that messages may have been missed; see [`BusPosition`].
    position: AtomicU64,
    probes: AtomicU64,
    /// The number of this node's last probe that came back.
    echo: watch::Sender<u64>,
    fills: Fills,
    last_changes: LastChanges,
    gap: Gap,
}

/// The result of an attempt to publish everything that waits.
#[derive(PartialEq, Eq)]
enum Published {
    All,
    Failed,
}

impl Bus {
    pub(crate) fn new(
        driver: Arc<dyn DynBus>,
        store: &str,
        recovery: RecoveryOptions,
        down: BusDown,
        now: u64,
    ) -> Self {
        let channel = if store.is_empty() {
            "bentocache.notifications".to_owned()
        } else {
            format!("bentocache.notifications:{store}")
        };
        Self {
            driver,
            channel,
            sender: Sender::random(),
            outbox: Mutex::new(Outbox::new(recovery.max_size, recovery.max_bytes)),
            wake: Notify::new(),
            republish: recovery.backoff(),
            resubscribe: backoff(recovery.retry_interval.min(1_000), Duration::ZERO),
            down,
            linked: AtomicBool::new(false),
            since: Since::new(false, now),
            position: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            echo: watch::Sender::new(0),
            fills: Fills::default(),
            last_changes: LastChanges::default(),
            gap: Gap::default(),
        }
    }

    fn topic<'a>(&'a self, engine: &'a Engine) -> Topic<'a> {
        Topic::new(&self.channel, &engine.root)
    }

    /// Remembers a value that a factory is about to store, so that it can be taken back if an
    /// invalidation is in transit or was missed. Returns false if there is no room; the value must
    /// not be stored then.
    pub(crate) fn fills(&self, engine: &Engine, key: &Key, bytes: &Bytes, created_at: u64) -> bool {
        self.remember(engine, key, bytes, created_at, FillSource::Factory)
    }

    /// Remembers a value that is replayed later than it was set, as [`fills`](Self::fills).
    pub(crate) fn sets_late(
        &self,
        engine: &Engine,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
        hides_nothing: bool,
    ) {
        self.remember(engine, key, bytes, created_at, FillSource::Set { hides_nothing });
    }

    fn remember(
        &self,
        engine: &Engine,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
        source: FillSource,
    ) -> bool {
        let digests = std::iter::once(engine.digest(bytes)).collect();
        let at = engine.clock.now();
        self.fills.add(Fill { key: key.clone(), digests, created_at, source, at })
    }

    /// The number of keys that the other nodes have not been told about.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.lock().len()
    }

    /// The statistics of the bus at this time, by the cache's clock.
    pub(crate) fn stats(&self, counters: &Counters, now: u64) -> BusStats {
        let sum = |counter| counters.sum(counter);
        let (outbox_length, lag) = self.backlog(now);
        BusStats {
            is_linked: self.linked.load(SeqCst),
            losses: sum(Counter::BusLosses),
            published: sum(Counter::BusPublished),
            received: sum(Counter::BusReceived),
            rejected: sum(Counter::BusRejected),
            outbox_length,
            lag,
        }
    }

    /// The health of the bus at this time, by the cache's clock.
    pub(crate) fn health(&self, now: u64) -> BusHealth {
        let (outbox_length, lag) = self.backlog(now);
        BusHealth {
            driver: self.driver.name(),
            is_linked: self.linked.load(SeqCst),
            since: self.since.time(),
            outbox_length,
            lag,
        }
    }

    /// The number of keys that wait to be published, and how long the oldest message has waited.
    fn backlog(&self, now: u64) -> (usize, Duration) {
        let outbox = self.outbox.lock();
        let waited = outbox.waits_since().map_or(0, |since| now.saturating_sub(since));
        (outbox.len(), Duration::from_millis(waited))
    }

    /// Queues a message: the caller never waits for the bus.
    fn enqueue(&self, engine: &Engine, kind: Kind, namespace: &str, key: Option<(&str, u64)>) {
        let (at, now) = (engine.clock.epoch(), engine.clock.now());
        let merged = self.outbox.lock().push(kind, namespace, key, at, now);
        if merged > 0 {
            tracing::warn!(store = %engine.name, merged,
                "too many messages wait for the bus: those about one namespace became a clear of \
                 that namespace, which the other nodes drop from their L1");
        }
        self.wake.notify_one();
    }

    /// Publishes all waiting messages.
    async fn publish_waiting(&self, engine: &Arc<Engine>) -> Published {
        loop {
            let Some(next) = self.outbox.lock().take() else { return Published::All };
            let keys: Vec<&str> = next.keys.iter().map(|(key, _)| &**key).collect();
            let mut is_too_large = false;
            for bytes in message::encode(&self.sender, next.kind, &next.namespace, &keys) {
                let publish = self.driver.publish(self.topic(engine), bytes);
                let error = match engine.timers.within(PATIENCE, publish).await {
                    Some(Ok(())) => continue,
                    Some(Err(error)) if error.kind() == ErrorKind::TooLarge => {
                        is_too_large = true;
                        break;
                    }
                    Some(Err(error)) => chain(&error).to_string(),
                    None => self.no_answer(),
                };
                let mut outbox = self.outbox.lock();
                if std::mem::replace(&mut outbox.is_failing, true) {
                    tracing::debug!(store = %engine.name, driver = self.driver.name(), error,
                        "publishing to the bus failed again");
                } else {
                    tracing::warn!(store = %engine.name, driver = self.driver.name(), error,
                        "publishing to the bus failed and will be repeated until it succeeds");
                }
                // Publishing the whole message again is harmless.
                outbox.put_back(vec![next]);
                return Published::Failed;
            }
            if is_too_large {
                let smaller = next.split();
                if smaller.is_empty() {
                    tracing::error!(store = %engine.name, driver = self.driver.name(),
                        "the bus does not even take the smallest message: the other nodes are not \
                         told of changes; raise its limit for messages");
                    let queued = self.outbox.lock().len();
                    engine.emit(|| EventKind::RecoveryDropped { queued });
                }
                self.outbox.lock().put_back(smaller);
                continue;
            }
            if std::mem::take(&mut self.outbox.lock().is_failing) {
                tracing::info!(store = %engine.name, driver = self.driver.name(),
                    "publishing to the bus works again");
            }
            engine.record(Counter::BusPublished, || EventKind::BusPublished { keys: keys.len() });
            if engine.clock.now().saturating_sub(next.since) > LATE {
                engine.published_late(next);
            }
        }
    }

    /// A call that is cut cannot say what it was waiting for; the driver can.
    fn no_answer(&self) -> String {
        match self.driver.trouble() {
            Some(trouble) => format!("no answer within {PATIENCE:?}: {trouble}"),
            None => format!("no answer within {PATIENCE:?}"),
        }
    }

    /// Publishes all waiting messages before the store ends, with retries while that fails.
    pub(crate) async fn flush(&self, engine: &Arc<Engine>) {
        while self.publish_waiting(engine).await == Published::Failed {
            if engine.pause(100).await == Ended::WithRuntime {
                return;
            }
        }
    }

    /// Forgets a fill that is not in L2 after all.
    pub(crate) fn is_unstored(&self, key: &Key, digest: u64) {
        self.fills.forget(key, digest);
    }

    fn heard(&self) -> BusPosition {
        self.linked.load(SeqCst).then(|| self.position.load(SeqCst))
    }

    /// Handles a message that this node sent itself.
    fn came_back(&self, message: &Message) {
        let number = message.namespace.strip_prefix(PROBE);
        if let Some(probe) = number.and_then(|number| number.parse::<u64>().ok()) {
            self.echo.send_modify(|last| *last = probe.max(*last));
        }
    }
}

impl Engine {
    /// The current position in the history of the bus.
    pub(crate) fn heard(&self) -> BusPosition {
        self.bus.as_ref().and_then(Bus::heard)
    }

    /// Proves that all messages published by other nodes until now were received: publishes a probe
    /// and waits for it. A link that is dead without the driver knowing does not return the probe.
    pub(crate) async fn prove_heard(&self) -> BusPosition {
        let bus = self.bus.as_ref()?;
        let before = bus.heard()?;
        let probe = bus.probes.fetch_add(1, SeqCst) + 1;
        let mut echo = bus.echo.subscribe();
        let proof = async {
            let namespace = format!("{PROBE}{probe}");
            for bytes in message::encode(&bus.sender, Kind::Set, &namespace, &["k"]) {
                bus.driver.publish(bus.topic(self), bytes).await.ok()?;
            }
            echo.wait_for(|last| *last >= probe).await.ok()?;
            Some(())
        };
        self.timers.within(PATIENCE, pin!(proof)).await.flatten()?;
        bus.heard().filter(|after| *after == before)
    }

    /// A message was published too late for the fills that other nodes remember. One of them may
    /// have stored something older over the invalidation, so the invalidation is repeated.
    fn published_late(self: &Arc<Self>, message: Outgoing) {
        if self.l2.is_none() {
            return;
        }
        let engine = self.clone();
        self.spawn(async move {
            let Some(l2) = &engine.l2 else { return };
            let Outgoing { kind, namespace, keys, at, since } = message;
            let prefix = under(&namespace);
            let is_soon = engine.clock.now().saturating_sub(since) <= TOO_LATE;
            // In a store that clears by levels, the marker also invalidates values of nodes that
            // did not know of the clear.
            if let Some(at) = at.filter(|_| is_soon && l2.can_clear()) {
                l2.repeat_invalidation(&engine.key(&prefix, ""), kind, at);
            }
            let keys: Vec<(Key, u64)> = keys
                .iter()
                .map(|(name, at)| (engine.key(&prefix, name), *at))
                .filter(|(key, at)| *at != UNKNOWN && !is_reserved(&key.full))
                .collect();
            let names: Vec<&Key> = keys.iter().map(|(key, _)| key).collect();
            let stored = l2.read_each(&names, engine.policy.l2_hard_timeout).await;
            for ((key, at), stored) in keys.iter().zip(stored) {
                // If nothing is stored, there is nothing older to remove.
                if !matches!(stored, Ok(None)) {
                    l2.repeat_invalidation(key, kind, *at);
                }
            }
        });
    }

    pub(crate) fn announce(&self, kind: Kind, key: &Key, policy: &Policy) {
        self.announce_all(kind, std::iter::once(key), policy);
    }

    pub(crate) fn announce_all<'a>(
        &self,
        kind: Kind,
        keys: impl Iterator<Item = &'a Key>,
        policy: &Policy,
    ) {
        let Some(bus) = self.bus.as_ref().filter(|_| !policy.skip_bus_notify) else { return };
        // The time of a set is the creation time of its value; see `announce_set`.
        let at = if kind == Kind::Set { UNKNOWN } else { self.clock.epoch() };
        for key in keys {
            bus.last_changes.changed(key, self.clock.now());
            bus.enqueue(self, kind, key.namespace(), Some((key.name(), at)));
        }
    }

    /// Announces a value with this creation time, in ms since the epoch.
    pub(crate) fn announce_set(&self, key: &Key, created_at: u64, policy: &Policy) {
        let Some(bus) = self.bus.as_ref().filter(|_| !policy.skip_bus_notify) else { return };
        bus.last_changes.changed(key, self.clock.now());
        bus.enqueue(self, Kind::Set, key.namespace(), Some((key.name(), created_at)));
    }

    pub(crate) fn announce_clear(&self, namespace: &str, policy: &Policy) {
        let Some(bus) = self.bus.as_ref().filter(|_| !policy.skip_bus_notify) else { return };
        bus.last_changes.cleared(&under(namespace), self.clock.now());
        bus.enqueue(self, Kind::Clear, namespace, None);
    }

    /// Publishes messages as they are queued, and retries those that failed.
    pub(crate) async fn publish_forever(self: Arc<Self>) {
        let Some(bus) = &self.bus else { return };
        let mut backoff = bus.republish.clone();
        loop {
            if bus.publish_waiting(&self).await == Published::All {
                backoff.reset();
                bus.wake.notified().await;
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
        let Some(bus) = &self.bus else { return };
        while bus.linked.load(SeqCst) {
            bus.wake.notified().await;
        }
        while !bus.linked.load(SeqCst) {
            bus.wake.notified().await;
        }
    }

    /// Subscribes, within a time that the start of the store can wait. The error is the driver's, if it
    /// had one in that time.
    pub(crate) async fn subscribe(&self) -> Result<BusStream, Option<DriverError>> {
        let bus = self.bus.as_ref().ok_or(None)?;
        let subscribe = bus.driver.subscribe(bus.topic(self));
        let stream = tokio::time::timeout(PATIENCE, subscribe).await.map_err(|_| None)??;
        self.linked(bus);
        Ok(stream)
    }

    /// There is no subscription, for now.
    pub(crate) fn not_subscribed(&self, error: Option<&DriverError>) {
        let Some(bus) = &self.bus else { return };
        let error = error.map_or_else(|| bus.no_answer(), |error| chain(error).to_string());
        tracing::warn!(store = %self.name, driver = bus.driver.name(), error,
            "subscribing to the bus failed and will be repeated");
    }

    /// Receives messages of other processes, and subscribes again when the stream ends.
    pub(crate) async fn listen_forever(self: Arc<Self>, mut stream: Option<BusStream>) {
        let Some(bus) = &self.bus else { return };
        if stream.is_none() {
            self.unlinked(bus);
        }
        loop {
            if let Some(stream) = &mut stream {
                while let Some(event) = next(stream).await {
                    self.receive(bus, event);
                }
                self.unlinked(bus);
            }
            bus.resubscribe.clone().pause().await;
            let subscribed = self.subscribe().await;
            stream = subscribed.inspect_err(|error| self.not_subscribed(error.as_ref())).ok();
        }
    }

    fn receive(self: &Arc<Self>, bus: &Bus, event: BusEvent) {
        match event {
            BusEvent::Message(bytes) => match message::decode(&bytes) {
                Ok(message) if message.sender == bus.sender => bus.came_back(&message),
                Ok(message) if message.namespace.starts_with(BETWEEN_NODES) => {
                    if let Some(message) = GapMessage::of(message) {
                        self.receive_gap_message(bus, message);
                    }
                }
                Ok(message) => {
                    let keys = message.keys.len();
                    self.record(Counter::BusReceived, || EventKind::BusReceived { keys });
                    if message.kind == Kind::Clear {
                        self.cleared_elsewhere(&message.namespace);
                    } else {
                        self.changed_elsewhere(
                            bus,
                            message.kind,
                            &message.namespace,
                            &message.keys,
                        );
                    }
                }
                Err(malformed) => {
                    tracing::debug!(store = %self.name, reason = malformed.reason(),
                        "a message on the bus was ignored");
                    self.record(Counter::BusRejected, || EventKind::BusRejected);
                }
            },
            BusEvent::Changed(keys) => {
                let keys: Vec<_> =
                    keys.iter().filter_map(|key| key.strip_prefix(&*self.root)).collect();
                self.record(Counter::BusReceived, || EventKind::BusReceived { keys: keys.len() });
                let namespace = self.root.strip_suffix(':').unwrap_or(&self.root).to_owned();
                self.changed_elsewhere(bus, Kind::Set, &namespace, &keys);
            }
            BusEvent::AllChanged => {
                bus.position.fetch_add(1, SeqCst);
                bus.fills.gap(self.clock.now());
                bus.gap.begins();
                self.tags.mark_all_doubtful("");
                self.l1.mark_all_unverified(Reason::Change);
                bus.gap.ends();
            }
            BusEvent::Lost => self.unlinked(bus),
            BusEvent::Restored => self.linked(bus),
            _ => {}
        }
    }

    /// Applies a change of keys by another process.
    fn changed_elsewhere<S: AsRef<str>>(
        self: &Arc<Self>,
        bus: &Bus,
        kind: Kind,
        namespace: &str,
        names: &[S],
    ) {
        let prefix = under(namespace);
        let keys: Vec<Key> = names.iter().map(|name| self.key(&prefix, name.as_ref())).collect();
        let now = self.clock.now();
        for key in &keys {
            bus.last_changes.changed(key, now);
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
                self.tags.changed(&key.full, self.l2.is_none().then(|| self.clock.epoch()));
            }
        }
        self.take_back_later(
            keys.iter().filter_map(|key| bus.fills.take(key, kind, now)).collect(),
        );
    }

    /// Applies a clear of a namespace by another process.
    fn cleared_elsewhere(self: &Arc<Self>, namespace: &str) {
        let prefix = under(namespace);
        // Fences first, for readers in progress. The entries follow in a task.
        self.l1.invalidate_all();
        self.tags.mark_all_doubtful(&prefix);
        self.cleared_level(&prefix);
        if let Some(l2) = &self.l2 {
            l2.heard_of_clear(&prefix);
        }
        if let Some(bus) = &self.bus {
            let now = self.clock.now();
            bus.last_changes.cleared(&prefix, now);
            self.take_back_later(bus.fills.take_under(&prefix, now));
        }
        let engine = self.clone();
        self.spawn(async move { engine.clear_local(&prefix).await });
    }

    /// This node may have overwritten the change that a message reports: removes the values that it
    /// wrote, if they are still stored. Removals that fail are queued.
    fn take_back_later(self: &Arc<Self>, ours: Vec<Fill>) {
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

    fn unlinked(&self, bus: &Bus) {
        bus.fills.begin_gap(self.clock.now());
        bus.gap.begins();
        bus.since.set(false, || self.clock.epoch());
        if bus.linked.swap(false, SeqCst) {
            tracing::warn!(store = %self.name, driver = bus.driver.name(),
                "the bus is down: changes of other processes may be missed");
            self.record(Counter::BusLosses, || EventKind::BusLost);
        }
        self.tags.set_bus_reports(false, self.clock.now());
        if let BusDown::CheckAfter(age) = bus.down {
            self.l1.check_after(crate::options::millis(age));
        }
    }

    fn linked(&self, bus: &Bus) {
        // Tags and entries known from before may have changed during the gap.
        self.tags.set_bus_reports(true, self.clock.now());
        self.tags.mark_all_doubtful("");
        self.l1.mark_all_unverified(Reason::Gap);
        self.l1.check_after(NEVER);
        bus.position.fetch_add(1, SeqCst);
        bus.fills.end_gap();
        bus.gap.ends();
        bus.since.set(true, || self.clock.epoch());
        if !bus.linked.swap(true, SeqCst) {
            tracing::info!(store = %self.name, driver = bus.driver.name(), "the bus is connected");
            self.emit(|| EventKind::BusRestored);
        }
        bus.wake.notify_one();
        self.l2.iter().for_each(L2::kick);
    }
}

/// The prefix of the keys of a namespace.
fn under(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!("{namespace}:") }
}

async fn next(stream: &mut BusStream) -> Option<BusEvent> {
    std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}
