//! Events: their kinds, times and receivers; and that a listener can do no harm.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::common::{Node, World, fail, fill, get, get_stale, ms, pass, secs, settle};
use bentocache::{BentoCache, Context, Error, Event, EventKind, Memory, Observer, Store};
use bentocache_testkit::{MapL2, Ops};

/// The events of `run`, without those of the bus.
async fn events_of<R>(node: &Node, run: impl AsyncFnOnce() -> R) -> Vec<String> {
    settle().await;
    node.seen.take();
    run().await;
    settle().await;
    let mut texts = node.seen.texts();
    texts.retain(|text| !text.starts_with("published") && !text.starts_with("received"));
    texts
}

// One call is one hit or one miss, of the right tier.

#[tokio::test(start_paused = true)]
async fn get_tells_the_tier_it_found_the_value_in() {
    let world = World::new();
    world.node().await.set("k", 1_u32).ttl("10s").grace("1h").await.unwrap();
    let node = world.node().await;
    assert_eq!(events_of(&node, async || get(&node, "k").await).await, ["hit l2 k"]);
    assert_eq!(events_of(&node, async || get(&node, "k").await).await, ["hit l1 k"]);
    assert_eq!(events_of(&node, async || get(&node, "none").await).await, ["miss none"]);
    pass(secs(11)).await;
    assert_eq!(events_of(&node, async || get(&node, "k").await).await, ["miss k"]);
    assert_eq!(events_of(&node, async || get_stale(&node, "k").await).await, ["graced l1 k"]);
    let other = world.node().await;
    assert_eq!(events_of(&other, async || get_stale(&other, "k").await).await, ["graced l2 k"]);
}

#[tokio::test(start_paused = true)]
async fn get_tells_the_same_without_a_first_tier() {
    let node = World::only_l2().node().await;
    node.set("k", 1_u32).ttl("10s").grace("1h").await.unwrap();
    node.set("tagged", 1_u32).ttl("10s").tags(["t"]).await.unwrap();
    assert_eq!(events_of(&node, async || get(&node, "k").await).await, ["hit l2 k"]);
    assert_eq!(events_of(&node, async || get(&node, "tagged").await).await, ["hit l2 tagged"]);
    assert_eq!(events_of(&node, async || get(&node, "none").await).await, ["miss none"]);
    pass(secs(11)).await;
    assert_eq!(events_of(&node, async || get(&node, "k").await).await, ["miss k"]);
    assert_eq!(events_of(&node, async || get_stale(&node, "k").await).await, ["graced l2 k"]);
}

#[tokio::test(start_paused = true)]
async fn get_or_set_is_one_hit_or_one_miss() {
    let world = World::new();
    let node = world.node_where(|s| s.ttl("10s").grace("1h").timeout("1s")).await;
    let filled = events_of(&node, async || fill(&node, "k", 1).await).await;
    assert_eq!(filled, ["factory ok k", "written k", "miss k"]);
    assert_eq!(events_of(&node, async || fill(&node, "k", 1).await).await, ["hit l1 k"]);
    let other = world.node().await;
    assert_eq!(events_of(&other, async || fill(&other, "k", 1).await).await, ["hit l2 k"]);
    pass(secs(11)).await;
    let failed = events_of(&node, async || fail(&node, "k").await).await;
    assert_eq!(failed, ["factory failed k", "graced l1 k"]);
    let failed = events_of(&node, async || fail(&node, "none").await).await;
    assert_eq!(failed, ["factory failed none", "miss none"]);
    let skip = |cx: Context<u32>| async move { cx.skip() };
    let skipped = events_of(&node, async || node.get_or_set("none", skip).optional().await).await;
    assert_eq!(skipped, ["miss none"]);
}

#[tokio::test(start_paused = true)]
async fn every_waiter_has_one_of_its_own() {
    let node = World::new().node().await;
    let texts = events_of(&node, async || {
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let cache = node.cache.clone();
            let slow = |_| async {
                pass(secs(1)).await;
                Ok::<_, Error>(1_u32)
            };
            callers.spawn(async move { cache.get_or_set("k", slow).await.unwrap() });
        }
        callers.join_all().await;
    })
    .await;
    assert_eq!(texts.iter().filter(|text| *text == "miss k").count(), 10);
    assert_eq!(texts.iter().filter(|text| *text == "factory ok k").count(), 1);
    assert_eq!(texts.len(), 12, "{texts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_served_at_once_is_a_graced_hit_and_the_refresh_is_in_the_background() {
    for (world, tier) in [(World::new(), "l1"), (World::only_l1(), "l1"), (World::only_l2(), "l2")]
    {
        let node = world.node_where(|s| s.grace("1h")).await;
        node.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(secs(2)).await;
        let slow = |_| async {
            pass(ms(2)).await;
            Ok::<_, Error>(2_u32)
        };
        let texts = events_of(&node, async || node.get_or_set("k", slow).await).await;
        let graced = format!("graced {tier} k");
        assert_eq!(texts, [&*graced, "factory ok background k", "written k"]);
        node.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(secs(2)).await;
        let slow = |_| async {
            pass(ms(2)).await;
            Err::<u32, _>("down")
        };
        let texts = events_of(&node, async || node.get_or_set("k", slow).await).await;
        assert_eq!(texts, [&*graced, "factory failed background k"]);
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_are_told() {
    let node = World::new().node_where(|s| s.grace("1h")).await;
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let slow = |_| async {
        pass(secs(2)).await;
        Ok::<_, Error>(2_u32)
    };
    let texts = events_of(&node, async || node.get_or_set("k", slow).timeout("500ms").await).await;
    assert_eq!(texts, ["soft timeout k", "graced l1 k"]);
    let texts =
        events_of(&node, async || node.get_or_set("l", slow).hard_timeout("500ms").await).await;
    assert_eq!(texts, ["hard timeout l", "miss l"]);
    let texts = events_of(&node, async || pass(secs(3)).await).await;
    let background =
        ["factory ok background k", "factory ok background l", "written k", "written l"];
    for wanted in background {
        assert!(texts.contains(&wanted.to_owned()), "{wanted} in {texts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pull_is_a_hit_or_a_miss() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    for (wanted, _) in [("hit l2 k", 0), ("miss k", 1)] {
        let texts = events_of(&node, async || node.pull::<u32>("k").await).await;
        let reads: Vec<_> = texts.iter().filter(|t| !t.starts_with("deleted")).collect();
        assert_eq!(reads, [wanted]);
    }
}

// Changes

#[tokio::test(start_paused = true)]
async fn changes_are_told_once() {
    let node = World::new().node().await;
    let texts = events_of(&node, async || {
        node.set("a", 1_u32).await.unwrap();
        node.set_many([("b", 1_u32), ("c", 2)]).await.unwrap();
        node.expire("a").await.unwrap();
        node.delete("a").await.unwrap();
        node.delete_many(["b", "c"]).await.unwrap();
        node.delete_by_tag(["t", "t"]).await.unwrap();
        node.clear().await.unwrap();
    })
    .await;
    let wanted = [
        "written a",
        "written b",
        "written c",
        "expired a",
        "deleted a",
        "deleted b",
        "deleted c",
        "tag t",
        "cleared ",
    ];
    assert_eq!(texts, wanted);
}

#[tokio::test(start_paused = true)]
async fn looking_up_tags_is_no_hit_no_miss_and_no_write() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let texts = events_of(&a, async || {
        a.set("k", 1_u32).tags(["t", "u"]).await.unwrap();
        get(&a, "k").await;
        a.delete_by_tag(["t"]).await.unwrap();
        get(&a, "k").await;
    })
    .await;
    assert_eq!(texts, ["written k", "hit l1 k", "tag t", "miss k"]);
    a.set("k", 1_u32).tags(["t", "u"]).await.unwrap();
    let texts = events_of(&b, async || {
        get(&b, "k").await;
        b.has("k").await.unwrap();
        b.get_many::<u32>(["k", "none"]).await.unwrap();
    })
    .await;
    assert_eq!(texts, ["hit l2 k", "hit l1 k", "miss none"]);
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_second_tier_and_the_breaker_are_told() {
    let node = World::new().node_where(|s| s.l2_circuit_breaker("10s", 2)).await;
    node.l2.fail();
    let texts = events_of(&node, async || get(&node, "k").await).await;
    assert_eq!(texts, ["l2 failed get", "miss k"]);
    let texts = events_of(&node, async || get(&node, "k").await).await;
    assert_eq!(texts, ["breaker opened", "l2 failed get", "miss k"]);
    node.l2.calm();
    pass(secs(11)).await;
    let texts = events_of(&node, async || get(&node, "k").await).await;
    assert_eq!(texts, ["breaker closed", "miss k"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_recovery_is_told() {
    let node = World::new().node_where(|s| s.recovery(2, "10s")).await;
    node.l2.on(Ops::SET).fail();
    node.seen.take();
    for key in ["a", "b", "c"] {
        node.set(key, 1_u32).await.unwrap();
    }
    let mut texts = node.seen.texts();
    texts.retain(|text| text.starts_with("queued") || text.starts_with("dropped"));
    assert_eq!(texts, ["queued 1", "queued 2", "dropped 2", "queued 2"]);
    node.l2.calm();
    pass(secs(30)).await;
    let mut texts = node.seen.texts();
    texts.retain(|text| text.starts_with("done"));
    assert_eq!(texts, ["done 1", "done 0"]);
}

#[tokio::test(start_paused = true)]
async fn the_bus_is_told_of() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set_many([("a", 1_u32), ("b", 2)]).await.unwrap();
    settle().await;
    assert!(a.seen.texts().contains(&"published 2".to_owned()));
    assert_eq!(b.seen.texts(), ["received 2"]);
    b.bus.cut();
    settle().await;
    b.bus.restore();
    settle().await;
    assert_eq!(b.seen.texts(), ["lost", "restored"]);
    use bentocache::driver::{BusDriver, Topic};
    let topic = Topic::new("bentocache.notifications:s", "");
    world.bus.publish(topic, bytes::Bytes::from_static(b"?")).await.unwrap();
    settle().await;
    assert_eq!(b.seen.texts(), ["rejected"]);
}

/// An event has the store's name and the real duration of a factory.
#[tokio::test(start_paused = true)]
async fn an_event_names_its_store_and_a_factory_its_duration() {
    let node = World::new().node().await;
    let slow = |_| async {
        pass(secs(3)).await;
        Ok::<_, Error>(1_u32)
    };
    node.get_or_set("k", slow).await.unwrap();
    let events = node.seen.take();
    assert!(events.iter().all(|event| event.store == "s"));
    let took = events.iter().find_map(|event| match event.kind {
        EventKind::FactorySucceeded { took, .. } => Some(took),
        _ => None,
    });
    assert_eq!(took, Some(secs(3)));
}

// Listeners

#[derive(Clone, Default)]
struct Panics(Arc<AtomicUsize>);

impl Observer for Panics {
    fn observe(&self, _: &Event<'_>) {
        self.0.fetch_add(1, SeqCst);
        panic!("in an observer");
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_harms_neither_the_cache_nor_the_others() {
    let (panics, world) = (Panics::default(), World::new());
    let node = world
        .node_with(|builder| builder.observer(panics.clone()).observer(panics.clone()), |s| s)
        .await;
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(fill(&node, "l", 2).await, 2);
    assert!(node.seen.texts().contains(&"hit l1 k".to_owned()));
    assert!(panics.0.load(SeqCst) >= 4);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_is_counted_and_goes_on() {
    let node = World::new().node().await;
    let (sender, seen) = mpsc::channel();
    let listener = node
        .on(move |event| {
            if let EventKind::Written { key } = &event.kind {
                sender.send(key.to_string()).unwrap();
                panic!("in a listener");
            }
        })
        .unwrap();
    for key in ["a", "b"] {
        node.set(key, 1_u32).await.unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(10)).unwrap(), key);
    }
    node.set("c", 1_u32).await.unwrap();
    seen.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(listener.panics() >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_hangs_holds_nobody_up() {
    let node = World::new().node().await;
    let (release, held) = mpsc::channel::<()>();
    node.on(move |_| {
        let _ = held.recv();
    })
    .unwrap();
    for i in 0..10_000_u32 {
        node.set("k", i).await.unwrap();
        assert_eq!(get(&node, "k").await, Some(i));
    }
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_was_stopped_hears_nothing_more() {
    let node = World::new().node().await;
    let (sender, seen) = mpsc::channel();
    let listener = node.on(move |event| drop(sender.send(event.clone()))).unwrap();
    get(&node, "k").await;
    assert!(seen.recv_timeout(Duration::from_secs(10)).is_ok());
    listener.stop();
    get(&node, "k").await;
    get(&node, "k").await;
    // Its thread ends, and the sender with it.
    let mut late = 0;
    while seen.recv_timeout(Duration::from_secs(10)).is_ok() {
        late += 1;
    }
    assert_eq!(late, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_every_event_from_its_opening_on() {
    let node = World::new().node().await;
    node.set("before", 1_u32).await.unwrap();
    settle().await;
    let mut events = node.events();
    assert!(events.try_next().is_none());
    node.set("k", 1_u32).skip_bus_notify(true).await.unwrap();
    get(&node, "k").await;
    assert!(matches!(&events.next().await.unwrap().kind, EventKind::Written { key } if key == "k"));
    assert!(matches!(&events.try_next().unwrap().kind, EventKind::Hit { key, .. } if key == "k"));
    assert!(events.try_next().is_none());
    assert_eq!(events.missed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_misses_events_and_knows_how_many() {
    let node = World::only_l1().node().await;
    let mut events = node.events();
    for _ in 0..10_000 {
        get(&node, "k").await;
    }
    let mut read = 0;
    while events.try_next().is_some() {
        read += 1;
    }
    assert_eq!(read + events.missed(), 10_000);
    assert!(events.missed() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_cache() {
    let cache = BentoCache::builder()
        .store("m", Store::new().l1(Memory::new()).l2(MapL2::new()))
        .build()
        .await
        .unwrap();
    let mut events = cache.events();
    drop(cache);
    let end = tokio::time::timeout(secs(10), events.next()).await;
    assert!(matches!(end, Ok(None)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_the_events_of_all_stores() {
    let memory = || Store::new().l1(Memory::new());
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let mut events = cache.events();
    cache.get::<u32>("k").await.unwrap();
    cache.store("b").unwrap().get::<u32>("k").await.unwrap();
    assert_eq!(events.next().await.unwrap().store, "a");
    assert_eq!(events.next().await.unwrap().store, "b");
}

/// `announce`, `expire` and similar messages of one node are no changes for another node: it
/// receives them.
#[tokio::test(start_paused = true)]
async fn what_is_received_is_not_announced_again() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    get(&b, "k").await;
    a.delete("k").await.unwrap();
    a.expire("l").await.unwrap();
    a.clear().await.unwrap();
    pass(secs(1)).await;
    assert_eq!(b.bus.on(Ops::PUBLISH).calls(), 0);
}
