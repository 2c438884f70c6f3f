//! The bus: telling other processes what changed here, and hearing what changed there.

mod fills;
mod gap;
mod known;
mod outbox;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bentocache_driver::{BusEvent, BusStream, DriverError, DynBus, ErrorKind, NEVER, Topic};
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use self::fills::{Fill, Fills, Source};
use self::gap::{Gap, News};
use self::known::Known;
use self::outbox::{Outbox, Outgoing};
use super::tags::is_reserved;
use super::{Engine, Key, chain};
use crate::event::EventKind;
use crate::l2::{Budget, Heard, L2};
use crate::options::{BusDown, Policy, RecoveryOptions};
use crate::sync::Mutex;
use crate::tier::local::Reason;
use crate::timers::Ended;
use crate::wire::message::{self, Kind, Message, Sender};

/// How long one call of the driver may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest pause before publishing is tried again, in ms, before jitter.
const LONGEST_PAUSE: u64 = 3_000;
/// A message that is published this much later than its change comes too late for the fills that
/// other nodes remember, in ms.
const LATE: u64 = 1_000;
/// A clear that is told later than this is not made once more, in ms: it would also take everything
/// that was stored since.
const TOO_LATE: u64 = 10_000;
/// The time of a change that need not be made once more when it is told late.
const UNKNOWN: u64 = 0;
/// The namespaces of messages that nodes of this library send each other about the bus itself begin
/// like this. No cache uses them, so that others take such a message for one about no key of theirs.
const BETWEEN_NODES: &str = "___bc:bus:";
/// By such a message a node finds out whether it hears.
const PROBE: &str = "___bc:bus:probe:";

pub(crate) struct Bus {
    pub(crate) driver: Arc<dyn DynBus>,
    channel: String,
    sender: Sender,
    outbox: Mutex<Outbox>,
    /// There is something to publish, or publishing may work again.
    wake: Notify,
    retry_interval: u64,
    down: BusDown,
    /// Whether messages of other processes arrive.
    linked: AtomicBool,
    /// How often messages may have been missed; see [`Heard`].
    position: AtomicU64,
    probes: AtomicU64,
    /// The last probe of this node that came back.
    echo: watch::Sender<u64>,
    fills: Fills,
    known: Known,
    gap: Gap,
}

/// How an attempt to publish everything that waits ended.
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
            retry_interval: recovery.retry_interval,
            down,
            linked: AtomicBool::new(false),
            position: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            echo: watch::Sender::new(0),
            fills: Fills::default(),
            known: Known::default(),
            gap: Gap::default(),
        }
    }

    fn topic<'a>(&'a self, engine: &'a Engine) -> Topic<'a> {
        Topic::new(&self.channel, &engine.root)
    }

    /// Remembers what a factory is about to store, to take it back if an invalidation is on its way
    /// or was missed. Returns false if that is impossible: then it must not be stored.
    pub(crate) fn fills(&self, engine: &Engine, key: &Key, bytes: &Bytes, created_at: u64) -> bool {
        self.remember(engine, key, bytes, created_at, Source::Factory)
    }

    /// Remembers what is about to be stored later than it was set, as [`fills`](Self::fills).
    pub(crate) fn sets_late(
        &self,
        engine: &Engine,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
        hides_nothing: bool,
    ) {
        self.remember(engine, key, bytes, created_at, Source::Set { hides_nothing });
    }

    fn remember(
        &self,
        engine: &Engine,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
        source: Source,
    ) -> bool {
        let digests = std::iter::once(engine.digest(bytes)).collect();
        let at = engine.clock.now();
        self.fills.add(Fill { key: key.clone(), digests, created_at, source, at })
    }

    /// How many keys the other nodes have not been told of.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.lock().len()
    }

    /// Queues a message: the caller never waits for the bus.
    fn enqueue(&self, engine: &Engine, kind: Kind, namespace: &str, key: Option<(&str, u64)>) {
        let (at, now) = (engine.clock.epoch(), engine.clock.now());
        let merged = self.outbox.lock().push(kind, namespace, key, at, now);
        if merged > 0 {
            tracing::warn!(store = %engine.name, merged,
                "too many messages wait for the bus: those about one namespace became a clear of \
                 that namespace, which the other nodes drop from their first tier");
        }
        self.wake.notify_one();
    }

    /// Publishes what waits.
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
                // Repeating all of it does no harm.
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
            engine.emit(|| EventKind::BusPublished { keys: keys.len() });
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

    /// Publishes what waits before the store ends, and again while that fails.
    pub(crate) async fn flush(&self, engine: &Arc<Engine>) {
        while self.publish_waiting(engine).await == Published::Failed {
            if engine.pause(100).await == Ended::WithRuntime {
                return;
            }
        }
    }

    /// A fill is not in the second tier after all.
    pub(crate) fn is_unstored(&self, key: &Key, digest: u64) {
        self.fills.forget(key, digest);
    }

    fn heard(&self) -> Heard {
        self.linked.load(SeqCst).then(|| self.position.load(SeqCst))
    }

    /// A message of this node came back.
    fn came_back(&self, message: &Message) {
        let number = message.namespace.strip_prefix(PROBE);
        if let Some(probe) = number.and_then(|number| number.parse::<u64>().ok()) {
            self.echo.send_modify(|last| *last = probe.max(*last));
        }
    }
}

impl Engine {
    /// The position in the history of the bus.
    pub(crate) fn heard(&self) -> Heard {
        self.bus.as_ref().and_then(Bus::heard)
    }

    /// Proves that the messages of other nodes until now were heard: sends one that has to come
    /// back. A link that is dead without knowing it does not bring it back.
    pub(crate) async fn prove_heard(&self) -> Heard {
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

    /// A message came too late for the fills that other nodes remember. One of them may have stored
    /// something older over the invalidation: it is made once more.
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
            // What a node stores that knew nothing of a clear by levels is cleared too.
            if let Some(at) = at.filter(|_| is_soon && l2.can_clear()) {
                l2.repeat_invalidation(&engine.key(&prefix, ""), kind, at);
            }
            let keys: Vec<(Key, u64)> = keys
                .iter()
                .map(|(name, at)| (engine.key(&prefix, name), *at))
                .filter(|(key, at)| *at != UNKNOWN && !is_reserved(&key.full))
                .collect();
            let names: Vec<&Key> = keys.iter().map(|(key, _)| key).collect();
            let stored = match names.is_empty() {
                true => return,
                false => l2.read(&names, engine.policy.l2_hard_timeout).await,
            };
            for (i, (key, at)) in keys.iter().enumerate() {
                // Where nothing is stored, nothing can be older.
                if !matches!(&stored, Ok(stored) if stored[i].is_none()) {
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
        // That of a set is the time of its value, see `announce_set`.
        let at = if kind == Kind::Set { UNKNOWN } else { self.clock.epoch() };
        for key in keys {
            bus.known.changed(key, self.clock.now());
            bus.enqueue(self, kind, key.namespace(), Some((key.name(), at)));
        }
    }

    /// Announces a value that was created then, in ms since the epoch.
    pub(crate) fn announce_set(&self, key: &Key, created_at: u64, policy: &Policy) {
        let Some(bus) = self.bus.as_ref().filter(|_| !policy.skip_bus_notify) else { return };
        bus.known.changed(key, self.clock.now());
        bus.enqueue(self, Kind::Set, key.namespace(), Some((key.name(), created_at)));
    }

    pub(crate) fn announce_clear(&self, namespace: &str, policy: &Policy) {
        let Some(bus) = self.bus.as_ref().filter(|_| !policy.skip_bus_notify) else { return };
        bus.known.cleared(&under(namespace), self.clock.now());
        bus.enqueue(self, Kind::Clear, namespace, None);
    }

    /// Publishes messages as they come, and again those that failed.
    pub(crate) async fn publish_forever(self: Arc<Self>) {
        let Some(bus) = &self.bus else { return };
        let mut pause = bus.retry_interval;
        loop {
            if bus.publish_waiting(&self).await == Published::All {
                pause = bus.retry_interval;
                bus.wake.notified().await;
            } else {
                let jittered = pause.saturating_add(fastrand::u64(..=pause / 4));
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(jittered)) => {}
                    // Not a new message, which would make a busy loop of it: a new link.
                    () = self.relinked() => {}
                }
                pause = pause.saturating_add(pause / 2).min(bus.retry_interval.max(LONGEST_PAUSE));
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

    /// Hears what other processes say, and subscribes again when that ends.
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
            let pause = bus.retry_interval.min(1_000);
            tokio::time::sleep(Duration::from_millis(pause + fastrand::u64(..=pause / 4))).await;
            let subscribed = self.subscribe().await;
            stream = subscribed.inspect_err(|error| self.not_subscribed(error.as_ref())).ok();
        }
    }

    fn receive(self: &Arc<Self>, bus: &Bus, event: BusEvent) {
        match event {
            BusEvent::Message(bytes) => match message::decode(&bytes) {
                Ok(message) if message.sender == bus.sender => bus.came_back(&message),
                Ok(message) if message.namespace.starts_with(BETWEEN_NODES) => {
                    if let Some(news) = News::of(message) {
                        self.hear_news(bus, news);
                    }
                }
                Ok(message) => {
                    let keys = message.keys.len();
                    self.emit(|| EventKind::BusReceived { keys });
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
                    self.emit(|| EventKind::BusRejected);
                }
            },
            BusEvent::Changed(keys) => {
                let keys: Vec<_> =
                    keys.iter().filter_map(|key| key.strip_prefix(&*self.root)).collect();
                self.emit(|| EventKind::BusReceived { keys: keys.len() });
                let namespace = self.root.strip_suffix(':').unwrap_or(&self.root).to_owned();
                self.changed_elsewhere(bus, Kind::Set, &namespace, &keys);
            }
            BusEvent::AllChanged => {
                bus.position.fetch_add(1, SeqCst);
                bus.fills.gap(self.clock.now());
                bus.gap.begins();
                self.tags.doubt_all("");
                self.fences.invalidate_all();
                self.l1.iter().for_each(|local| local.distrust_all(Reason::Change));
                bus.gap.ends();
            }
            BusEvent::Lost => self.unlinked(bus),
            BusEvent::Restored => self.linked(bus),
            _ => {}
        }
    }

    /// Keys were changed by another process.
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
            bus.known.changed(key, now);
            let gone = self.fences.invalidate(key.hash, || {
                let local = self.l1.as_ref()?;
                if kind == Kind::Delete {
                    return local.remove(&key.full);
                }
                let entry = local.get(&key.full)?;
                entry.expire();
                entry.distrust();
                None
            });
            drop(gone);
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

    /// Everything under a namespace was removed by another process.
    fn cleared_elsewhere(self: &Arc<Self>, namespace: &str) {
        let prefix = under(namespace);
        // Now, for readers that are under way; the entries follow.
        self.fences.invalidate_all();
        self.tags.doubt_all(&prefix);
        self.cleared_level(&prefix);
        if let Some(l2) = &self.l2 {
            l2.heard_of_clear(&prefix);
        }
        if let Some(bus) = &self.bus {
            let now = self.clock.now();
            bus.known.cleared(&prefix, now);
            self.take_back_later(bus.fills.take_under(&prefix, now));
        }
        let engine = self.clone();
        self.spawn(async move { engine.clear_local(&prefix).await });
    }

    /// We may have written over what the message is about: removes what we wrote, if it is still
    /// there. What cannot be looked up is removed later.
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
                engine.distrust(&key);
            }
        });
    }

    fn unlinked(&self, bus: &Bus) {
        bus.fills.begin_gap(self.clock.now());
        bus.gap.begins();
        if bus.linked.swap(false, SeqCst) {
            tracing::warn!(store = %self.name, driver = bus.driver.name(),
                "the bus is down: changes of other processes may be missed");
            self.emit(|| EventKind::BusLost);
        }
        self.tags.told(false, self.clock.now());
        if let (Some(local), BusDown::CheckAfter(age)) = (&self.l1, bus.down) {
            local.check_after(crate::options::millis(age));
        }
    }

    fn linked(&self, bus: &Bus) {
        // Whatever is known from before may have been changed meanwhile.
        self.tags.told(true, self.clock.now());
        self.tags.doubt_all("");
        self.fences.invalidate_all();
        if let Some(local) = &self.l1 {
            local.distrust_all(Reason::Gap);
            local.check_after(NEVER);
        }
        bus.position.fetch_add(1, SeqCst);
        bus.fills.end_gap();
        bus.gap.ends();
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
