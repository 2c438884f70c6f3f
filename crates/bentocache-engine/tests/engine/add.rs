//! `add`: stored only where nothing fresh is.

use crate::common::{Node, World, fill, get, get_stale, ms, pass, secs, settle};
use bentocache::{Cache, Error, EventKind};
use bentocache_testkit::Ops;
use tokio::sync::oneshot;

async fn add(cache: &Cache, key: &str, value: u32) -> bool {
    cache.add(key, value).await.unwrap()
}

/// How many of these calls, which run at the same time, get `true`.
async fn winners(caches: &[Cache], key: &'static str, each: usize) -> usize {
    let mut adds = tokio::task::JoinSet::new();
    for at in 0..each * caches.len() {
        let cache = caches[at % caches.len()].clone();
        adds.spawn(async move { add(&cache, key, at as u32).await });
    }
    adds.join_all().await.into_iter().filter(|won| *won).count()
}

#[tokio::test(start_paused = true)]
async fn it_stores_where_nothing_fresh_is_and_nowhere_else() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        assert!(node.add("k", 1_u32).ttl("10s").await.unwrap());
        assert!(!add(&node, "k", 2).await);
        assert_eq!(get(&node, "k").await, Some(1));
        pass(secs(10)).await;
        assert!(add(&node, "k", 3).await, "its ttl is over");
        assert_eq!(get(&node, "k").await, Some(3));
        node.delete("k").await.unwrap();
        assert!(add(&node, "k", 4).await, "it is deleted");
        node.clear().await.unwrap();
        assert!(add(&node, "k", 5).await, "it is cleared");
        node.set("k", 6_u32).await.unwrap();
        assert!(!add(&node, "k", 7).await);
        assert_eq!(get(&node, "k").await, Some(6));
    }
}

#[tokio::test(start_paused = true)]
async fn it_works_on_a_store_that_clears_by_levels() {
    let world = World::new().without_clear();
    let (a, b) = (world.node().await, world.node().await);
    assert!(add(&a, "k", 1).await && !add(&b, "k", 2).await);
    b.clear().await.unwrap();
    settle().await;
    assert!(add(&a, "k", 3).await && !add(&b, "k", 4).await);
    assert_eq!(get(&b, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_options_of_a_set_apply() {
    let node = World::new().node().await;
    assert!(node.add("k", 1_u32).ttl("10s").grace("20s").tags(["t"]).await.unwrap());
    assert_eq!(node.life("k"), (Some(10_000), Some(30_000)));
    assert_eq!(node.remaining("k"), Some(secs(30)));
    assert_eq!(node.document("k").unwrap()["tags"][0], "t");
    assert!(node.add("only2", 1_u32).skip_l1_write(true).await.unwrap());
    assert_eq!(node.get::<u32>("only2").skip_l2_read(true).await.unwrap(), None);
    assert!(!add(&node, "only2", 2).await);
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_stores_and_deletes_nothing() {
    for world in [World::new(), World::only_l1()] {
        let node = world.node().await;
        assert!(!node.add("k", 1_u32).ttl("0s").await.unwrap());
        assert_eq!(get(&node, "k").await, None);
        node.set("k", 2_u32).await.unwrap();
        assert!(!node.add("k", 1_u32).ttl("0s").await.unwrap());
        assert_eq!(get(&node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_replaced() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).ttl("10s").grace("1h").await.unwrap();
        pass(secs(11)).await;
        assert_eq!(get_stale(&node, "k").await, Some(1));
        assert!(node.add("k", 2_u32).ttl("30s").await.unwrap());
        assert_eq!(get(&node, "k").await, Some(2));
        assert!(!add(&node, "k", 3).await);
        if node.map.peek("bentocache:k").is_some() {
            assert_eq!(node.remaining("k"), Some(secs(30)), "not the expiry of the old one");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_a_tag_invalidated_is_replaced() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).grace("1h").tags(["t"]).await.unwrap();
        assert!(!add(&node, "k", 2).await);
        node.delete_by_tag(["t"]).await.unwrap();
        assert!(node.add("k", 3_u32).tags(["t"]).await.unwrap());
        assert!(!add(&node, "k", 4).await);
        assert_eq!(get(&node, "k").await, Some(3));
    }
}

/// Both have read the stale document before either replaces it.
#[tokio::test(start_paused = true)]
async fn of_two_nodes_that_find_a_stale_value_one_wins() {
    for after_look in [true, false] {
        let world = World::new();
        let (a, b) = (world.node().await, world.node().await);
        a.set("k", 1_u32).ttl("10s").grace("1h").await.unwrap();
        pass(secs(11)).await;
        let start = |node: &Node, value: u32| {
            match after_look {
                true => node.l2.on(Ops::GET).hold_after(),
                false => node.l2.on(Ops::DELETE_IF).hold(),
            }
            let cache = node.cache.clone();
            tokio::spawn(async move { add(&cache, "k", value).await })
        };
        let (first, second) = (start(&a, 2), start(&b, 3));
        a.l2.held(1).await;
        b.l2.held(1).await;
        a.l2.release();
        b.l2.release();
        let won = [first.await.unwrap(), second.await.unwrap()];
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        let expected = if won[0] { 2 } else { 3 };
        settle().await;
        assert_eq!([get(&a, "k").await, get(&b, "k").await], [Some(expected); 2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_tasks_on_several_nodes_one_wins() {
    for (world, nodes) in [(World::new(), 4), (World::only_l2(), 4), (World::only_l1(), 1)] {
        for key in ["missing", "stale", "tagged"] {
            let mut caches = Vec::new();
            for _ in 0..nodes {
                caches.push(world.node().await.cache.clone());
            }
            let first: &Cache = &caches[0];
            first.set("stale", 1_u32).grace("1h").await.unwrap();
            first.expire("stale").await.unwrap();
            first.set("tagged", 1_u32).grace("1h").tags(["t"]).await.unwrap();
            first.delete_by_tag(["t"]).await.unwrap();
            let caches: Vec<Cache> = caches.iter().map(|cache| (**cache).clone()).collect();
            assert_eq!(winners(&caches, key, 100 / nodes).await, 1, "{key}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unverified_entry_of_l1_does_not_decide() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set_many([("gone", 1_u32), ("there", 1)]).await.unwrap();
    a.bus.cut();
    settle().await;
    b.delete("gone").await.unwrap();
    a.bus.restore();
    settle().await;
    assert!(add(&a, "gone", 2).await);
    assert!(!add(&a, "there", 2).await);
}

#[tokio::test(start_paused = true)]
async fn l2_decides_if_l1_may_not() {
    let world = World::without_bus();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    b.delete("k").await.unwrap();
    assert!(!add(&a, "k", 2).await, "a knows of nothing");
    assert!(a.add("k", 2_u32).skip_l1_read(true).await.unwrap());
    b.delete("k").await.unwrap();
    assert!(a.add("k", 3_u32).l1_ttl("0s").await.unwrap());
    assert_eq!(get(&b, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn it_is_announced_and_counted_as_a_set_if_it_stores() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).ttl("10s").grace("1h").await.unwrap();
    // The other node takes the stale value for fresh for a while.
    assert_eq!(get(&b, "k").await, Some(1));
    pass(secs(11)).await;
    let failed = b.get_or_set("k", |_| async { Err::<u32, _>("down") }).grace("1h").timeout("none");
    assert_eq!(failed.grace_backoff("30m").skip_l2_write(true).await.unwrap(), 1);
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    let (written, _) = (a.stats().writes, a.seen.take());
    assert!(add(&a, "k", 2).await);
    settle().await;
    assert_eq!(a.seen.texts(), ["written k", "published 1"]);
    assert_eq!(a.stats().writes, written + 1);
    assert_eq!(get(&b, "k").await, Some(2));
    a.seen.take();
    assert!(!add(&a, "k", 3).await && !add(&b, "k", 3).await);
    settle().await;
    assert_eq!(a.seen.texts(), [""; 0]);
    assert!(a.add("quiet", 1_u32).skip_bus_notify(true).await.unwrap());
    settle().await;
    assert_eq!(a.seen.texts(), ["written quiet"]);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_of_l2_it_fails() {
    for op in [Ops::GET, Ops::SET] {
        let node = World::new().node().await;
        node.l2.on(op).fail();
        let result = node.add("k", 1_u32).await;
        assert!(matches!(result, Err(Error::L2 { operation: "add", .. })), "{result:?}");
        assert_eq!(node.get::<u32>("k").skip_l2_read(true).await.unwrap(), None, "not in L1");
        node.l2.calm();
        assert!(add(&node, "k", 2).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_entry_of_l1_decides_in_an_outage_too() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.fail();
    assert!(!add(&node, "k", 2).await);
}

/// The server stores the value, and its answer is lost.
#[tokio::test(start_paused = true)]
async fn a_value_whose_add_failed_is_removed() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.l2.on(Ops::SET).fail_late();
    a.add("k", 1_u32).await.unwrap_err();
    assert!(a.document("k").is_some());
    a.l2.calm();
    pass(secs(5)).await;
    assert_eq!(a.document("k"), None);
    assert!(add(&b, "k", 2).await && !add(&a, "k", 3).await);
    // Nothing that waits removes the value of the next one.
    a.delete("k").await.unwrap();
    a.l2.on(Ops::SET).fail_late();
    a.add("k", 4_u32).await.unwrap_err();
    a.l2.calm();
    assert!(add(&a, "k", 5).await);
    pass(secs(10)).await;
    assert_eq!([get(&a, "k").await, get(&b, "k").await], [Some(5); 2]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_the_recovery_queue_counts() {
    let node = World::new().node().await;
    // A deletion that waits: the document that is still stored does not count.
    node.set("deleted", 1_u32).await.unwrap();
    // A set that waits counts, although L2 does not have it.
    node.l2.on(Ops::WRITES).fail();
    node.delete("deleted").await.unwrap();
    node.set("set", 1_u32).await.unwrap();
    node.l2.calm();
    assert!(add(&node, "deleted", 2).await);
    assert!(!node.add("set", 2_u32).skip_l1_read(true).await.unwrap());
    pass(secs(10)).await;
    assert_eq!(get(&node, "deleted").await, Some(2));
    assert_eq!(node.document("deleted").unwrap()["value"], 2);
    assert_eq!(node.document("set").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn behind_a_clear_that_waits_it_fails() {
    let node = World::new().node().await;
    node.l2.on(Ops::CLEAR).fail();
    node.namespace("n").clear().await.unwrap();
    let error = node.namespace("n").add("k", 1_u32).await.unwrap_err();
    assert!(format!("{error:?}").contains("a clear of this namespace waits"), "{error:?}");
    assert!(add(&node, "k", 1).await, "another namespace");
    node.l2.calm();
    pass(secs(10)).await;
    assert!(add(&node.namespace("n"), "k", 1).await);
}

#[tokio::test(start_paused = true)]
async fn tags_that_cannot_be_read_are_an_error() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).tags(["t"]).await.unwrap();
    b.l2.on(Ops::GET_MANY).fail();
    let error = b.add("k", 2_u32).await.unwrap_err();
    assert!(format!("{error:?}").contains("tags of the stored value"), "{error:?}");
    b.l2.calm();
    pass(secs(2)).await;
    assert!(!add(&b, "k", 2).await);
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    assert!(add(&b, "k", 2).await);
}

/// A factory that began before does not replace the added value.
#[tokio::test(start_paused = true)]
async fn it_wins_against_a_factory_that_runs() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        let (go, gate) = oneshot::channel::<()>();
        let cache = node.cache.clone();
        let call = tokio::spawn(async move {
            let factory = |_| async move {
                gate.await.unwrap();
                Ok::<_, Error>(1_u32)
            };
            cache.get_or_set("k", factory).await
        });
        settle().await;
        assert!(add(&node, "k", 2).await);
        go.send(()).unwrap();
        assert_eq!(call.await.unwrap().unwrap(), 1, "its caller gets the factory's value");
        settle().await;
        assert_eq!(get(&node, "k").await, Some(2));
        if let Some(document) = node.document("k") {
            assert_eq!(document["value"], 2);
        }
        assert_eq!(fill(&node, "k", 3).await, 2);
    }
}

/// The factory ends after L2 has stored the value, and before `add` knows that.
#[tokio::test(start_paused = true)]
async fn a_factory_that_ends_meanwhile_does_not_store_over_it() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        let (go, gate) = oneshot::channel::<()>();
        let cache = node.cache.clone();
        let call = tokio::spawn(async move {
            let factory = |_| async move {
                gate.await.unwrap();
                Ok::<_, Error>(1_u32)
            };
            cache.get_or_set("k", factory).await
        });
        settle().await;
        node.l2.on(Ops::SET).hold_after();
        let cache = node.cache.clone();
        let added = tokio::spawn(async move { add(&cache, "k", 2).await });
        node.l2.held(1).await;
        go.send(()).unwrap();
        settle().await;
        node.l2.release();
        assert!(added.await.unwrap());
        call.await.unwrap().unwrap();
        settle().await;
        assert_eq!(node.document("k").unwrap()["value"], 2);
        assert_eq!(get(&node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_add_that_stores_nothing_takes_nothing_from_a_factory() {
    for world in [World::new(), World::only_l1()] {
        let node = world.node().await;
        node.set("k", 1_u32).await.unwrap();
        let (go, gate) = oneshot::channel::<()>();
        let cache = node.cache.clone();
        let call = tokio::spawn(async move {
            let factory = |_| async move {
                gate.await.unwrap();
                Ok::<_, Error>(2_u32)
            };
            cache.get_or_set("k", factory).force_fresh(true).await
        });
        settle().await;
        assert!(!add(&node, "k", 3).await);
        assert!(!node.add("k", 3_u32).skip_l1_read(true).await.unwrap());
        go.send(()).unwrap();
        call.await.unwrap().unwrap();
        assert_eq!(get(&node, "k").await, Some(2));
    }
}

/// A set, and a factory after it, come while `add` waits for L2.
#[tokio::test(start_paused = true)]
async fn an_add_that_finds_a_fresh_entry_at_last_takes_nothing_from_a_factory() {
    let node = World::new().node().await;
    node.l2.on(Ops::GET).hold_after();
    let cache = node.cache.clone();
    let added = tokio::spawn(async move { add(&cache, "k", 3).await });
    node.l2.held(1).await;
    node.set("k", 1_u32).await.unwrap();
    let (go, gate) = oneshot::channel::<()>();
    let cache = node.cache.clone();
    let call = tokio::spawn(async move {
        let factory = |_| async move {
            gate.await.unwrap();
            Ok::<_, Error>(2_u32)
        };
        cache.get_or_set("k", factory).force_fresh(true).await
    });
    settle().await;
    node.l2.release();
    assert!(!added.await.unwrap());
    go.send(()).unwrap();
    call.await.unwrap().unwrap();
    assert_eq!(get(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_when_its_caller_is_dropped() {
    let node = World::new().node().await;
    node.l2.on(Ops::SET).slow(ms(100));
    let dropped = tokio::time::timeout(ms(10), node.add("k", 1_u32)).await;
    assert!(dropped.is_err());
    pass(ms(200)).await;
    assert_eq!(node.get::<u32>("k").skip_l2_read(true).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_an_error() {
    let node = World::new().node().await;
    assert!(matches!(node.add("", 1_u32).await, Err(Error::InvalidKey { .. })));
    assert!(matches!(node.add("k", f64::NAN).await, Err(Error::Encode { .. })));
    assert!(matches!(node.add("k", 1_u32).ttl("soon").await, Err(Error::InvalidOption { .. })));
    assert_eq!(node.seen.count(|kind| matches!(kind, EventKind::Written { .. })), 0);
    let store = bentocache::Store::new().l1(bentocache::Memory::new().max_size("1kb"));
    let small = bentocache::BentoCache::builder().store("s", store).build().await.unwrap();
    let result = small.add("k", "x".repeat(10_000)).await;
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_disabled_cache_stores_nothing_and_a_closed_one_fails() {
    let off = World::new().node_where(|store| store.enabled(false)).await;
    assert!(!add(&off, "k", 1).await && off.map.peek("bentocache:k").is_none());
    let node = World::new().node().await;
    node.disconnect_all().await.unwrap();
    assert!(matches!(node.add("k", 1_u32).await, Err(Error::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_handle_has_it() {
    let node = World::new().node().await;
    let typed = node.namespace("n").typed::<u32>();
    assert!(typed.add("k", 1).await.unwrap() && !typed.add("k", 2).await.unwrap());
    assert_eq!(get(&node, "n:k").await, Some(1));
    let blocking = node.cache.blocking();
    let added = tokio::task::spawn_blocking(move || {
        [blocking.add("b", 1_u32).unwrap(), blocking.add("b", 2_u32).unwrap()]
    });
    assert_eq!(added.await.unwrap(), [true, false]);
    let local = node.local::<std::time::Instant>();
    let now = std::time::Instant::now();
    assert!(local.add("l", now).await.unwrap() && !local.add("l", now).await.unwrap());
    assert_eq!(node.map.peek("bentocache:l"), None);
}
