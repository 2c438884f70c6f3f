//! The bus: sends the changes of this process to other processes, and receives theirs.
//!
//! - this file: announcements, remembered fills, and the proof that messages arrive
//! - [`publish`]: publishes what waits in the [`outbox`]
//! - [`listen`]: receives messages, and follows the state of the link
//! - [`gap`]: asks other nodes about what was missed; they answer from [`last_changes`]
//! - [`fills`]: the values that this node stored recently

mod fills;
mod gap;
mod last_changes;
mod listen;
mod outbox;
mod publish;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bentocache_driver::kit::Backoff;
use bentocache_driver::{DriverError, DynBus, Topic};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

pub(crate) use self::fills::Fill;
use self::fills::{FillSource, Fills};
use self::last_changes::LastChanges;
use self::outbox::Outbox;
use crate::l2::BusPosition;
use crate::options::{RecoveryOptions, backoff};
use crate::site::{Key, Site, chain};
use crate::stats::{BusHealth, BusStats, Counter, Since};
use crate::sync::Mutex;
use crate::timers::Timers;
use crate::wire::message::{self, Kind, Sender};

/// The time limit of one driver call.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time of a change that need not be repeated when it is published late.
const UNKNOWN: u64 = 0;
/// Namespace prefix of the messages that nodes of this library send each other about the bus
/// itself. No cache uses it, so other readers take such a message for one about keys that they do
/// not have.
const BETWEEN_NODES: &str = "___bc:bus:";
/// A node sends such a message to prove that it receives messages.
const PROBE: &str = "___bc:bus:probe:";

/// What the rest of the engine does about the messages of other processes, and about the link.
pub(crate) trait BusEffects: Send + Sync {
    /// Another process changed these keys.
    fn changed_elsewhere(&self, kind: Kind, keys: &[Key]);

    /// Another process cleared everything under a prefix.
    fn cleared_elsewhere(&self, prefix: &str);

    /// This process stored these values, and may have overwritten changes of other processes.
    fn take_back(&self, ours: Vec<Fill>);

    /// Changes (with their times in ms since the epoch) were published too late for the fills that
    /// other nodes remember. One of them may have stored something older over the invalidation.
    fn published_late(&self, kind: Kind, changes: Vec<(Key, u64)>);

    /// Messages arrive from now on. Some may have been missed before.
    fn linked(&self);

    /// Messages do not arrive any more.
    fn unlinked(&self);

    /// Some messages may have been missed just now.
    fn may_have_missed(&self);

    /// Whatever waited for the bus may succeed now.
    fn bus_is_back(&self);
}

pub(crate) struct Bus {
    site: Site,
    driver: Arc<dyn DynBus>,
    timers: Timers,
    channel: String,
    sender: Sender,
    outbox: Mutex<Outbox>,
    /// Something waits to be published, or publishing may work again.
    wake: Notify,
    /// Before messages are published again.
    republish: Backoff,
    /// Before a subscription is made again. It does not grow: what is missed meanwhile is a gap.
    resubscribe: Backoff,
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
    /// Wakes the task that asks the other nodes: there may be values to ask about.
    ask: Notify,
    /// The other nodes must be told that this node is back.
    says_back: AtomicBool,
}

impl Bus {
    pub(crate) fn new(
        site: Site,
        driver: Arc<dyn DynBus>,
        recovery: RecoveryOptions,
        runtime: Handle,
    ) -> Self {
        let channel = match &*site.name {
            "" => "bentocache.notifications".to_owned(),
            store => format!("bentocache.notifications:{store}"),
        };
        let since = Since::new(false, site.clock.epoch());
        Self {
            site,
            driver,
            timers: Timers::new(runtime),
            channel,
            sender: Sender::random(),
            outbox: Mutex::new(Outbox::new(recovery.max_size, recovery.max_bytes)),
            wake: Notify::new(),
            republish: recovery.backoff(),
            resubscribe: backoff(recovery.retry_interval.min(1_000), Duration::ZERO),
            linked: AtomicBool::new(false),
            since,
            position: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            echo: watch::Sender::new(0),
            fills: Fills::default(),
            last_changes: LastChanges::default(),
            ask: Notify::new(),
            says_back: AtomicBool::new(false),
        }
    }

    /// The driver, for its shutdown.
    pub(crate) fn driver(&self) -> &dyn DynBus {
        &*self.driver
    }

    fn topic(&self) -> Topic<'_> {
        Topic::new(&self.channel, &self.site.root)
    }

    /// Remembers a value that a factory is about to store, so that it can be taken back if an
    /// invalidation is in transit or was missed. Returns false if there is no room; the value must
    /// not be stored then.
    pub(crate) fn fills(&self, key: &Key, bytes: &Bytes, created_at: u64) -> bool {
        self.remember(key, bytes, created_at, FillSource::Factory)
    }

    /// Remembers a value that is replayed later than it was set, as [`fills`](Self::fills).
    pub(crate) fn sets_late(&self, key: &Key, bytes: &Bytes, created_at: u64, hides_nothing: bool) {
        self.remember(key, bytes, created_at, FillSource::Set { hides_nothing });
    }

    /// Remembers another form of a stored value, which may have been invalidated by a message that
    /// is in transit. It is not taken back for a `set`, which may be the one of this very value.
    pub(crate) fn touches(&self, key: &Key, bytes: &Bytes, created_at: u64) {
        let source = FillSource::Set { hides_nothing: true };
        self.fills.add_form(self.fill(key, bytes, created_at, source));
    }

    fn remember(&self, key: &Key, bytes: &Bytes, created_at: u64, source: FillSource) -> bool {
        self.fills.add(self.fill(key, bytes, created_at, source))
    }

    fn fill(&self, key: &Key, bytes: &Bytes, created_at: u64, source: FillSource) -> Fill {
        let digests = std::iter::once(self.site.digest(bytes)).collect();
        let at = self.site.clock.now();
        Fill { key: key.clone(), digests, created_at, source, at }
    }

    /// Forgets a fill that is not in L2 after all.
    pub(crate) fn is_unstored(&self, key: &Key, digest: u64) {
        self.fills.forget(key, digest);
    }

    /// The statistics of the bus.
    pub(crate) fn stats(&self) -> BusStats {
        let sum = |counter| self.site.counters.sum(counter);
        let (outbox_length, lag) = self.backlog();
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

    pub(crate) fn health(&self) -> BusHealth {
        let (outbox_length, lag) = self.backlog();
        BusHealth {
            driver: self.driver.name(),
            is_linked: self.linked.load(SeqCst),
            since: self.since.time(),
            outbox_length,
            lag,
        }
    }

    /// The number of keys that wait to be published, and how long the oldest message has waited.
    fn backlog(&self) -> (usize, Duration) {
        let now = self.site.clock.now();
        let outbox = self.outbox.lock();
        let waited = outbox.waits_since().map_or(0, |since| now.saturating_sub(since));
        (outbox.len(), Duration::from_millis(waited))
    }

    /// The number of keys that the other nodes have not been told about.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.lock().len()
    }

    /// Announces changes of keys to the other nodes.
    pub(crate) fn announce_all<'a>(&self, kind: Kind, keys: impl Iterator<Item = &'a Key>) {
        // The time of a set is the creation time of its value; see `announce_set`.
        let at = if kind == Kind::Set { UNKNOWN } else { self.site.clock.epoch() };
        keys.for_each(|key| self.announce(kind, key, at));
    }

    /// Announces a value with this creation time, in ms since the epoch.
    pub(crate) fn announce_set(&self, key: &Key, created_at: u64) {
        self.announce(Kind::Set, key, created_at);
    }

    fn announce(&self, kind: Kind, key: &Key, at: u64) {
        self.last_changes.changed(key, self.site.clock.now());
        self.enqueue(kind, key.namespace(), Some((key.name(), at)));
    }

    /// Announces that a namespace was cleared.
    pub(crate) fn announce_clear(&self, namespace: &str) {
        self.last_changes.cleared(&under(namespace), self.site.clock.now());
        self.enqueue(Kind::Clear, namespace, None);
    }

    /// Queues a message: the caller never waits for the bus.
    fn enqueue(&self, kind: Kind, namespace: &str, key: Option<(&str, u64)>) {
        let (at, now) = (self.site.clock.epoch(), self.site.clock.now());
        let merged = self.outbox.lock().push(kind, namespace, key, at, now);
        if merged > 0 {
            tracing::warn!(store = %self.site.name, merged,
                "too many messages wait for the bus: those about one namespace became a clear of \
                 that namespace, which the other nodes drop from their L1");
        }
        self.wake.notify_one();
    }

    /// Publishes one message now. The error is the driver's, if it had one in time.
    async fn publish(
        &self,
        kind: Kind,
        namespace: &str,
        keys: &[&str],
    ) -> Result<(), Option<DriverError>> {
        for bytes in message::encode(&self.sender, kind, namespace, keys) {
            let publish = self.driver.publish(self.topic(), bytes);
            self.timers.within(PATIENCE, publish).await.ok_or(None)??;
        }
        Ok(())
    }

    /// Why a call failed. A call that is cut cannot say what it was waiting for; the driver can.
    fn reason(&self, error: Option<&DriverError>) -> String {
        match (error, self.driver.trouble()) {
            (Some(error), _) => chain(error).to_string(),
            (None, Some(trouble)) => format!("no answer within {PATIENCE:?}: {trouble}"),
            (None, None) => format!("no answer within {PATIENCE:?}"),
        }
    }

    /// The current position in the history of the bus.
    pub(crate) fn heard(&self) -> BusPosition {
        self.linked.load(SeqCst).then(|| self.position.load(SeqCst))
    }

    /// Proves that all messages published by other nodes until now were received: publishes a probe
    /// and waits for it. A link that is dead without the driver knowing does not return the probe.
    pub(crate) async fn prove_heard(&self) -> BusPosition {
        let before = self.heard()?;
        let probe = self.probes.fetch_add(1, SeqCst) + 1;
        let mut echo = self.echo.subscribe();
        let proof = async {
            self.publish(Kind::Set, &format!("{PROBE}{probe}"), &["k"]).await.ok()?;
            echo.wait_for(|last| *last >= probe).await.ok().map(drop)
        };
        self.timers.within(PATIENCE, pin!(proof)).await.flatten()?;
        self.heard().filter(|after| *after == before)
    }
}

/// The prefix of the keys of a namespace.
fn under(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!("{namespace}:") }
}
