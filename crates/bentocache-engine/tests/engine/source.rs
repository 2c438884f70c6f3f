//! `with_source`: where a value came from. `skip_l1_read`: what is in L1 does not count.

use std::sync::Arc;

use crate::common::{World, fill, ms, pass, secs, settle};
use bentocache::{Error, Source};
use tokio::sync::Notify;

#[tokio::test(start_paused = true)]
async fn each_value_says_where_it_came_from() {
    let world = World::new();
    let (a, b) =
        (world.node_where(|s| s.grace("1h")).await, world.node_where(|s| s.grace("1h")).await);
    let request = |value: u32| move |_| async move { Ok::<_, Error>(value) };
    let first = a.get_or_set("k", request(1)).ttl("10s").with_source().await.unwrap();
    assert_eq!(first, (1, Source::Factory));
    assert_eq!(a.get_or_set("k", request(2)).with_source().await.unwrap(), (1, Source::L1));
    assert_eq!(b.get_or_set("k", request(2)).with_source().await.unwrap(), (1, Source::L2));
    assert_eq!(b.get_or_set("k", request(2)).with_source().await.unwrap(), (1, Source::L1));
    pass(secs(11)).await;
    let fails = |_| async { Err::<u32, _>("down") };
    let refreshed = b.get_or_set("k", fails).grace_backoff("0s").with_source();
    assert_eq!(refreshed.await.unwrap(), (1, Source::Stale));
    let failed = b.get_or_set("k", fails).timeout("none").grace_backoff("0s").with_source();
    assert_eq!(failed.await.unwrap(), (1, Source::Stale));
    let off = world.node_where(|s| s.enabled(false)).await;
    assert_eq!(off.get_or_set("k", request(3)).with_source().await.unwrap(), (3, Source::Factory));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_factory_of_another_call_is_told() {
    let node = Arc::new(World::new().node().await);
    let release = Arc::new(Notify::new());
    let slow = release.clone();
    let leader = tokio::spawn({
        let node = node.clone();
        async move {
            let factory = move |_| async move {
                slow.notified().await;
                Ok::<_, Error>(1_u32)
            };
            node.get_or_set("k", factory).with_source().await
        }
    });
    settle().await;
    let follower = tokio::spawn({
        let node = node.clone();
        async move { node.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) }).with_source().await }
    });
    settle().await;
    release.notify_one();
    assert_eq!(leader.await.unwrap().unwrap(), (1, Source::Factory));
    assert_eq!(follower.await.unwrap().unwrap(), (1, Source::Waited));
}

/// What L2 has under the key differs from what L1 has.
async fn differing() -> (World, crate::common::Node) {
    let world = World::without_bus();
    let (node, other) = (world.node().await, world.node().await);
    node.set("k", 1_u32).await.unwrap();
    pass(ms(5)).await;
    other.set("k", 2_u32).await.unwrap();
    assert_eq!(node.get("k").await.unwrap(), Some(1_u32));
    (world, node)
}

#[tokio::test(start_paused = true)]
async fn a_read_that_skips_l1_gets_the_value_of_l2_and_puts_it_into_l1() {
    let (_world, node) = differing().await;
    assert_eq!(node.get("k").skip_l1_read(true).await.unwrap(), Some(2_u32));
    assert_eq!(node.get("k").await.unwrap(), Some(2_u32));

    let (_world, node) = differing().await;
    assert_eq!(node.get_many(["k"]).skip_l1_read(true).await.unwrap(), [Some(2_u32)]);
    let (_world, node) = differing().await;
    let call = node.get_or_set("k", |_| async { Ok::<_, Error>(3_u32) }).skip_l1_read(true);
    assert_eq!(call.with_source().await.unwrap(), (2, Source::L2));
    let (_world, node) = differing().await;
    let factory = |_| async { Ok::<_, Error>([("k", 3_u32)]) };
    let many = node.get_or_set_many(["k"], factory).skip_l1_read(true);
    assert_eq!(many.await.unwrap(), [Some(2)]);

    let (world, node) = differing().await;
    world.node().await.delete("k").await.unwrap();
    assert!(node.has("k").await.unwrap());
    assert!(!node.has("k").skip_l1_read(true).await.unwrap());
    assert!(node.missing("k").skip_l1_read(true).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_l1_ttl_of_0_on_a_read_asks_l2_and_falls_back_to_l1_when_l2_fails() {
    let (_world, node) = differing().await;
    assert_eq!(node.get("k").l1_ttl("0s").await.unwrap(), Some(2_u32));
    let (_world, node) = differing().await;
    let call = node.get_or_set("k", |_| async { Ok::<_, Error>(3_u32) }).l1_ttl("0s");
    assert_eq!(call.with_source().await.unwrap(), (2, Source::L2));
    let (_world, node) = differing().await;
    assert_eq!(node.get_many(["k"]).l1_ttl("0s").await.unwrap(), [Some(2_u32)]);

    let (_world, node) = differing().await;
    node.l2.fail();
    assert_eq!(node.get("k").l1_ttl("0s").await.unwrap(), Some(1_u32));
    assert_eq!(node.get::<u32>("k").skip_l1_read(true).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn without_l2_a_read_that_skips_l1_is_a_miss() {
    let node = World::only_l1().node().await;
    fill(&node, "k", 1).await;
    assert_eq!(node.get::<u32>("k").skip_l1_read(true).await.unwrap(), None);
    assert_eq!(node.get::<u32>("k").l1_ttl("0s").await.unwrap(), Some(1));
}
