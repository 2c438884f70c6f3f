//! The bus: telling other processes what changed here, and hearing what changed there.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bentocache_core::{BusEvent, BusStream, DynBus, ErrorKind, NEVER, Topic};
use bytes::Bytes;
use tokio::sync::Notify;

use super::tags::is_reserved;
use super::{Engine, Key, chain};
use crate::event::EventKind;
use crate::options::{BusDown, Policy};
use crate::sync::Mutex;
use crate::wire::message::{self, Kind, Sender};

/// For how long a process remembers what its factories stored in the second tier, in ms.
const REMEMBER_FILLS: u64 = 2_000;
/// How many of them at most.
const MOST_FILLS: usize = 10_000;
/// How many keys go into one message at most.
const MOST_KEYS: usize = 1_000;
/// How long one call of the driver may take.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Bus {
    pub(crate) driver: Arc<dyn DynBus>,
    channel: String,
    sender: Sender,
    outbox: Mutex<Outbox>,
    /// There is something to publish, or publishing may work again.
    wake: Notify,
    most_waiting: usize,
    retry_interval: u64,
    down: BusDown,
    /// Whether messages of other processes arrive.
    linked: AtomicBool,
    /// By the hash of the key.
    fills: Mutex<HashMap<u64, Fill>>,
}

#[derive(Default)]
struct Outbox {
    messages: VecDeque<Outgoing>,
    keys: usize,
}

/// Keys of one namespace to which the same happened.
struct Outgoing {
    kind: Kind,
    namespace: Box<str>,
    keys: Vec<Box<str>>,
}

/// What this process stored in the second tier of what it had not just been given.
struct Fill {
    key: Key,
    /// Of the bytes, which may be large.
    digest: u64,
    /// Of the entry, in ms since the epoch.
    created_at: u64,
    /// Whether it took only the place of what was older: no message about another value is meant.
    hides_nothing: bool,
    at: u64,
}

impl Bus {
    pub(crate) fn new(
        driver: Arc<dyn DynBus>,
        store: &str,
        recovery: crate::options::RecoveryOptions,
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
            outbox: Mutex::default(),
            wake: Notify::new(),
            most_waiting: recovery.max_size,
            retry_interval: recovery.retry_interval,
            down,
            linked: AtomicBool::new(false),
            fills: Mutex::default(),
        }
    }

    fn topic<'a>(&'a self, engine: &'a Engine) -> Topic<'a> {
        Topic::new(&self.channel, &engine.root)
    }

    /// Remembers what a factory stored, or what was stored later than it was set, to take it back
    /// if an invalidation is on its way.
    pub(crate) fn filled(
        &self,
        engine: &Engine,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
        hides_nothing: bool,
    ) {
        let now = engine.clock.now();
        let digest = engine.digest(bytes);
        let fill = Fill { key: key.clone(), digest, created_at, hides_nothing, at: now };
        let mut fills = self.fills.lock();
        if fills.len() >= MOST_FILLS {
            fills.retain(|_, fill| fill.at + REMEMBER_FILLS >= now);
        }
        if fills.len() < MOST_FILLS {
            fills.insert(key.hash, fill);
        }
    }

    fn take_fill(&self, key: &Key, kind: Kind, now: u64) -> Option<Fill> {
        let mut fills = self.fills.lock();
        if kind == Kind::Set && fills.get(&key.hash)?.hides_nothing {
            return None;
        }
        let fill = fills.remove(&key.hash)?;
        (fill.at + REMEMBER_FILLS >= now && fill.key.full == key.full).then_some(fill)
    }

    fn take_fills_under(&self, prefix: &str, now: u64) -> Vec<Fill> {
        let mut fills = self.fills.lock();
        let all = fills.extract_if(|_, fill| fill.key.full.starts_with(prefix));
        all.map(|(_, fill)| fill).filter(|fill| fill.at + REMEMBER_FILLS >= now).collect()
    }

    /// Queues a message: the caller never waits for the bus.
    fn enqueue(&self, engine: &Engine, kind: Kind, namespace: &str, key: Option<&str>) {
        let mut dropped = false;
        {
            let mut outbox = self.outbox.lock();
            match outbox.messages.back_mut() {
                Some(last)
                    if last.kind == kind
                        && *last.namespace == *namespace
                        && last.keys.len() < MOST_KEYS
                        && kind != Kind::Clear =>
                {
                    last.keys.extend(key.map(Into::into));
                }
                _ => outbox.messages.push_back(Outgoing {
                    kind,
                    namespace: namespace.into(),
                    keys: key.map(Into::into).into_iter().collect(),
                }),
            }
            outbox.keys += 1;
            while outbox.keys > self.most_waiting.max(MOST_KEYS)
                && let Some(oldest) = outbox.messages.pop_front()
            {
                outbox.keys -= oldest.keys.len().max(1);
                dropped = true;
            }
        }
        if dropped {
            tracing::warn!(store = %engine.name, "too many messages wait for the bus; the oldest were given up");
            let queued = self.most_waiting;
            engine.emit(|| EventKind::RecoveryDropped { queued });
        }
        self.wake.notify_one();
    }

    /// Publishes what waits; `false` when the bus does not take it.
    async fn publish_waiting(&self, engine: &Engine) -> bool {
        loop {
            let Some(next) = ({
                let mut outbox = self.outbox.lock();
                let next = outbox.messages.pop_front();
                outbox.keys -= next.as_ref().map_or(0, |next| next.keys.len().max(1));
                next
            }) else {
                return true;
            };
            let keys: Vec<&str> = next.keys.iter().map(|key| &**key).collect();
            for bytes in message::encode(&self.sender, next.kind, &next.namespace, &keys) {
                let publish = self.driver.publish(self.topic(engine), bytes);
                let error = match tokio::time::timeout(PATIENCE, publish).await {
                    Ok(Ok(())) => continue,
                    // It never will, and must not keep the others.
                    Ok(Err(error)) if error.kind() == ErrorKind::TooLarge => {
                        tracing::error!(store = %engine.name, driver = self.driver.name(),
                            error = %chain(&error), "a message is too large for the bus and was given up: \
                            others may keep what it is about until it expires");
                        let queued = self.outbox.lock().keys;
                        engine.emit(|| EventKind::RecoveryDropped { queued });
                        continue;
                    }
                    Ok(Err(error)) => chain(&error).to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                tracing::warn!(store = %engine.name, driver = self.driver.name(), error,
                    "publishing to the bus failed and will be repeated");
                // Repeating all of it does no harm.
                let mut outbox = self.outbox.lock();
                outbox.keys += next.keys.len().max(1);
                outbox.messages.push_front(next);
                return false;
            }
            engine.emit(|| EventKind::BusPublished { keys: keys.len() });
        }
    }

    /// Publishes what waits, once, before the store ends.
    pub(crate) async fn flush(&self, engine: &Engine) {
        self.publish_waiting(engine).await;
    }
}

impl Engine {
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
        for key in keys {
            bus.enqueue(self, kind, key.namespace(), Some(key.name()));
        }
    }

    pub(crate) fn announce_clear(&self, namespace: &str, policy: &Policy) {
        let Some(bus) = self.bus.as_ref().filter(|_| !policy.skip_bus_notify) else { return };
        bus.enqueue(self, Kind::Clear, namespace, None);
    }

    /// Publishes messages as they come, and again those that failed.
    pub(crate) async fn publish_forever(self: Arc<Self>) {
        let Some(bus) = &self.bus else { return };
        let mut pause = bus.retry_interval;
        loop {
            if bus.publish_waiting(&self).await {
                pause = bus.retry_interval;
                bus.wake.notified().await;
            } else {
                let jittered = pause.saturating_add(fastrand::u64(..=pause / 4));
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(jittered)) => {}
                    // Not a new message, which would make a busy loop of it: a new link.
                    () = self.relinked() => {}
                }
                pause = pause.saturating_add(pause / 2).min(bus.retry_interval.saturating_mul(15));
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

    /// The first subscription, which the start of the store waits for.
    pub(crate) async fn subscribe(&self) -> Option<BusStream> {
        let bus = self.bus.as_ref()?;
        let subscribe = bus.driver.subscribe(bus.topic(self));
        let error = match tokio::time::timeout(PATIENCE, subscribe).await {
            Ok(Ok(stream)) => {
                self.linked(bus);
                return Some(stream);
            }
            Ok(Err(error)) => chain(&error).to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::warn!(store = %self.name, driver = bus.driver.name(), error,
            "subscribing to the bus failed and will be repeated");
        None
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
                    self.heard(bus, event);
                }
                self.unlinked(bus);
            }
            let pause = bus.retry_interval.min(1_000);
            tokio::time::sleep(Duration::from_millis(pause + fastrand::u64(..=pause / 4))).await;
            stream = self.subscribe().await;
        }
    }

    fn heard(self: &Arc<Self>, bus: &Bus, event: BusEvent) {
        match event {
            BusEvent::Message(bytes) => match message::decode(&bytes) {
                Ok(message) if message.sender == bus.sender => {}
                Ok(message) => {
                    let keys = message.keys.len();
                    self.emit(|| EventKind::BusReceived { keys });
                    if message.kind == Kind::Clear {
                        self.cleared_elsewhere(message.namespace);
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
                self.tags.doubt_all("");
                self.fences.invalidate_all();
                self.l1.iter().for_each(crate::tier::local::Local::distrust_all);
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
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}:") };
        let keys: Vec<Key> = names.iter().map(|name| self.key(&prefix, name.as_ref())).collect();
        for key in &keys {
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
            self.recovery.doubt(&key.full, kind, self.clock.epoch(), self.policy.grace);
            if is_reserved(&key.full) {
                self.tags.changed(&key.full, self.l2.is_none().then(|| self.clock.epoch()));
            }
        }
        let now = self.clock.now();
        self.take_back_later(keys.iter().filter_map(|key| bus.take_fill(key, kind, now)).collect());
    }

    /// Everything under a namespace was removed by another process.
    fn cleared_elsewhere(self: &Arc<Self>, namespace: String) {
        let prefix = if namespace.is_empty() { String::new() } else { namespace + ":" };
        // Now, for readers that are under way; the entries follow.
        self.fences.invalidate_all();
        self.tags.doubt_all(&prefix);
        self.recovery.supersede_under(&prefix);
        if let Some(bus) = &self.bus {
            self.take_back_later(bus.take_fills_under(&prefix, self.clock.now()));
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
            if let Some(remote) = &engine.l2 {
                let limit = engine.policy.l2_hard_timeout;
                for Fill { key, digest, created_at, .. } in ours {
                    let get = engine.l2_call(remote, "get", limit, |driver| driver.get(&key.full));
                    match get.await {
                        Ok(Some(bytes)) if engine.digest(&bytes) == digest => {
                            engine.take_back(remote, &key, &bytes, created_at).await;
                        }
                        Ok(_) => {}
                        Err(_) => engine.recover_take_back(&key, digest, created_at),
                    }
                }
            }
        });
    }

    fn unlinked(&self, bus: &Bus) {
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
            local.distrust_all();
            local.check_after(NEVER);
        }
        if !bus.linked.swap(true, SeqCst) {
            tracing::info!(store = %self.name, driver = bus.driver.name(), "the bus is connected");
            self.emit(|| EventKind::BusRestored);
        }
        bus.wake.notify_one();
        self.recovery.kick();
    }
}

async fn next(stream: &mut BusStream) -> Option<BusEvent> {
    std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}
