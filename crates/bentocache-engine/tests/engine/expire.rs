//! `expire` and `expire_many`.

use crate::common::{Node, World, get, get_stale, pass, secs, settle};
use crate::races::Skewed;
use bentocache::{Context, Error, TokioTime};
use bentocache_testkit::Ops;

/// A node with entries of 1 h and a grace of 10 m.
async fn graced(world: &World) -> Node {
    world.node_where(|s| s.ttl("1h").grace("10m")).await
}

/// The fresh value for a call without grace.
async fn fresh(node: &Node, key: &str) -> Option<u32> {
    node.get(key).grace("off").await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_expired_key_is_stale_in_every_tier() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = graced(&world).await;
        node.set("k", 1_u32).await.unwrap();
        node.expire("k").await.unwrap();
        assert_eq!(fresh(&node, "k").await, None);
        assert!(!node.has("k").await.unwrap());
        assert_eq!(get(&node, "k").await, Some(1));
        let other = graced(&world).await;
        assert_eq!(fresh(&other, "k").await, None);
        if node.document("k").is_some() {
            assert_eq!(get(&other, "k").await, Some(1));
        }
    }
}

/// In Node the remaining life in Redis became the store's default, 30 m.
#[tokio::test(start_paused = true)]
async fn value_tags_and_what_is_left_of_the_grace_are_kept() {
    for world in [World::new(), World::only_l2()] {
        let node = graced(&world).await;
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        pass(secs(20 * 60)).await;
        let before = node.document("k").unwrap();
        node.expire("k").await.unwrap();
        let after = node.document("k").unwrap();
        for field in ["value", "tags", "tagMarkers", "createdAt", "staleUntil"] {
            assert_eq!(after[field], before[field], "{field}");
        }
        assert_eq!(node.remaining("k"), Some(secs(50 * 60)));
        node.expire("k").await.unwrap();
        assert_eq!(node.document("k").unwrap(), after, "twice is as once");
        pass(secs(50 * 60 - 1)).await;
        assert_eq!(get(&node, "k").await, Some(1));
        pass(secs(2)).await;
        assert_eq!(get(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn with_grace_off_it_is_as_gone() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).await.unwrap();
        node.expire("k").await.unwrap();
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(get_stale(&node, "k").await, None);
        assert_eq!(get_stale(&*world.node().await, "k").await, None);
        node.set_forever("forever", 1_u32).await.unwrap();
        node.expire("forever").await.unwrap();
        assert_eq!(get_stale(&node, "forever").await, None);
        assert_eq!(get_stale(&*world.node().await, "forever").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn the_tiers_agree_on_what_is_left_of_an_entry_that_was_forever() {
    let world = World::new();
    let node = graced(&world).await;
    node.set_forever("k", 1_u32).await.unwrap();
    node.expire("k").await.unwrap();
    pass(secs(60)).await;
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(get(&*graced(&world).await, "k").await, Some(1));
    pass(secs(10 * 60)).await;
    let elsewhere = get(&*graced(&world).await, "k").await;
    assert_eq!(get(&node, "k").await, elsewhere);
}

#[tokio::test(start_paused = true)]
async fn it_is_announced_as_expire() {
    let world = World::new();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("k", 1_u32).await.unwrap();
    get(&b, "k").await;
    settle().await;
    a.seen.take();
    a.expire("k").await.unwrap();
    settle().await;
    assert_eq!(a.seen.texts(), ["expired k", "published 1"]);
    assert_eq!(fresh(&b, "k").await, None);
    b.seen.take();
    assert_eq!(get(&b, "k").await, Some(1));
    assert_eq!(b.seen.reads().len(), 1);
}

/// An entry that the bus invalidated must be compared with L2 before it is served stale.
#[tokio::test(start_paused = true)]
async fn what_another_node_expired_and_set_again_is_read_anew() {
    let world = World::new();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("k", 1_u32).await.unwrap();
    get(&b, "k").await;
    a.expire("k").await.unwrap();
    a.set("k", 2_u32).skip_bus_notify(true).await.unwrap();
    settle().await;
    assert_eq!(b.get_or_set("k", |_| async { Ok::<u32, Error>(3) }).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_factory_sees_the_expired_value() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = graced(&world).await;
        node.set("k", 41_u32).await.unwrap();
        node.expire("k").await.unwrap();
        let produce = |cx: Context<u32>| async move { Ok::<_, Error>(*cx.stale().unwrap() + 1) };
        let value = node.get_or_set("k", produce).timeout("none").await.unwrap();
        assert_eq!(value, 42);
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_one_message() {
    let node = graced(&World::new()).await;
    node.set_many([("a", 1_u32), ("b", 2_u32), ("c", 3_u32)]).await.unwrap();
    settle().await;
    node.bus.reset_calls();
    node.expire_many(["a", "b", "none"]).await.unwrap();
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 1);
    assert_eq!((fresh(&node, "a").await, fresh(&node, "b").await), (None, None));
    assert_eq!(fresh(&node, "c").await, Some(3));
    node.bus.reset_calls();
    node.l2.reset_calls();
    node.expire_many(Vec::<String>::new()).await.unwrap();
    settle().await;
    assert_eq!((node.l2.calls(), node.bus.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_failed_is_announced_and_repeated() {
    let world = World::new();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("k", 1_u32).await.unwrap();
    get(&b, "k").await;
    settle().await;
    a.l2.fail();
    a.bus.reset_calls();
    a.expire("k").await.unwrap();
    settle().await;
    assert_eq!(a.bus.on(Ops::PUBLISH).calls(), 1);
    a.l2.calm();
    assert_eq!(fresh(&a, "k").await, None);
    pass(secs(5)).await;
    assert_eq!(fresh(&graced(&world).await, "k").await, None);
    assert_eq!(fresh(&b, "k").await, None);
    assert_eq!(get(&b, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_l2_failure_that_is_not_suppressed_is_an_error() {
    let node = graced(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.fail();
    assert!(node.expire("k").suppress_l2_errors(false).await.is_err());
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn it_never_expires_a_value_that_was_set_meanwhile() {
    let world = World::new();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("k", 1_u32).await.unwrap();
    a.l2.on(Ops::GET).hold_after();
    let expire = tokio::spawn({
        let cache = a.cache.clone();
        async move { cache.expire("k").await }
    });
    a.l2.held(1).await;
    b.set("k", 2_u32).await.unwrap();
    a.l2.release();
    expire.await.unwrap().unwrap();
    settle().await;
    assert_eq!(a.document("k").unwrap()["value"], 2);
    assert_eq!(fresh(&a, "k").await, Some(2));
    assert_eq!(fresh(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_overlaps_with_an_expiry_is_checked_against_the_second_tier() {
    let node = graced(&World::without_bus()).await;
    node.set("k", 1_u32).await.unwrap();
    let reads = node.l2.on(Ops::GET);
    reads.hold_after();
    let expire = tokio::spawn(node.expire("k").into_future());
    reads.held(1).await;
    node.set("k", 2_u32).await.unwrap();
    reads.release();
    expire.await.unwrap().unwrap();
    // It is unknown here which of the two L2 executed last.
    let before = reads.calls();
    assert_eq!(fresh(&node, "k").await, Some(2));
    assert_eq!(reads.calls(), before + 1);
    assert_eq!(fresh(&node, "k").await, Some(2));
    assert_eq!(reads.calls(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_there_is_no_error() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = graced(&world).await;
        node.expire("k").await.unwrap();
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(node.document("k"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_tier_and_the_bus_can_be_left_out() {
    let node = graced(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    node.bus.reset_calls();
    node.l2.reset_calls();
    node.expire("k").skip_l2_write(true).skip_bus_notify(true).await.unwrap();
    settle().await;
    assert_eq!((node.l2.calls(), node.bus.on(Ops::PUBLISH).calls()), (0, 0));
}

/// The entry may be younger than the expiry by one clock, and the expiry still to come by another.
#[tokio::test(start_paused = true)]
async fn clocks_that_disagree_lose_no_expiry() {
    for skew in [-3_600_000, 3_600_000] {
        for bus in [true, false] {
            let world = if bus { World::new() } else { World::without_bus() };
            let skewed = |b: bentocache::Builder| b.clock(Skewed(TokioTime::new(), skew));
            let (right, wrong) = (world.node().await, world.node_with(skewed, |s| s).await);
            for (writer, other) in [(&right, &wrong), (&wrong, &right)] {
                writer.set("k", 1_u32).ttl("10h").grace("10h").await.unwrap();
                settle().await;
                assert_eq!(fresh(other, "k").await, Some(1));
                other.expire("k").await.unwrap();
                settle().await;
                let anew = world.node().await;
                for node in [other, if bus { writer } else { &anew }, &anew] {
                    assert_eq!(fresh(node, "k").await, None, "skew {skew}, bus {bus}");
                    assert_eq!(get_stale(node, "k").await, Some(1), "skew {skew}, bus {bus}");
                }
            }
        }
    }
}
