//! Faults of other caching libraries, each with its report: none of them is here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::common::{World, get, pass, secs, settle};
use crate::races::{Holding, calm, fresh, go};
use bentocache::{Context, Error, TimeSource};
use bentocache_testkit::Ops;

/// dotnet/extensions #7771: a read during the look-up of a tag got the value that the tag had
/// invalidated.
#[tokio::test(start_paused = true)]
async fn an_invalidated_value_is_not_served_while_its_tag_is_looked_up() {
    let world = World::without_bus();
    let l2 = Holding::new(&world.l2);
    let (writer, reader) = (world.node().await, world.node_where(|s| s.l2(l2.clone())).await);
    writer.set("k", 1_u32).ttl("1h").tags(["t"]).await.unwrap();
    assert_eq!(get(&reader, "k").await, Some(1));
    writer.delete_by_tag(["t"]).await.unwrap();
    // The reader must ask for the tag again.
    pass(secs(2)).await;
    let look_up = l2.hold_next(Ops::GET_MANY);
    let first = go(reader.get::<u32>("k"));
    look_up.reached().await;
    let others = [go(reader.get::<u32>("k")), go(reader.get::<u32>("k").l2_timeout("1s", "1s"))];
    let produced = go(reader.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) }).tags(["t"]));
    calm().await;
    look_up.release();
    for read in others.into_iter().chain([first]) {
        assert!(matches!(read.await.unwrap().unwrap(), None | Some(2)));
    }
    assert_eq!(produced.await.unwrap().unwrap(), 2);
}

type Row = BTreeMap<String, Vec<u32>>;

/// Julien-R44/bentocache #111: L1 had the object of the caller, who changed it, and the next refill
/// of L2 stored the changed one.
#[tokio::test(start_paused = true)]
async fn a_value_that_its_caller_changes_afterwards_changes_in_no_tier() {
    let world = World::new();
    let node = world.node_where(|s| s.ttl("10s").grace("1h").timeout("none")).await;
    let row = || Row::from([("tags".to_owned(), vec![1])]);
    let change = |row: &mut Row| row.values_mut().for_each(|numbers| numbers.push(2));
    let mut own = row();
    node.set("k", own.clone()).await.unwrap();
    change(&mut own);
    change(&mut node.get::<Row>("k").await.unwrap().unwrap());
    change(&mut node.get_many::<Row>(["k"]).await.unwrap()[0].take().unwrap());
    let none = |_: Context<Row>| async { Err::<Row, _>("a hit") };
    change(&mut node.get_or_set("k", none).await.unwrap());
    assert_eq!(node.get::<Row>("k").await.unwrap(), Some(row()));
    // L2 is refilled with the stale value: after a failure, and by a source that has no newer one.
    pass(secs(11)).await;
    change(&mut node.get_or_set("k", none).await.unwrap());
    pass(secs(11)).await;
    let same = move |cx: Context<Row>| async move {
        change(&mut cx.stale().unwrap().clone());
        cx.not_modified()
    };
    change(&mut node.get_or_set("k", same).await.unwrap());
    node.cache.set("l", node.get::<Row>("k").await.unwrap().unwrap()).await.unwrap();
    for node in [&node, &world.node().await] {
        assert_eq!(node.get::<Row>("k").await.unwrap(), Some(row()));
        assert_eq!(node.get::<Row>("l").await.unwrap(), Some(row()));
    }
    assert_eq!(node.document("k").unwrap()["value"], serde_json::json!({ "tags": [1] }));
}

/// laravel/framework #60626: a key that was stored with two sets of tags was two values, and the
/// invalidation of one set left the other.
#[tokio::test(start_paused = true)]
async fn one_key_with_two_sets_of_tags_is_one_value() {
    for world in [World::only_l1(), World::only_l2(), World::without_bus(), World::new()] {
        let node = world.node().await;
        let set = async |value: u32, tags: &[&str]| {
            node.set("k", value).tags(tags.iter().copied()).await.unwrap();
            settle().await;
        };
        set(1, &["a"]).await;
        set(2, &["b"]).await;
        assert_eq!(fresh(&node, "k").await, Some(2), "the latest, whatever its tags");
        node.delete_by_tag(["a"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, Some(2), "it has that tag no more");
        node.delete_by_tag(["b"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, None);
        for tag in ["a", "b"] {
            set(3, &["a", "b"]).await;
            node.delete_by_tag([tag]).await.unwrap();
            assert_eq!(fresh(&node, "k").await, None, "each of its tags is enough");
        }
        // Without tags it is the same key.
        set(4, &[]).await;
        node.delete_by_tag(["a", "b"]).await.unwrap();
        assert_eq!(fresh(&node, "k").await, Some(4));
    }
}

/// The source gets a burst of requests when all values of one job expire at one instant.
#[tokio::test(start_paused = true)]
async fn values_that_are_stored_at_one_instant_expire_spread_over_the_jitter() {
    const KEYS: usize = 1_000;
    let expired = async |jitter: &str| {
        let node = World::only_l1().node().await;
        let values = (0..KEYS).map(|key| (key.to_string(), 1_u32));
        node.set_many(values).ttl("1m").jitter(jitter).await.unwrap();
        pass(secs(59)).await;
        let (mut before, mut each_second) = (0, Vec::new());
        for _ in 0..63 {
            let keys = (0..KEYS).map(|key| key.to_string());
            let found = node.get_many::<u32>(keys).await.unwrap();
            let gone = found.iter().filter(|value| value.is_none()).count();
            each_second.push(gone - before);
            before = gone;
            pass(secs(1)).await;
        }
        assert_eq!((each_second[0], before), (0, KEYS), "not before the ttl, and all after both");
        each_second
    };
    assert_eq!(expired("0s").await.into_iter().max(), Some(KEYS), "the burst");
    // 17 a second on average.
    let most = expired("1m").await.into_iter().max().unwrap();
    assert!(most <= 60, "{most} of {KEYS} expire in one second");
}

/// A clock that a test sets; timers know nothing of it.
#[derive(Clone, Default)]
struct Manual(Arc<AtomicU64>);

impl TimeSource for Manual {
    fn monotonic_ms(&self) -> u64 {
        self.0.load(SeqCst) + 1
    }

    fn epoch_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.load(SeqCst)
    }
}

/// The machine slept: no timer and no sweep has run, and the first call meets values that have
/// ended. That the system's clock counts the sleep is tested in `clock.rs`.
#[tokio::test(start_paused = true)]
async fn the_first_call_after_a_long_sleep_of_the_machine_finds_no_value_that_ended_meanwhile() {
    for world in [World::only_l1(), World::only_l2(), World::new(), World::without_bus()] {
        let clock = Manual::default();
        let own = clock.clone();
        let node = world.node_with(|builder| builder.clock(own), |s| s.grace("1h")).await;
        let sleep = |hours: u64| clock.0.fetch_add(hours * 3_600_000, SeqCst);
        for key in ["k", "l", "m", "n"] {
            node.set(key, 1_u32).ttl("10m").tags(["t"]).await.unwrap();
        }
        node.set("long", 1_u32).ttl("24h").tags(["t"]).await.unwrap();
        sleep(8);
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(node.get::<u32>("l").grace("1h").await.unwrap(), None, "its grace ended too");
        assert!(!node.has("m").await.unwrap());
        let produced = node.get_or_set("n", |_| async { Ok::<_, Error>(2_u32) });
        assert_eq!(produced.await.unwrap(), 2);
        assert_eq!(get(&node, "long").await, Some(1), "its ttl has not ended");
    }
}
