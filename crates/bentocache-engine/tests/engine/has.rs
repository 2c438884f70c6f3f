//! `has` and `missing`.

use crate::common::{World, get, ms, pass, secs, settle};
use bentocache_testkit::Ops;

/// Both at once: `missing` is the opposite.
async fn has(cache: &bentocache::Cache, key: &str) -> bool {
    let has = cache.has(key).await.unwrap();
    assert_eq!(cache.missing(key).await.unwrap(), !has);
    has
}

#[tokio::test(start_paused = true)]
async fn has_is_true_for_what_is_fresh_in_any_tier() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        assert!(!has(&node, "k").await);
        node.set("k", 1_u32).ttl("10s").await.unwrap();
        assert!(has(&node, "k").await);
        pass(secs(11)).await;
        assert!(!has(&node, "k").await);
    }
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    assert!(has(&*world.node().await, "k").await, "in L2 only");
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_does_not_count() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.grace("1h")).await;
        node.set("k", 1_u32).ttl("10s").await.unwrap();
        pass(secs(11)).await;
        assert_eq!(get(&node, "k").await, Some(1));
        assert!(!has(&node, "k").await);
        node.set("k", 1_u32).await.unwrap();
        node.expire("k").await.unwrap();
        assert!(!has(&node, "k").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_invalidated_by_a_tag_does_not_count() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.grace("1h")).await;
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        assert!(has(&node, "k").await);
        node.delete_by_tag(["t"]).await.unwrap();
        assert!(!has(&node, "k").await);
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        assert!(has(&node, "k").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_cannot_be_looked_up_counts_as_stale() {
    let world = World::new();
    world.node().await.set("k", 1_u32).tags(["t"]).await.unwrap();
    let node = world.node().await;
    // The entry is read, the marker is not.
    node.l2.on(Ops::GET).hold_after();
    let (there, ()) = tokio::join!(async { node.has("k").await.unwrap() }, async {
        node.l2.held(1).await;
        node.l2.on(Ops::GET | Ops::GET_MANY).fail();
        node.l2.release();
    });
    assert!(!there);
}

#[tokio::test(start_paused = true)]
async fn a_stored_null_counts() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("null", None::<u32>).await.unwrap();
        node.set("unit", ()).await.unwrap();
        assert!(has(&node, "null").await);
        assert!(has(&node, "unit").await);
    }
}

#[tokio::test(start_paused = true)]
async fn no_value_is_decoded() {
    let world = World::new();
    let node = world.node().await;
    // A number that no Rust type holds: only a look at the value itself would find out.
    let document = r#"{"value":[1e999],"createdAt":1}"#;
    world.l2.put("bentocache:k", document, None);
    node.seen.take();
    assert!(has(&node, "k").await);
    assert_eq!(node.seen.texts(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_promoted() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    assert!(has(&node, "k").await);
    node.seen.take();
    get(&node, "k").await;
    assert_eq!(node.seen.reads(), ["hit l2 k"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_first_tier_is_answered_there() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.reset_calls();
    assert!(has(&node, "k").await);
    assert_eq!(node.l2.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn undecodable_bytes_do_not_count_and_are_no_error() {
    let world = World::new();
    let node = world.node().await;
    for bytes in ["", "garbage", "{", "{}", "[]", "null", r#"{"createdAt":1}"#, "\u{b3}"] {
        world.l2.put("bentocache:k", bytes, None);
        assert!(!has(&node, "k").await, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_l2_failure_is_a_miss_or_an_error() {
    let node = World::new().node().await;
    node.l2.fail();
    assert!(!node.has("k").await.unwrap());
    assert!(node.missing("k").await.unwrap());
    assert!(node.has("k").suppress_l2_errors(false).await.is_err());
    assert!(node.missing("k").suppress_l2_errors(false).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_second_tier_can_be_left_out() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    assert!(!node.has("k").skip_l2_read(true).await.unwrap());
    assert!(node.missing("k").skip_l2_read(true).await.unwrap());
    assert_eq!(node.l2.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_another_node_deleted_is_not_there() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    get(&b, "k").await;
    a.delete("k").await.unwrap();
    settle().await;
    assert!(!has(&b, "k").await);
    a.set("k", 2_u32).await.unwrap();
    pass(ms(10)).await;
    assert!(has(&b, "k").await);
}
