//! `pull`: the value, then gone in every tier.

use crate::common::{World, get_stale, pass, secs, settle};
use bentocache::Error;
use bentocache_testkit::Ops;

async fn pull(cache: &bentocache::Cache, key: &str) -> Option<u32> {
    cache.pull(key).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn it_gives_the_value_and_removes_it_from_every_tier_and_node() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).grace("1h").await.unwrap();
    assert_eq!(get_stale(&b, "k").await, Some(1));
    assert_eq!(pull(&a, "k").await, Some(1));
    settle().await;
    assert_eq!(a.document("k"), None);
    assert_eq!(get_stale(&a, "k").await, None);
    assert_eq!(get_stale(&b, "k").await, None);
    assert_eq!(pull(&a, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn it_works_with_either_tier_alone() {
    for world in [World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        assert_eq!(pull(&node, "k").await, None);
        node.set("k", 1_u32).await.unwrap();
        assert_eq!(pull(&node, "k").await, Some(1));
        assert_eq!(pull(&node, "k").await, None);
    }
}

/// In Node two pulls at once gave the value twice.
#[tokio::test(start_paused = true)]
async fn of_many_pulls_at_once_on_one_node_one_gets_the_value() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).await.unwrap();
        let mut pulls = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let cache = node.cache.clone();
            pulls.spawn(async move { pull(&cache, "k").await });
        }
        let got = pulls.join_all().await.into_iter().flatten().count();
        assert_eq!(got, 1);
    }
}

/// Both have it in their L1, and both have asked L2 before either knows.
#[tokio::test(start_paused = true)]
async fn of_pulls_on_two_nodes_one_gets_the_value() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(get_stale(&b, "k").await, Some(1));
    let start = |node: &crate::common::Node| {
        node.l2.on(Ops::PULL).hold_after();
        let cache = node.cache.clone();
        tokio::spawn(async move { pull(&cache, "k").await })
    };
    let (first, second) = (start(&a), start(&b));
    a.l2.held(1).await;
    b.l2.held(1).await;
    a.l2.release();
    b.l2.release();
    let got = [first.await.unwrap(), second.await.unwrap()];
    assert_eq!(got.iter().flatten().count(), 1, "{got:?}");
}

#[tokio::test(start_paused = true)]
async fn it_gives_what_the_second_tier_has_even_if_the_first_has_something_older() {
    let world = World::without_bus();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    pass(secs(1)).await;
    b.set("k", 2_u32).await.unwrap();
    assert_eq!(pull(&a, "k").await, Some(2));
    a.set("gone", 1_u32).await.unwrap();
    b.delete("gone").await.unwrap();
    assert_eq!(pull(&a, "gone").await, None, "L2 decides");
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_given_only_with_grace_on_and_is_gone_all_the_same() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        for (grace, wanted) in [("1h", Some(1)), ("off", None)] {
            node.set("k", 1_u32).ttl("1s").grace("1h").await.unwrap();
            pass(secs(2)).await;
            assert_eq!(node.pull::<u32>("k").grace(grace).await.unwrap(), wanted);
            assert_eq!(get_stale(&node, "k").await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_invalidated_by_a_tag_is_stale() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).grace("1h").tags(["t"]).await.unwrap();
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(pull(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stored_null_is_a_value() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", None::<u32>).await.unwrap();
        assert_eq!(node.pull::<Option<u32>>("k").await.unwrap(), Some(None));
        assert_eq!(node.pull::<Option<u32>>("k").await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn another_type_is_converted_and_an_unreadable_one_is_a_miss() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u8).await.unwrap();
        assert_eq!(node.pull::<u64>("k").await.unwrap(), Some(1));
        node.set("k", "text".to_owned()).await.unwrap();
        node.seen.take();
        assert_eq!(node.pull::<u64>("k").await.unwrap(), None);
        assert!(node.seen.texts().contains(&"decode failed k".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_announced_as_a_deletion() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    node.seen.take();
    pull(&node, "k").await;
    settle().await;
    let texts = node.seen.texts();
    assert!(texts.contains(&"deleted k".to_owned()), "{texts:?}");
    assert!(texts.contains(&"published 1".to_owned()), "{texts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_not_suppressed_is_an_error() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.fail();
    let pulled = node.pull::<u32>("k").suppress_l2_errors(false).await;
    assert!(matches!(pulled, Err(Error::L2 { .. })));
}

#[tokio::test(start_paused = true)]
async fn after_a_suppressed_failure_it_is_gone_all_the_same() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    a.l2.on(Ops::PULL).fail();
    a.pull::<u32>("k").await.unwrap();
    assert_eq!(get_stale(&a, "k").await, None);
    a.l2.calm();
    pass(secs(5)).await;
    assert_eq!(a.document("k"), None);
    assert_eq!(get_stale(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_still_waits_for_the_second_tier_can_be_pulled_once() {
    let world = World::new();
    let node = world.node_where(|s| s.recovery(10, "10s")).await;
    node.l2.on(Ops::SET).fail();
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(pull(&node, "k").await, Some(1));
    assert_eq!(pull(&node, "k").await, None);
    node.l2.calm();
    pass(secs(60)).await;
    assert_eq!(node.document("k"), None);
}

/// Where L1 is the only one, it is judged by the same rules.
#[tokio::test(start_paused = true)]
async fn it_agrees_with_get_on_what_is_stale() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        for grace in ["off", "1h"] {
            for how in ["fresh", "expired", "invalidated", "past l1_ttl", "no l1_ttl"] {
                let l1_ttl = if how == "no l1_ttl" { "0" } else { "5s" };
                let node = world.node_where(|s| s.l1_ttl(l1_ttl)).await;
                node.set("k", 1_u32).grace("1h").tags(["t"]).await.unwrap();
                match how {
                    "expired" => node.expire("k").await.unwrap(),
                    "invalidated" => node.delete_by_tag(["t"]).await.unwrap(),
                    "past l1_ttl" => pass(secs(6)).await,
                    _ => {}
                }
                settle().await;
                let kind =
                    |reads: Vec<String>| reads.join(" ").split(' ').next().map(str::to_owned);
                node.seen.take();
                let got = node.get::<u32>("k").grace(grace).await.unwrap();
                let told = kind(node.seen.reads());
                let pulled = node.pull::<u32>("k").grace(grace).await.unwrap();
                assert_eq!((pulled, kind(node.seen.reads())), (got, told), "{how}, grace {grace}");
            }
        }
    }
}
