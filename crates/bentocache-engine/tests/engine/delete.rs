//! `delete` and `delete_many`.

use crate::common::{World, get, get_stale, pass, secs, settle};
use bentocache_testkit::Ops;

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_gone_in_every_tier_and_on_every_node() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).grace("1h").await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    assert!(a.delete("k").await.unwrap());
    settle().await;
    assert_eq!(a.document("k"), None);
    for node in [&a, &b] {
        assert_eq!(get_stale(node, "k").await, None);
        assert!(!node.has("k").await.unwrap());
    }
    assert!(b.seen.texts().contains(&"received 1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn it_tells_whether_something_was_there() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        assert!(!node.delete("k").await.unwrap());
        node.set("k", 1_u32).ttl("10s").grace("10s").await.unwrap();
        assert!(node.delete("k").await.unwrap());
        assert!(!node.delete("k").await.unwrap());
        node.set("k", 1_u32).ttl("10s").grace("10s").await.unwrap();
        pass(secs(15)).await;
        assert!(node.delete("k").await.unwrap(), "a stale value is something");
        node.set("k", 1_u32).ttl("10s").grace("10s").await.unwrap();
        pass(secs(21)).await;
        assert!(!node.delete("k").await.unwrap(), "a gone one is not");
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_take_one_round_trip_and_one_message_and_are_counted() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set_many((0..10_u32).map(|i| (format!("k{i}"), i))).await.unwrap();
        settle().await;
        node.l2.reset_calls();
        node.bus.reset_calls();
        let keys = (5..20).map(|i| format!("k{i}"));
        assert_eq!(node.delete_many(keys).await.unwrap(), 5);
        settle().await;
        assert!(node.l2.calls() <= 1);
        assert!(node.bus.on(Ops::PUBLISH).calls() <= 1);
        assert_eq!(get(&node, "k4").await, Some(4));
        assert_eq!(get(&node, "k5").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_given_twice_counts_once() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).await.unwrap();
        assert_eq!(node.delete_many(["k", "k"]).await.unwrap(), 1);
    }
}

/// In Node an empty list published an empty message.
#[tokio::test(start_paused = true)]
async fn deleting_nothing_does_nothing() {
    let node = World::new().node().await;
    assert_eq!(node.delete_many(Vec::<String>::new()).await.unwrap(), 0);
    settle().await;
    assert_eq!((node.l2.calls(), node.bus.calls()), (0, 0));
    assert_eq!(node.seen.texts(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn it_is_announced_even_when_the_second_tier_failed_and_then_queued() {
    for suppress in [true, false] {
        let world = World::new();
        let options = |s: bentocache::Store| s.suppress_l2_errors(suppress).recovery(10, "10s");
        let (a, b) = (world.node_where(options).await, world.node().await);
        a.set("k", 1_u32).await.unwrap();
        assert_eq!(get(&b, "k").await, Some(1));
        settle().await;
        a.seen.take();
        a.l2.on(Ops::WRITES).fail();
        assert_eq!(a.delete("k").await.is_ok(), suppress);
        settle().await;
        let texts = a.seen.texts();
        assert!(texts.contains(&"published 1".to_owned()), "{texts:?}");
        assert!(texts.contains(&"queued 1".to_owned()), "{texts:?}");
        assert_eq!(get(&a, "k").await, None, "as it will be");
        a.l2.calm();
        pass(secs(30)).await;
        assert_eq!(a.document("k"), None);
        assert_eq!(get(&b, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_in_the_first_tier_counts_although_the_second_failed() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.fail();
    assert!(node.delete("k").await.unwrap());
    assert!(!node.delete("k").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_second_tier_and_the_bus_can_be_left_out() {
    let world = World::new();
    let node = world.node().await;
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    node.bus.reset_calls();
    assert!(node.delete("k").skip_l2_write(true).skip_bus_notify(true).await.unwrap());
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
    assert!(node.document("k").is_some());
    assert_eq!(get(&node, "k").await, Some(1), "from L2");
    node.delete_many(["k"]).skip_bus_notify(true).await.unwrap();
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queued_deletion_does_not_remove_what_was_set_later() {
    let node = World::new().node_where(|s| s.recovery(10, "10s")).await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.on(Ops::WRITES).fail();
    node.delete("k").await.unwrap();
    node.l2.calm();
    node.set("k", 2_u32).await.unwrap();
    pass(secs(30)).await;
    assert_eq!(node.document("k").unwrap()["value"], 2);
    assert_eq!(get(&node, "k").await, Some(2));
}
