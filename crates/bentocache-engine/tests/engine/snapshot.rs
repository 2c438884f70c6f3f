//! Snapshots of L1: what comes back after a restart, and what never does.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use crate::common::{Node, Runs, World, fill, get, get_stale, ms, pass, secs, settle};
use crate::logs::Log;
use bentocache::{BentoCache, Error, InProcessBus, Memory, Store, TimeSource, TokioTime};
use bentocache_testkit::Ops;
use serde::{Deserialize, Deserializer, Serialize};
use tempfile::TempDir;

/// A directory with the path of a snapshot, and the processes that use it.
pub(crate) struct Place {
    directory: TempDir,
    world: World,
}

impl Place {
    pub(crate) fn new(world: World) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), world }
    }

    pub(crate) fn alone() -> Self {
        Self::new(World::only_l1())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("l1.snapshot")
    }

    /// A process.
    pub(crate) async fn node(&self) -> Node {
        self.node_where(|store| store).await
    }

    async fn node_where(&self, options: impl FnOnce(Store) -> Store) -> Node {
        self.node_with(|memory| memory, options).await
    }

    async fn node_with(
        &self,
        memory: impl FnOnce(Memory) -> Memory,
        options: impl FnOnce(Store) -> Store,
    ) -> Node {
        let memory = memory(Memory::new().snapshot(self.path()));
        self.world.node_where(|store| options(store.l1(memory))).await
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.directory.path()).unwrap().count()
    }
}

/// Ends a process as a kill does.
fn kill(node: Node) {
    drop(node);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle { radius: f64 },
    Line(i32, i32),
}

/// Counts how often it is decoded, per thread, which is per test.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Counted(u32);

thread_local! {
    static DECODED: AtomicUsize = const { AtomicUsize::new(0) };
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DECODED.with(|decoded| decoded.fetch_add(1, SeqCst));
        u32::deserialize(deserializer).map(Self)
    }
}

fn decoded() -> usize {
    DECODED.with(|decoded| decoded.load(SeqCst))
}

#[tokio::test(start_paused = true)]
async fn values_of_all_types_come_back() {
    macro_rules! check {
        ($place:ident, $($key:literal: $value:expr,)*) => {
            let node = $place.node().await;
            $(node.set($key, $value).await.unwrap();)*
            node.disconnect().await.unwrap();
            let node = $place.node().await;
            $(
                let wanted = [Some($value)];
                let mut found = wanted.clone();
                found[0] = node.get($key).await.unwrap();
                assert_eq!(found, wanted, "{}", $key);
                // From then on it is an entry as any other.
                found[0] = node.get($key).await.unwrap();
                assert_eq!(found, wanted, "{}", $key);
            )*
        };
    }
    let place = Place::alone();
    check! { place,
        "number": 1_u32,
        "negative": i64::MIN,
        "float": 0.1_f64,
        "bool": true,
        "text": "é\0\"\u{1F600}".to_owned(),
        "no text": String::new(),
        "none": None::<u32>,
        "some": Some(3_u8),
        "unit": (),
        "bytes": vec![0_u8, 255],
        "tuple": (1_u8, "a".to_owned(), [1.5_f32, -2.5]),
        "map": HashMap::from([("a".to_owned(), vec![1_u64]), ("b".to_owned(), vec![])]),
        "tree": BTreeMap::from([(1_u32, Shape::Point), (2, Shape::Circle { radius: 1.0 })]),
        "enum": Shape::Line(-1, 1),
        "arc": Arc::new("shared".to_owned()),
        "json": serde_json::json!({"a": [null, 1, "x"]}),
        "large": "x".repeat(300_000),
        "users:eu:1": 2_u32,
        "\u{1F600}:\n/..": 3_u32,
    }
}

#[cfg(feature = "msgpack")]
#[tokio::test(start_paused = true)]
async fn the_codec_may_change_between_two_runs() {
    use bentocache::Codec;
    let codecs = [Codec::json(), Codec::message_pack(), Codec::json()];
    let place = Place::alone();
    for (i, codec) in codecs.into_iter().enumerate() {
        let node = place.node_where(|store| store.codec(codec)).await;
        if i == 0 {
            node.set("read", vec![1_u8, 2]).await.unwrap();
            node.set("unread", Shape::Point).await.unwrap();
        }
        assert_eq!(node.get("read").await.unwrap(), Some(vec![1_u8, 2]));
        node.disconnect().await.unwrap();
    }
    assert_eq!(place.node().await.get("unread").await.unwrap(), Some(Shape::Point));
}

#[tokio::test(start_paused = true)]
async fn a_loaded_value_is_decoded_once_at_its_first_read() {
    for many in [false, true] {
        let place = Place::alone();
        let node = place.node().await;
        node.set("a", Counted(1)).tags(["t"]).await.unwrap();
        node.disconnect().await.unwrap();
        let node = place.node().await;
        let (before, runs) = (decoded(), Runs::new());
        let factory = |_| async { Ok::<_, Error>(vec![("a", Counted(2))]) };
        for _ in 0..3 {
            if many {
                let found = node.get_or_set_many(["a"], factory).await.unwrap();
                assert_eq!(found, [Some(Counted(1))]);
            } else {
                let runs = runs.clone();
                let factory = move |_| async move {
                    runs.count();
                    Ok::<_, Error>(Counted(2))
                };
                assert_eq!(node.get_or_set("a", factory).await.unwrap(), Counted(1));
            }
        }
        // To find out whether it can be decoded takes one more.
        assert!(decoded() - before <= 2, "{} times", decoded() - before);
        assert_eq!(runs.so_far(), 0);
        let before = decoded();
        assert_eq!(node.get("a").await.unwrap(), Some(Counted(1)));
        assert_eq!(decoded(), before);
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(node.get::<Counted>("a").await.unwrap(), None, "it still has its tags");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loaded_value_of_another_type_is_a_miss() {
    let place = Place::alone();
    let node = place.node().await;
    node.set("a", "text".to_owned()).await.unwrap();
    node.disconnect().await.unwrap();
    let node = place.node().await;
    assert_eq!(get(&node, "a").await, None);
    assert_eq!(node.get("a").await.unwrap(), Some("text".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_time_between_two_runs_counts() {
    let place = Place::alone();
    let node = place.node().await;
    node.set("a", 1_u32).ttl("10m").grace("10m").await.unwrap();
    node.set("l1", 1_u32).ttl("1h").l1_ttl("10m").await.unwrap();
    node.set_forever("forever", 1_u32).await.unwrap();
    pass(secs(180)).await;
    node.disconnect().await.unwrap();
    pass(secs(180)).await;
    let node = place.node().await;
    pass(secs(239)).await;
    assert_eq!((get(&node, "a").await, get(&node, "l1").await), (Some(1), Some(1)));
    pass(secs(2)).await;
    assert_eq!((get(&node, "a").await, get(&node, "l1").await), (None, None));
    assert_eq!(get_stale(&node, "a").await, Some(1), "stale for its grace");
    pass(secs(600)).await;
    assert_eq!(get_stale(&node, "a").await, None);
    assert_eq!(get(&node, "forever").await, Some(1));
    node.disconnect().await.unwrap();
    pass(secs(86_400 * 365)).await;
    assert_eq!(get(&place.node().await.cache, "forever").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_goes_by_the_whole_life() {
    let place = Place::alone();
    let node = place.node().await;
    node.set("a", 1_u32).ttl("10m").await.unwrap();
    pass(secs(60)).await;
    node.disconnect().await.unwrap();
    let node = place.node().await;
    let runs = Runs::new();
    let read = async || {
        let runs = runs.clone();
        let factory = move |_| async move {
            runs.count();
            Ok::<_, Error>(2_u32)
        };
        node.get_or_set("a", factory).early_refresh(0.5).await.unwrap()
    };
    assert_eq!(read().await, 1);
    pass(secs(200)).await;
    assert_eq!((read().await, runs.so_far()), (1, 0));
    pass(secs(60)).await;
    assert_eq!(read().await, 1);
    settle().await;
    assert_eq!(runs.so_far(), 1);
}

/// A wall clock that steps between two runs. Each run has a monotonic clock of its own.
#[derive(Clone)]
struct Stepping(TokioTime, Arc<AtomicI64>);

impl TimeSource for Stepping {
    fn monotonic_ms(&self) -> u64 {
        self.0.monotonic_ms()
    }

    fn epoch_ms(&self) -> u64 {
        self.0.epoch_ms().saturating_add_signed(self.1.load(SeqCst))
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_makes_no_life_longer() {
    let place = Place::alone();
    let wall = Stepping(TokioTime::new(), Arc::default());
    let run = async || {
        let memory = Memory::new().snapshot(place.path());
        let store = Store::new().l1(memory).ttl("10m");
        BentoCache::builder().clock(wall.clone()).store("s", store).build().await.unwrap()
    };
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    for (step, passed, is_there) in [(0, 300, true), (-60_000, 30, false), (3_600_000, 0, false)] {
        let node = run().await;
        node.set("a", 1_u32).await.unwrap();
        node.disconnect().await.unwrap();
        log.warnings();
        pass(secs(passed)).await;
        wall.1.fetch_add(step, SeqCst);
        let node = run().await;
        assert_eq!(get(&node, "a").await.is_some(), is_there, "{step}");
        let warned = log.warnings().iter().any(|line| line.contains("the clock was set back"));
        assert_eq!(warned, step < 0);
        node.disconnect().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn without_l2_a_deletion_after_the_snapshot_survives_a_crash() {
    let place = Place::alone();
    let node = place.node().await;
    for key in ["deleted", "expired", "pulled", "n:cleared", "tagged", "kept"] {
        node.set(key, 1_u32).tags([key]).grace("1h").await.unwrap();
    }
    node.disconnect().await.unwrap();

    let node = place.node().await;
    assert_eq!(get(&node, "kept").await, Some(1));
    node.delete("deleted").await.unwrap();
    node.expire("expired").await.unwrap();
    node.pull::<u32>("pulled").await.unwrap();
    node.namespace("n").clear().await.unwrap();
    node.delete_by_tag(["tagged"]).await.unwrap();
    kill(node);

    let node = place.node().await;
    for key in ["deleted", "expired", "pulled", "n:cleared", "tagged", "kept"] {
        assert_eq!(get_stale(&node, key).await, None, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalidations_before_the_end_hold_in_the_next_run() {
    let place = Place::alone();
    let node = place.node().await;
    let all = ["deleted", "expired", "pulled", "n:cleared", "tagged", "tag gone", "kept"];
    for key in all.into_iter().chain(["backed off"]) {
        node.set(key, 1_u32).tags([key]).ttl("10m").grace("1h").await.unwrap();
    }
    node.delete("deleted").await.unwrap();
    node.expire("expired").await.unwrap();
    node.pull::<u32>("pulled").await.unwrap();
    node.namespace("n").clear().await.unwrap();
    node.expire_by_tag(["tagged"]).await.unwrap();
    node.delete_by_tag(["tag gone"]).await.unwrap();
    node.disconnect().await.unwrap();

    let node = place.node().await;
    for key in ["deleted", "expired", "pulled", "n:cleared", "tagged", "tag gone"] {
        assert_eq!(get(&node, key).await, None, "{key}");
    }
    for key in ["expired", "tagged"] {
        assert_eq!(get_stale(&node, key).await, Some(1), "{key} is stale");
    }
    for key in ["deleted", "pulled", "n:cleared", "tag gone"] {
        assert_eq!(get_stale(&node, key).await, None, "{key} is gone");
    }
    // A tag works on for what was loaded, whether it was read or not.
    assert_eq!(get(&node, "kept").await, Some(1));
    node.delete_by_tag(["kept", "backed off"]).await.unwrap();
    assert_eq!((get(&node, "kept").await, get(&node, "backed off").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn tags_of_namespaces_stay_apart() {
    let place = Place::alone();
    let node = place.node().await;
    let (one, other) = (node.namespace("one"), node.namespace("other"));
    for cache in [&one, &other] {
        cache.set("k", 1_u32).tags(["t"]).await.unwrap();
    }
    node.disconnect().await.unwrap();
    let node = place.node().await;
    let (one, other) = (node.namespace("one"), node.namespace("other"));
    one.delete_by_tag(["t"]).await.unwrap();
    assert_eq!((get(&one, "k").await, get(&other, "k").await), (None, Some(1)));
}

/// A clock that makes a thread wait at its next look, once the test says so.
struct Gate {
    time: TokioTime,
    /// The thread that waits: it says that it does, and then waits for the test.
    waits: std::sync::Mutex<Option<(std::thread::ThreadId, mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

impl TimeSource for Gate {
    fn monotonic_ms(&self) -> u64 {
        let mut waits = self.waits.lock().unwrap();
        if waits.as_ref().is_some_and(|(thread, ..)| *thread == std::thread::current().id()) {
            let (_, says, waits_for) = waits.take().unwrap();
            drop(waits);
            says.send(()).unwrap();
            waits_for.recv().unwrap();
        }
        self.time.monotonic_ms()
    }

    fn epoch_ms(&self) -> u64 {
        self.time.epoch_ms()
    }
}

/// A `delete` that began before `disconnect`, and ends after it has begun, is in no snapshot.
#[test]
fn disconnect_waits_for_a_deletion_before_the_snapshot() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    let place = Place::alone();
    let gate = Arc::new(Gate { time: TokioTime::new(), waits: Default::default() });
    let run = || {
        let store = Store::new().l1(Memory::new().snapshot(place.path()));
        let builder = BentoCache::builder().clock(gate.clone()).store("s", store);
        runtime.block_on(builder.build()).unwrap()
    };
    let cache = run();
    runtime.block_on(cache.set("a", 1_u32).into_future()).unwrap();
    let (go_on, waits_for) = mpsc::channel();
    let (says, waiting) = mpsc::channel();
    let deleting = std::thread::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        move || {
            let id = std::thread::current().id();
            *gate.waits.lock().unwrap() = Some((id, says, waits_for));
            cache.blocking().delete("a").unwrap()
        }
    });
    waiting.recv().unwrap();
    let ending = runtime.spawn({
        let cache = cache.clone();
        async move { cache.disconnect().await }
    });
    // Closed, so `disconnect` waits for the deletion now.
    while runtime.block_on(cache.get::<u32>("b").into_future()).is_ok() {
        std::thread::yield_now();
    }
    assert!(!ending.is_finished());
    go_on.send(()).unwrap();
    assert!(deleting.join().unwrap());
    runtime.block_on(ending).unwrap().unwrap();
    assert_eq!(runtime.block_on(run().get::<u32>("a").into_future()).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_after_another_one_began_leaves_no_snapshot() {
    let place = Place::alone();
    let first = place.node().await;
    first.set("a", 1_u32).await.unwrap();
    let second = place.node().await;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    first.disconnect().await.unwrap();
    assert!(log.warnings()[0].contains("another process has used the file"));
    assert_eq!(get(&second, "a").await, None);
    kill(second);
    assert_eq!(get(&place.node().await.cache, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn with_an_l2_each_entry_is_compared_before_it_is_used() {
    for with_clear in [true, false] {
        let world = if with_clear { World::new() } else { World::new().without_clear() };
        let place = Place::new(world);
        let (node, other) = (place.node().await, place.world.node().await);
        let keys = ["same", "set", "deleted", "expired", "n:cleared", "tagged", "t2"];
        for key in keys {
            node.set(key, 1_u32).tags([key]).await.unwrap();
        }
        node.disconnect().await.unwrap();
        // While it is down.
        other.set("set", 2_u32).await.unwrap();
        other.delete("deleted").await.unwrap();
        other.expire("expired").await.unwrap();
        other.namespace("n").clear().await.unwrap();
        other.delete_by_tag(["tagged"]).await.unwrap();

        let node = place.node().await;
        node.l2.reset_calls();
        assert_eq!(get(&node, "same").await, Some(1));
        assert!(node.l2.on(Ops::ALL).calls() > 0, "L2 is asked");
        let calls = node.l2.on(Ops::GET | Ops::GET_MANY).calls();
        assert_eq!(get(&node, "same").await, Some(1));
        assert_eq!(node.l2.on(Ops::GET | Ops::GET_MANY).calls(), calls, "once");
        assert_eq!(get(&node, "set").await, Some(2));
        for key in ["deleted", "expired", "n:cleared", "tagged"] {
            assert_eq!(get(&node, key).await, None, "{key}");
            assert_eq!(fill(&node, key, 3).await, 3, "{key}");
        }
        assert_eq!(get(&node, "t2").await, Some(1));
        other.delete_by_tag(["t2"]).await.unwrap();
        settle().await;
        assert_eq!(get(&node, "t2").await, None);
    }
}

/// Without a bus nothing else makes L1 unverified.
#[tokio::test(start_paused = true)]
async fn without_a_bus_each_entry_is_compared_too() {
    for tags in [None, Some("t")] {
        let place = Place::new(World::without_bus());
        let (node, other) = (place.node().await, place.world.node().await);
        for key in ["same", "set", "deleted", "expired", "tagged"] {
            node.set(key, 1_u32).tags(tags).await.unwrap();
        }
        node.set("tagged", 1_u32).tags(["u"]).await.unwrap();
        node.disconnect().await.unwrap();
        other.set("set", 2_u32).await.unwrap();
        other.delete("deleted").await.unwrap();
        other.expire("expired").await.unwrap();
        other.delete_by_tag(["u"]).await.unwrap();
        let node = place.node().await;
        assert_eq!((get(&node, "same").await, get(&node, "set").await), (Some(1), Some(2)));
        for key in ["deleted", "expired", "tagged"] {
            assert_eq!(get(&node, key).await, None, "{key}");
        }
        // The state of a tag is read again when its time is over, as for any entry.
        other.delete_by_tag(tags).await.unwrap();
        pass(secs(2)).await;
        assert_eq!(get(&node, "same").await.is_some(), tags.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn without_l2_the_file_of_a_run_with_one_is_not_used() {
    let place = Place::new(World::without_bus());
    let node = place.node().await;
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    let memory = Memory::new().snapshot(place.path());
    let node = World::only_l1().node_where(|store| store.l1(memory)).await;
    assert_eq!((get(&node, "a").await, node.stats().l1.unwrap().entries), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn while_l2_is_down_loaded_entries_are_stale() {
    let place = Place::new(World::without_bus());
    let node = place.node().await;
    node.set("a", 1_u32).tags(["t"]).ttl("10m").grace("1h").await.unwrap();
    node.disconnect().await.unwrap();
    let node = place.node().await;
    node.l2.on(Ops::ALL).fail();
    assert_eq!((get(&node, "a").await, get_stale(&node, "a").await), (None, Some(1)));
}

#[tokio::test(start_paused = true)]
async fn with_a_bus_and_no_l2_loaded_entries_are_stale() {
    let place = Place::alone();
    let bus = InProcessBus::new();
    let node = place.node_where(|store| store.bus(bus.clone())).await;
    node.set("a", 1_u32).ttl("10m").grace("1h").await.unwrap();
    node.set("b", 1_u32).ttl("10m").grace("1h").await.unwrap();
    node.disconnect().await.unwrap();
    let node = place.node_where(|store| store.bus(bus.clone())).await;
    assert_eq!((get(&node, "a").await, get_stale(&node, "a").await), (None, Some(1)));
    node.delete("b").await.unwrap();
    kill(node);
    let node = place.node_where(|store| store.bus(bus.clone())).await;
    assert_eq!(get_stale(&node, "b").await, None);
}

#[tokio::test(start_paused = true)]
async fn the_file_is_written_every_interval() {
    let place = Place::new(World::without_bus());
    let every = |memory: Memory| memory.snapshot_interval("1m");
    let node = place.node_with(every, |store| store).await;
    node.set("a", 1_u32).ttl("1h").grace("1h").await.unwrap();
    pass(secs(59)).await;
    assert!(!place.path().exists());
    pass(secs(2)).await;
    assert!(place.path().exists());
    node.set("b", 1_u32).ttl("1h").grace("1h").await.unwrap();
    kill(node);
    let node = place.node_with(every, |store| store).await;
    node.l2.on(Ops::ALL).fail();
    assert_eq!((get_stale(&node, "a").await, get_stale(&node, "b").await), (Some(1), None));
    pass(secs(61)).await;
    kill(node);
    // An interval does not use the file up.
    let node = place.node_with(every, |store| store).await;
    node.l2.on(Ops::ALL).fail();
    assert_eq!(get_stale(&node, "a").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_interval_needs_an_l2_and_a_path() {
    let place = Place::alone();
    let build = |memory: Memory| BentoCache::builder().store("s", Store::new().l1(memory)).build();
    let refusal = async |memory| build(memory).await.unwrap_err().to_string();
    let memory = || Memory::new().snapshot(place.path());
    assert!(refusal(memory().snapshot_interval("1m")).await.contains("needs an L2"));
    assert!(refusal(Memory::new().snapshot_interval("1m")).await.contains("snapshot_interval"));
    assert!(refusal(memory().snapshot_interval("soon")).await.contains("\"soon\""));
    assert!(refusal(memory().snapshot_interval("0s")).await.contains("snapshot_interval"));
    assert!(refusal(Memory::new().snapshot("")).await.contains("path of a file"));
    build(memory().snapshot_interval("off")).await.unwrap();
}

/// A file of a store without an L2, then a run with one, then one without.
#[tokio::test(start_paused = true)]
async fn a_run_with_an_l2_uses_up_the_file_of_a_run_without_one() {
    let place = Place::alone();
    let node = place.node().await;
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    let two_tiers = || World::without_bus();
    let memory = Memory::new().snapshot(place.path());
    let node = two_tiers().node_where(|store| store.l1(memory)).await;
    node.delete("a").await.unwrap();
    kill(node);
    assert_eq!(get(&place.node().await.cache, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn values_without_a_stored_form_are_left_out() {
    let place = Place::alone();
    let node = place.node().await;
    node.local::<Duration>().set("local", secs(1)).await.unwrap();
    node.set("nan", f64::NAN).await.unwrap();
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    let node = place.node().await;
    assert_eq!(node.local::<Duration>().get("local").await.unwrap(), None);
    assert!(node.missing("nan").await.unwrap());
    assert_eq!(get(&node, "a").await, Some(1));
    // A loaded value is no local value.
    node.disconnect().await.unwrap();
    let node = place.node().await;
    assert_eq!(node.local::<u32>().get("a").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_l1_hold_for_what_is_loaded() {
    let place = Place::alone();
    let node = place.node().await;
    for key in 0..1_000_u32 {
        node.set(key, key).await.unwrap();
    }
    node.disconnect().await.unwrap();
    let node = place.node_with(|memory| memory.max_items(100), |store| store).await;
    let l1 = node.stats().l1.unwrap();
    assert_eq!(l1.entries, 100);
    assert!(l1.evictions <= 1, "loading ends when L1 is full");
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_is_shared_has_a_snapshot_too() {
    let place = Place::alone();
    let run = async || {
        let memory = Arc::new(Memory::new().snapshot(place.path()));
        place.world.node_where(|store| store.l1(memory)).await
    };
    let node = run().await;
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    assert_eq!(get(&run().await.cache, "a").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_cache_has_no_snapshot() {
    let place = Place::alone();
    let node = place.node().await;
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    let off = place.node_where(|store| store.enabled(false)).await;
    assert_eq!(get(&off, "a").await, None);
    drop(off.disconnect().await);
    assert_eq!(get(&place.node().await.cache, "a").await, Some(1));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn only_the_owner_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::alone();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let node = place.node().await;
    assert_eq!(mode(&place.path()), 0o600);
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    assert_eq!(mode(&place.path()), 0o600);
    assert_eq!(place.files(), 1, "no temporary file is left");
}

/// A store is written while others change and read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_of_a_busy_store_is_sound() {
    let place = Place::new(World::without_bus());
    let node = place.node_with(|memory| memory.snapshot_interval("1ms"), |store| store).await;
    let cache = node.cache.clone();
    let calls = (0..4_u32).map(|task| {
        let cache = cache.clone();
        tokio::spawn(async move {
            for i in 0..2_000_u32 {
                let key = (task * 7 + i) % 500;
                match i % 5 {
                    0 => drop(cache.delete(key).await.unwrap()),
                    1 => assert!(cache.get::<u32>(key).await.unwrap().is_none_or(|v| v == key)),
                    2 => cache.delete_by_tag(["t"]).await.unwrap(),
                    _ => cache.set(key, key).tags(["t"]).await.unwrap(),
                }
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    for key in 0..500_u32 {
        node.set(key, key).grace("1h").await.unwrap();
    }
    node.disconnect().await.unwrap();
    assert_eq!(place.files(), 1);
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let node = place.node_where(|store| store.silence_advice("l2-without-bus")).await;
    assert_eq!(log.warnings(), [""; 0]);
    node.l2.on(Ops::ALL).fail();
    for key in 0..500_u32 {
        let found: Option<u32> = node.get(key).grace("1h").await.unwrap();
        assert_eq!(found, Some(key));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_and_a_new_value_are_as_in_any_store() {
    let place = Place::alone();
    let node = place.node().await;
    node.set("a", 1_u32).await.unwrap();
    node.set("b", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    let node = place.node().await;
    node.set("b", 2_u32).await.unwrap();
    assert_eq!(get(&node, "b").await, Some(2));
    assert_eq!(node.pull("a").await.unwrap(), Some(1_u32));
    node.clear().await.unwrap();
    assert_eq!((get(&node, "a").await, get(&node, "b").await), (None, None));
    pass(ms(1)).await;
}

#[tokio::test(start_paused = true)]
async fn validators_outlive_the_process() {
    let place = Place::alone();
    let a = place.node().await;
    let made = a.get_or_set("k", |cx| async move {
        cx.etag("\"1\"");
        Ok::<_, Error>(1_u32)
    });
    made.ttl("1m").grace("1h").await.unwrap();
    a.disconnect().await.unwrap();
    let b = place.node().await;
    pass(secs(90)).await;
    let made = b.get_or_set("k", |cx| async move {
        assert_eq!(cx.stale_etag(), Some("\"1\""));
        Ok::<_, Error>(2_u32)
    });
    assert_eq!(made.grace("1h").timeout("none").await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_slides_outlives_the_process_only_in_l2() {
    for (world, expected) in [(World::only_l1(), None), (World::new(), Some(1))] {
        let place = Place::new(world);
        let a = place.node().await;
        a.set("k", 1_u32).sliding("1m").await.unwrap();
        a.disconnect().await.unwrap();
        let b = place.node().await;
        assert_eq!(get(&b, "k").await, expected);
        pass(secs(90)).await;
        assert_eq!(get(&b, "k").await, None);
    }
}
