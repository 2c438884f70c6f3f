//! What the tests of the cache share: nodes on drivers in memory that fail and wait on demand, and
//! a recorder of events. Time is tokio's, so a test with a paused clock decides when it passes.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bentocache::{
    BentoCache, Builder, Cache, Error, Event, EventKind, InProcessBus, KeyRing, Memory, Observer,
    Store, Tier, TimeSource, TokioTime,
};
use bentocache_testkit::{Chaos, ChaosBus, ChaosL2, MapL2};
use serde_json::Value as Json;

/// What the processes of a deployment share.
#[derive(Clone, Default)]
pub struct World {
    pub l2: MapL2,
    pub bus: InProcessBus,
    /// One for all: processes agree on the time.
    pub clock: SharedTime,
    tiers: Tiers,
    is_encrypted: bool,
}

/// [`TokioTime`], shared by the nodes of a world.
#[derive(Clone, Default)]
pub struct SharedTime(Arc<TokioTime>);

impl TimeSource for SharedTime {
    fn monotonic_ms(&self) -> u64 {
        self.0.monotonic_ms()
    }

    fn epoch_ms(&self) -> u64 {
        self.0.epoch_ms()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Tiers {
    L1,
    L2,
    #[default]
    BothNoBus,
    All,
}

impl World {
    /// Nodes with both tiers and a bus.
    pub fn new() -> Self {
        Self { tiers: Tiers::All, ..Self::default() }
    }

    /// Nodes with both tiers and no bus.
    pub fn without_bus() -> Self {
        Self { tiers: Tiers::BothNoBus, ..Self::default() }
    }

    /// The same with an L2 that cannot clear by prefix.
    #[must_use]
    pub fn without_clear(self) -> Self {
        Self { l2: self.l2.clone().without_clear(), ..self }
    }

    /// The same with an encrypted L2.
    #[must_use]
    pub fn encrypted(self) -> Self {
        Self { is_encrypted: true, ..self }
    }

    /// Nodes with a memory only.
    pub fn only_l1() -> Self {
        Self { tiers: Tiers::L1, ..Self::default() }
    }

    /// Nodes with an L2 only.
    pub fn only_l2() -> Self {
        Self { tiers: Tiers::L2, ..Self::default() }
    }

    /// A process of its own, with no options set.
    pub async fn node(&self) -> Node {
        self.node_with(|builder| builder, |store| store).await
    }

    /// A process of its own, whose store has these options.
    pub async fn node_where(&self, options: impl FnOnce(Store) -> Store) -> Node {
        self.node_with(|builder| builder, options).await
    }

    /// A process of its own: `global` sets options of the cache, `own` those of its store, `s`.
    pub async fn node_with(
        &self,
        global: impl FnOnce(Builder) -> Builder,
        own: impl FnOnce(Store) -> Store,
    ) -> Node {
        let l2 = ChaosL2::new(self.l2.clone());
        let bus = ChaosBus::new(self.bus.clone());
        let (l2_chaos, bus_chaos) = (l2.chaos(), bus.chaos());
        let mut store = Store::new();
        if self.tiers != Tiers::L2 {
            store = store.l1(Memory::new());
        }
        if self.tiers != Tiers::L1 {
            store = store.l2(l2);
        }
        if self.tiers == Tiers::All {
            store = store.bus(bus);
        }
        if self.is_encrypted {
            store = store.encryption(KeyRing::new(1, [1; 32]));
        }
        let seen = Seen::default();
        let builder = BentoCache::builder()
            .clock(self.clock.clone())
            .observer(seen.clone())
            .store("s", own(store));
        let cache = global(builder).build().await.unwrap();
        l2_chaos.reset_calls();
        bus_chaos.reset_calls();
        seen.take();
        Node { cache, l2: l2_chaos, bus: bus_chaos, seen, map: self.l2.clone() }
    }
}

/// One process. Derefs to its cache.
pub struct Node {
    pub cache: BentoCache,
    /// Faults and calls of its way to L2; the counts start after the build.
    pub l2: Chaos,
    /// Faults and calls of its way to the bus.
    pub bus: Chaos,
    /// The events so far.
    pub seen: Seen,
    /// What is in L2, behind the cache's back.
    pub map: MapL2,
}

impl std::ops::Deref for Node {
    type Target = BentoCache;

    fn deref(&self) -> &BentoCache {
        &self.cache
    }
}

impl Node {
    /// The document under the key in L2.
    pub fn document(&self, key: &str) -> Option<Json> {
        let bytes = self.map.peek(&format!("bentocache:{key}"))?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// For how long the value under the key was to be fresh, in ms, and its whole time in the
    /// L2, as the document there says; none forever.
    pub fn life(&self, key: &str) -> (Option<u64>, Option<u64>) {
        let document = self.document(key).unwrap();
        let created_at = document["createdAt"].as_u64().unwrap();
        let span = |field| document[field].as_u64().map(|end: u64| end - created_at);
        (span("logicalExpiration"), span("staleUntil"))
    }

    /// What is left of the key's time in L2.
    pub fn remaining(&self, key: &str) -> Option<Duration> {
        self.map.remaining(&format!("bentocache:{key}"))
    }

    /// `get_or_set` with a factory that gives `value`.
    pub async fn fill(&self, key: &str, value: u32) -> u32 {
        fill(&self.cache, key, value).await
    }
}

/// `get_or_set` with a factory that succeeds.
pub async fn fill(cache: &Cache, key: &str, value: u32) -> u32 {
    cache.get_or_set(key, move |_| async move { Ok::<_, Error>(value) }).await.unwrap()
}

/// `get_or_set` with a factory that fails.
pub async fn fail(cache: &Cache, key: &str) -> Result<u32, Error> {
    cache.get_or_set(key, |_| async { Err::<u32, _>("the source is down") }).await
}

/// `get` that has to work.
pub async fn get(cache: &Cache, key: &str) -> Option<u32> {
    cache.get(key).await.unwrap()
}

/// `get` that takes a stale value.
pub async fn get_stale(cache: &Cache, key: &str) -> Option<u32> {
    cache.get(key).grace("1h").await.unwrap()
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Lets that much of the (paused) time pass, with everything that happens meanwhile.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Jumps ahead by that much: what should happen meanwhile happens afterwards, once.
pub async fn leap(time: Duration) {
    tokio::time::advance(time).await;
    settle().await;
}

/// Lets whatever is ready run, the delivery of messages between nodes included.
pub async fn settle() {
    tokio::time::sleep(ms(5)).await;
}

/// Counts the runs of a factory.
#[derive(Clone, Default, Debug)]
pub struct Runs(Arc<AtomicUsize>);

impl Runs {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one; returns how many there are now.
    pub fn count(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub fn so_far(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// Records the events of a node as short texts such as `hit l1 a`, `graced l2 a`, `miss a`.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Event<'static>>>>);

impl Observer for Seen {
    fn observe(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(event.clone().into_owned());
    }
}

impl Seen {
    /// The events since the last call.
    pub fn take(&self) -> Vec<Event<'static>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// The events since the last call, as texts.
    pub fn texts(&self) -> Vec<String> {
        self.take().iter().map(|event| text(&event.kind)).collect()
    }

    /// The hits, misses and graced hits since the last call; other events are dropped.
    pub fn reads(&self) -> Vec<String> {
        let mut texts = self.texts();
        texts.retain(|text| {
            ["hit ", "graced ", "miss "].iter().any(|start| text.starts_with(start))
        });
        texts
    }

    /// How many of the events since the last call are so; all are dropped.
    pub fn count(&self, is_so: impl Fn(&EventKind<'_>) -> bool) -> usize {
        self.take().iter().filter(|event| is_so(&event.kind)).count()
    }
}

fn text(kind: &EventKind<'_>) -> String {
    use EventKind as E;
    match kind {
        E::Hit { key, tier, graced } => {
            let tier = if *tier == Tier::L1 { "l1" } else { "l2" };
            format!("{} {tier} {key}", if *graced { "graced" } else { "hit" })
        }
        E::Miss { key } => format!("miss {key}"),
        E::Written { key } => format!("written {key}"),
        E::Deleted { key } => format!("deleted {key}"),
        E::Expired { key } => format!("expired {key}"),
        E::Touched { key } => format!("touched {key}"),
        E::Cleared { namespace } => format!("cleared {namespace}"),
        E::TagInvalidated { tag } => format!("tag {tag}"),
        E::FactorySucceeded { key, background, .. } => {
            format!("factory ok {}{key}", if *background { "background " } else { "" })
        }
        E::FactoryFailed { key, background, .. } => {
            format!("factory failed {}{key}", if *background { "background " } else { "" })
        }
        E::FactoryTimeout { key, hard } => {
            format!("{} timeout {key}", if *hard { "hard" } else { "soft" })
        }
        E::LockTimeout { key } => format!("lock timeout {key}"),
        E::DecodeFailed { key, .. } => format!("decode failed {key}"),
        E::L2Failed { operation, .. } => format!("l2 failed {operation}"),
        E::BreakerOpened => "breaker opened".into(),
        E::BreakerClosed => "breaker closed".into(),
        E::BusPublished { keys } => format!("published {keys}"),
        E::BusReceived { keys } => format!("received {keys}"),
        E::BusRejected => "rejected".into(),
        E::BusLost => "lost".into(),
        E::BusRestored => "restored".into(),
        E::RecoveryQueued { queued } => format!("queued {queued}"),
        E::RecoveryDone { queued } => format!("done {queued}"),
        E::RecoveryDropped { queued } => format!("dropped {queued}"),
        E::Evicted { key } => format!("evicted {key}"),
        other => format!("{other:?}"),
    }
}
