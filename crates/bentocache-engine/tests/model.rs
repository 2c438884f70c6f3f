//! A model: several nodes, random calls on few keys, an L2 that is slow and fails, a bus
//! that is late and breaks. No read finds what was overwritten or removed before the read began,
//! as far as its node can know; and when all is quiet, all nodes agree with L2.
//!
//! Each seed is one history. A failure prints its seed; `MODEL_SEED=17 cargo test -p
//! bentocache-engine --test model` runs that one alone and prints what happened. `MODEL_SEEDS=5000`
//! runs more, and `MODEL_SEEDS=5000..9000` those; all that fail are named in the end.

// Tests may unwrap: the panic shows the failed call.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

#[path = "engine/common/mod.rs"]
mod common;
#[path = "engine/common/races.rs"]
mod races;

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bentocache::driver::{Capabilities, DriverError, ErrorKind, L2Driver, Write};
use bentocache::{Error, ManyContext};
use bentocache_testkit::{MapL2, Ops};
use bytes::Bytes;
use common::{Node, World, ms, pass, secs};
use races::fresh;
use tokio::task::JoinSet;
use tokio::time::Instant;

const KEYS: [&str; 2] = ["a", "b"];
/// How long it can take until every node knows of a change.
const KNOWN_AFTER: Duration = Duration::from_millis(150);
/// The time limit for taking back a factory's value that was stored too late.
const TAKEN_BACK_AFTER: Duration = Duration::from_millis(40);

/// What goes wrong in a history.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// Calls of L2 and messages take their time.
    Slow,
    /// And calls of L2 fail, before or after their work.
    Failing,
    /// And the bus breaks.
    Cut,
    /// Each node's links to L2 and to the bus are lost and come back, each on its own
    /// and in either order.
    Outage,
}

// ---- an L2 in trouble ----

#[derive(Clone)]
struct Unsteady {
    map: MapL2,
    random: Arc<Mutex<fastrand::Rng>>,
    /// In percent.
    failures: Arc<AtomicU32>,
    /// The link is lost: calls fail and reach nothing.
    is_cut: Arc<AtomicBool>,
    node: usize,
    history: Arc<Mutex<History>>,
}

impl Unsteady {
    fn draw(&self, below: u64) -> u64 {
        self.random.lock().unwrap().u64(..below)
    }

    async fn pause(&self) {
        let pause = self.draw(8);
        if pause < 4 {
            pass(ms(pause)).await;
        }
    }

    fn fails(&self) -> Result<(), DriverError> {
        if self.draw(100) < u64::from(self.failures.load(SeqCst)) {
            return Err(DriverError::new(ErrorKind::Unavailable, "it fails"));
        }
        Ok(())
    }

    async fn call<T>(
        &self,
        what: impl fmt::Debug,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        if self.is_cut.load(SeqCst) {
            return Err(DriverError::new(ErrorKind::Unavailable, "the link is lost"));
        }
        let log = |how: &str| {
            let mut history = self.history.lock().unwrap();
            history.log(self.node, format_args!("    L2 {what:?} {how}"));
        };
        self.pause().await;
        self.fails().inspect_err(|_| log("fails"))?;
        let result = work.await;
        log("is done");
        self.pause().await;
        self.fails().inspect_err(|_| log("loses its answer"))?;
        result
    }
}

impl L2Driver for Unsteady {
    fn name(&self) -> &'static str {
        "unsteady"
    }
    fn capabilities(&self) -> Capabilities {
        self.map.capabilities()
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.call(("get", key), self.map.get(key)).await
    }
    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        self.call(("get_many", keys), self.map.get_many(keys)).await
    }
    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        let what = ("set", key, value.get(..14).map(<[u8]>::to_vec).map(String::from_utf8));
        self.call(what, self.map.set(key, value, ttl)).await
    }
    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let what = ("insert", key, value.get(..14).map(<[u8]>::to_vec).map(String::from_utf8));
        self.call(what, self.map.insert(key, value, ttl)).await
    }
    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        self.call(("set_many", writes.len()), self.map.set_many(writes)).await
    }
    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.call(("delete", keys), self.map.delete(keys)).await
    }
    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let cleared = async {
            let cleared = self.map.clear(prefix).await;
            let mut history = self.history.lock().unwrap();
            history.cleared = history.order + 1;
            cleared
        };
        self.call(("clear", prefix), cleared).await
    }
    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.call(("pull", key), self.map.pull(key)).await
    }
    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.call(("update", key), self.map.update(key, expected, value, remaining)).await
    }
    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        self.call(("delete_if", key), self.map.delete_if(key, value)).await
    }
}

// ---- What happened ----

/// A moment: the order of things, and the time.
#[derive(Clone, Copy)]
struct Moment {
    order: usize,
    time: Instant,
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.order)
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    value: u32,
    key: usize,
    node: usize,
    by_factory: bool,
    begin: Moment,
    end: Option<Moment>,
}

/// A change of a key; one of all keys is several.
#[derive(Clone, Copy, Debug)]
struct Change {
    name: &'static str,
    key: usize,
    node: usize,
    begin: Moment,
    end: Moment,
}

#[derive(Default)]
struct History {
    order: usize,
    /// Whether a set that has ended is in L2, not in a queue.
    stores_at_once: bool,
    origins: Vec<Origin>,
    changes: Vec<Change>,
    /// How many clears are under way, and when the last one ended or was repeated.
    clearing: usize,
    cleared: usize,
    log: String,
}

impl History {
    fn log(&mut self, node: usize, text: fmt::Arguments<'_>) {
        writeln!(self.log, "{:4} node {node}: {text}", self.order).unwrap();
    }

    fn now(&mut self) -> Moment {
        self.order += 1;
        Moment { order: self.order, time: Instant::now() }
    }

    /// Which change makes it wrong for `node` to find this value in a read that began then: one of
    /// its own, or one `everywhere`, of which it knows after a while.
    fn overwritten(
        &self,
        node: usize,
        key: usize,
        value: u32,
        begun: Moment,
        everywhere: bool,
    ) -> Option<String> {
        let Some(origin) = self.origins.iter().find(|o| o.value == value) else {
            return Some(format!("{value} was never written"));
        };
        if origin.key != key {
            return Some(format!("{value} is of another key"));
        }
        let is_older = |change: &&Change| {
            let done = if origin.by_factory { Some(origin.begin) } else { origin.end };
            done.is_some_and(|done| done.order < change.begin.order)
        };
        let is_known = |change: &&Change| {
            if change.end.order >= begun.order {
                return false;
            }
            // A clear takes the markers of tags too: a read of that time may find an entry from
            // before it and no marker any more.
            if change.name == "tag" && (self.clearing > 0 || self.cleared > begun.order) {
                return false;
            }
            let late = begun.time - change.end.time;
            match (change.node == node, origin.node == node) {
                (true, true) if origin.by_factory => late >= TAKEN_BACK_AFTER,
                (true, true) => true,
                // What is stored is stored.
                (true, false) if !origin.by_factory && self.stores_at_once => true,
                // Another node may write over a change that it does not know of yet.
                _ => everywhere && late >= KNOWN_AFTER,
            }
        };
        let change = self
            .changes
            .iter()
            .filter(|change| change.key == key)
            .filter(is_older)
            .find(is_known)?;
        Some(format!("{origin:?} is older than {change:?}, and the read began at {begun:?}"))
    }
}

struct Model {
    trouble: Trouble,
    /// Whether factories run everywhere. Without them nodes agree also where they do not tell each
    /// other of fills: in `Cut` none runs, in `Outage` only where nothing can be stored.
    factories: bool,
    nodes: Vec<Node>,
    l2: Vec<Unsteady>,
    world: World,
    next: AtomicU32,
    history: Arc<Mutex<History>>,
    /// Held by calls whose link to L2 must not come back meanwhile.
    links: tokio::sync::RwLock<()>,
    seed: u64,
}

impl Model {
    fn now(&self) -> Moment {
        self.history.lock().unwrap().now()
    }

    fn log(&self, at: usize, text: std::fmt::Arguments<'_>) {
        self.history.lock().unwrap().log(at, text);
    }

    /// A value with a new number.
    fn originate(&self, key: usize, node: usize, by_factory: bool) -> u32 {
        let value = self.next.fetch_add(1, SeqCst);
        let begin = self.now();
        let origin = Origin { value, key, node, by_factory, begin, end: None };
        self.history.lock().unwrap().origins.push(origin);
        value
    }

    fn read(&self, node: usize, key: usize, found: Option<u32>, begun: Moment, by: &str) {
        self.log(node, format_args!("{by} {} = {found:?}, begun {}", KEYS[key], begun.order));
        let Some(value) = found else { return };
        let history = self.history.lock().unwrap();
        // While things fail, other nodes learn of a change only when it was repeated.
        let everywhere = self.trouble == Trouble::Slow;
        if let Some(why) = history.overwritten(node, key, value, begun, everywhere) {
            self.fail(&history, node, key, &why);
        }
    }

    fn fail(&self, history: &History, node: usize, key: usize, why: &str) -> ! {
        if std::env::var("MODEL_SEED").is_ok() {
            eprintln!("{}", history.log);
        }
        panic!("seed {} ({:?}), node {node}, key {}: {why}", self.seed, self.trouble, KEYS[key]);
    }

    /// Runs a change of these keys on a node. `value` is what is set.
    async fn change<T>(
        &self,
        node: usize,
        keys: &[usize],
        value: Option<u32>,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) {
        let begin = self.now();
        self.log(node, format_args!("{name} {keys:?} {value:?} begins"));
        let is_clear = name == "clear";
        if is_clear {
            self.history.lock().unwrap().clearing += 1;
        }
        work.await.unwrap();
        // Later changes are of a later millisecond: ages are compared in these.
        pass(ms(1)).await;
        let end = self.now();
        self.log(node, format_args!("{name} {keys:?} {value:?} ends, begun {}", begin.order));
        let mut history = self.history.lock().unwrap();
        if is_clear {
            history.clearing -= 1;
            history.cleared = end.order;
        }
        if let Some(value) = value {
            let origin = history.origins.iter_mut().find(|o| o.value == value).unwrap();
            origin.end = Some(end);
        }
        history.changes.extend(keys.iter().map(|key| Change { name, key: *key, node, begin, end }));
    }

    async fn factory(&self, node: usize, key: usize, took: u64) -> Result<u32, races::Down> {
        let value = self.originate(key, node, true);
        self.log(node, format_args!("factory of {} begins {value}", KEYS[key]));
        pass(ms(took)).await;
        if took == 7 { Err(races::Down(value)) } else { Ok(value) }
    }

    /// One random call.
    async fn step(self: &Arc<Self>, random: &mut fastrand::Rng) {
        let (node, key) = (random.usize(..self.nodes.len()), random.usize(..KEYS.len()));
        let (cache, name, took) = (&self.nodes[node], KEYS[key], random.u64(..8));
        let begun = self.now();
        let _links = self.links.read().await;
        let no_factories = match self.trouble {
            _ if self.factories => false,
            Trouble::Cut => true,
            Trouble::Outage => !self.l2[node].is_cut.load(SeqCst),
            _ => false,
        };
        match random.u32(..20) {
            0..=3 => self.read(node, key, fresh(cache, name).await, begun, "get"),
            4..=5 => {
                let found = cache.get_many::<u32>(KEYS).await.unwrap();
                for (key, found) in found.into_iter().enumerate() {
                    self.read(node, key, found, begun, "get_many");
                }
            }
            6..=10 if no_factories => self.read(node, key, fresh(cache, name).await, begun, "get"),
            6..=9 => {
                let model = self.clone();
                let factory = move |_| async move { model.factory(node, key, took).await };
                let call = cache.get_or_set(name, factory).tags(["t"]);
                if random.u32(..5) == 0 {
                    drop(tokio::time::timeout(ms(random.u64(..6)), call).await);
                } else if let Ok(found) = call.await {
                    self.read(node, key, Some(found), begun, "get_or_set");
                }
            }
            10 => {
                let model = self.clone();
                let factory = move |cx: ManyContext| {
                    let model = model.clone();
                    async move {
                        let mut values = Vec::new();
                        for name in cx.keys() {
                            let key = KEYS.iter().position(|key| key == name).unwrap();
                            values.push((name.clone(), model.originate(key, node, true)));
                        }
                        pass(ms(took)).await;
                        Ok::<_, Error>(values)
                    }
                };
                let found = cache.get_or_set_many(KEYS, factory).tags(["t"]).await;
                // An error is that of a factory of a single key.
                for (key, found) in found.into_iter().flatten().enumerate() {
                    self.read(node, key, found, begun, "get_or_set_many");
                }
            }
            11..=13 => {
                let value = self.originate(key, node, false);
                let set = cache.set(name, value).tags(["t"]);
                self.change(node, &[key], Some(value), "set", set.into_future()).await;
            }
            14 => self.change(node, &[key], None, "delete", cache.delete(name).into_future()).await,
            15 => {
                let both = cache.delete_many(KEYS);
                self.change(node, &[0, 1], None, "delete_many", both.into_future()).await;
            }
            16 => self.change(node, &[key], None, "expire", cache.expire(name).into_future()).await,
            17 => {
                let tag = cache.delete_by_tag(["t"]);
                self.change(node, &[0, 1], None, "tag", tag.into_future()).await;
            }
            18 => self.change(node, &[0, 1], None, "clear", cache.clear().into_future()).await,
            _ => {
                let pull = cache.pull::<u32>(name);
                self.change(node, &[key], None, "pull", pull.into_future()).await;
            }
        }
    }

    /// Makes trouble until it is aborted.
    async fn disturb(self: Arc<Self>, mut random: fastrand::Rng) {
        loop {
            let node = random.usize(..self.nodes.len());
            let bus = &self.nodes[node].bus;
            let ops = if random.bool() { Ops::DELIVER } else { Ops::PUBLISH };
            match random.u32(..10) {
                0..=4 if self.trouble == Trouble::Outage => {
                    self.lose_links(node, &mut random).await;
                }
                0 if self.trouble == Trouble::Cut => {
                    bus.cut();
                    pass(ms(random.u64(1..80))).await;
                    bus.restore();
                }
                1 if self.trouble == Trouble::Failing => {
                    for l2 in &self.l2 {
                        l2.failures.store(random.u32(..60), SeqCst);
                    }
                }
                2 => {
                    for l2 in &self.l2 {
                        l2.failures.store(0, SeqCst);
                    }
                }
                _ => {
                    bus.on(ops).hold();
                    pass(ms(random.u64(1..15))).await;
                    bus.on(ops).release();
                }
            }
            pass(ms(random.u64(1..20))).await;
        }
    }

    /// One node loses its links for a while. They go and come back one by one.
    async fn lose_links(&self, node: usize, random: &mut fastrand::Rng) {
        let (l2, bus) = (&self.l2[node].is_cut, &self.nodes[node].bus);
        let (bus_goes, bus_first) = (random.u32(..4) > 0, random.bool());
        if bus_goes {
            bus.cut();
        }
        pass(ms(random.u64(..20))).await;
        if random.u32(..4) > 0 {
            // Not in the middle of a call with a factory.
            let _no_calls = self.links.write().await;
            l2.store(true, SeqCst);
        }
        self.log(node, format_args!("links are lost, the bus: {bus_goes}"));
        pass(ms(random.u64(10..400))).await;
        for restore_bus in [bus_first, !bus_first] {
            if restore_bus {
                bus.restore();
            } else {
                let _no_calls = self.links.write().await;
                l2.store(false, SeqCst);
            }
            self.log(node, format_args!("a link is back, the bus: {restore_bus}"));
            // Long enough that what waits is repeated in between.
            pass(ms(random.u64(..3_000))).await;
        }
    }

    async fn run(seed: u64, trouble: Trouble, world: World) {
        let mut random = fastrand::Rng::with_seed(seed);
        // Nodes agree on what factories bring only if they tell each other.
        let (announce, factories) = (random.bool(), random.bool());
        let breaker = if random.bool() { "off" } else { "100ms" };
        let history = Arc::new(Mutex::new(History {
            stores_at_once: matches!(trouble, Trouble::Slow | Trouble::Cut),
            ..History::default()
        }));
        let (mut nodes, mut l2) = (Vec::new(), Vec::new());
        for node in 0..random.usize(1..=3) {
            let unsteady = Unsteady {
                map: world.l2.clone(),
                random: Arc::new(Mutex::new(random.fork())),
                failures: Arc::default(),
                is_cut: Arc::default(),
                node,
                history: history.clone(),
            };
            l2.push(unsteady.clone());
            let options = |s: bentocache::Store| {
                s.l2(unsteady).announce_fills(announce).l2_circuit_breaker(breaker, 5)
            };
            nodes.push(world.node_where(options).await);
        }
        let model = Arc::new(Self {
            trouble,
            factories,
            nodes,
            l2,
            world,
            next: AtomicU32::new(1),
            history,
            links: tokio::sync::RwLock::default(),
            seed,
        });
        let disturb = tokio::spawn(model.clone().disturb(random.fork()));
        let mut clients = JoinSet::new();
        for _ in 0..5 {
            let (model, mut random) = (model.clone(), random.fork());
            clients.spawn(async move {
                for _ in 0..14 {
                    model.step(&mut random).await;
                    let pause = match random.u32(..8) {
                        0 if trouble == Trouble::Outage => random.u64(1..3_000),
                        0 => 200,
                        _ => random.u64(1..6),
                    };
                    pass(ms(pause)).await;
                }
            });
        }
        while let Some(done) = clients.join_next().await {
            if let Err(error) = done {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        disturb.abort();
        model.quiet(announce).await;
    }

    /// All is well again, and after a while everybody knows everything.
    async fn quiet(&self, announce: bool) {
        for (node, l2) in self.nodes.iter().zip(&self.l2) {
            l2.failures.store(0, SeqCst);
            l2.is_cut.store(false, SeqCst);
            node.bus.release();
            node.bus.calm();
            node.bus.restore();
        }
        pass(secs(60)).await;
        let anew = self.world.node().await;
        for (key, name) in KEYS.iter().enumerate() {
            let begun = self.now();
            let stored = fresh(&anew, name).await;
            for (at, node) in self.nodes.iter().enumerate() {
                let found = fresh(node, name).await;
                self.log(at, format_args!("in the end {name} = {found:?}, stored {stored:?}"));
                let history = self.history.lock().unwrap();
                for value in found.into_iter().chain(stored) {
                    if let Some(why) = history.overwritten(at, key, value, begun, true) {
                        self.fail(&history, at, key, &format!("in the end: {why}"));
                    }
                }
                let has_links = matches!(self.trouble, Trouble::Cut | Trouble::Outage);
                let agrees = announce || (has_links && !self.factories);
                if agrees && found != stored {
                    let why = format!("it has {found:?}, and L2 {stored:?}");
                    self.fail(&history, at, key, &why);
                }
            }
        }
    }
}

fn run(trouble: Trouble, world: fn() -> World) {
    let text = |name| std::env::var(name).ok();
    let number = |text: &str| text.parse::<u64>().unwrap();
    let seeds = match (text("MODEL_SEED"), text("MODEL_SEEDS").as_deref()) {
        (Some(seed), _) => number(&seed)..number(&seed) + 1,
        (None, None) => 0..150,
        (None, Some(seeds)) => match seeds.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => 0..number(seeds),
        },
    };
    let fails = |seed: &u64| {
        // The pauses between repetitions are random too.
        fastrand::seed(*seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let run = || runtime.block_on(Model::run(*seed, trouble, world()));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let failed: Vec<u64> = seeds.filter(fails).collect();
    assert!(failed.is_empty(), "{trouble:?}: these seeds fail: {failed:?}");
}

#[test]
fn slow_tiers_and_late_messages_bring_nothing_back() {
    run(Trouble::Slow, World::new);
}

#[test]
fn a_failing_second_tier_brings_nothing_back_and_nodes_agree_in_the_end() {
    run(Trouble::Failing, World::new);
}

#[test]
fn an_outage_brings_nothing_back_and_nodes_agree_in_the_end() {
    run(Trouble::Outage, World::new);
}

#[test]
fn a_broken_bus_brings_nothing_back_once_it_is_whole() {
    run(Trouble::Cut, World::new);
}

/// The same with an L2 that cannot clear by prefix: clears are hidden tags there.
mod without_clear {
    use super::*;

    fn world() -> World {
        World::new().without_clear()
    }

    #[test]
    fn slow_tiers_and_late_messages_bring_nothing_back() {
        run(Trouble::Slow, world);
    }

    #[test]
    fn a_failing_second_tier_brings_nothing_back_and_nodes_agree_in_the_end() {
        run(Trouble::Failing, world);
    }

    #[test]
    fn an_outage_brings_nothing_back_and_nodes_agree_in_the_end() {
        run(Trouble::Outage, world);
    }

    #[test]
    fn a_broken_bus_brings_nothing_back_once_it_is_whole() {
        run(Trouble::Cut, world);
    }
}

/// The same with an encrypted L2: each write of a value has other bytes.
mod encrypted {
    use super::*;

    fn world() -> World {
        World::new().encrypted()
    }

    #[test]
    fn slow_tiers_and_late_messages_bring_nothing_back() {
        run(Trouble::Slow, world);
    }

    #[test]
    fn a_failing_second_tier_brings_nothing_back_and_nodes_agree_in_the_end() {
        run(Trouble::Failing, world);
    }

    #[test]
    fn an_outage_brings_nothing_back_and_nodes_agree_in_the_end() {
        run(Trouble::Outage, world);
    }
}
