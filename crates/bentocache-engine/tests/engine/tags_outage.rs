//! Tags while L2, the bus or both are down: they follow `when_bus_is_down`.

use crate::common::{Node, World, get_stale, ms, pass, secs, settle};
use crate::races::{Source, fresh};
use bentocache::{BusDown, Error, ManyContext, Store};

fn worlds() -> [World; 2] {
    [World::without_bus(), World::new()]
}

/// How often the factory runs in 200 reads within 20 seconds.
async fn runs_of(node: &Node, key: &'static str, tags: &[&str]) -> usize {
    let source = Source::new();
    for _ in 0..200 {
        let call = node.get_or_set(key, source.gives(9_u32)).tags(tags.iter().copied());
        call.await.unwrap();
        pass(ms(100)).await;
    }
    source.runs()
}

async fn set(node: &Node, key: &str, value: u32, tags: &[&str]) {
    node.set(key, value).tags(tags.iter().copied()).await.unwrap();
}

/// Without both tiers' connection, and without the bus.
async fn cut(node: &Node) {
    node.l2.cut();
    node.bus.cut();
    settle().await;
}

async fn restore(node: &Node) {
    node.l2.restore();
    node.bus.restore();
    pass(secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_second_tier_costs_tagged_values_no_factory_run() {
    for world in worlds() {
        let node = world.node().await;
        set(&node, "tagged", 1, &["a", "b"]).await;
        set(&node, "untagged", 1, &[]).await;
        assert_eq!(fresh(&node, "tagged").await, Some(1));
        node.l2.cut();
        assert_eq!(runs_of(&node, "tagged", &["a", "b"]).await, 0);
        assert_eq!(runs_of(&node, "untagged", &[]).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_second_tier_and_bus_costs_tagged_values_no_factory_run() {
    let node = World::new().node().await;
    set(&node, "tagged", 1, &["a", "b"]).await;
    set(&node, "untagged", 1, &[]).await;
    assert_eq!(fresh(&node, "tagged").await, Some(1));
    cut(&node).await;
    assert_eq!(runs_of(&node, "tagged", &["a", "b"]).await, 0);
    assert_eq!(runs_of(&node, "untagged", &[]).await, 0);
    assert!(node.has("tagged").await.unwrap());
    assert_eq!(node.get_many::<u32>(["tagged", "untagged"]).await.unwrap(), [Some(1); 2]);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_a_tag_is_asked_for_once_an_interval_while_the_second_tier_fails() {
    let node = World::new().node_where(|s| s.l2_circuit_breaker("off", 1)).await;
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    cut(&node).await;
    pass(secs(2)).await;
    node.l2.reset_calls();
    assert_eq!(runs_of(&node, "k", &["t"]).await, 0);
    assert!(node.l2.calls() <= 21, "{} calls in 20 s", node.l2.calls());
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_by_another_node_during_the_outage_is_seen_after_it() {
    for world in worlds() {
        let (node, other) = (world.node().await, world.node().await);
        set(&node, "k", 1, &["t"]).await;
        set(&node, "l", 1, &["u"]).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        cut(&node).await;
        other.delete_by_tag(["t"]).await.unwrap();
        pass(secs(5)).await;
        assert_eq!(fresh(&node, "k").await, Some(1), "it cannot know");
        restore(&node).await;
        assert_eq!(fresh(&node, "k").await, None);
        assert_eq!(fresh(&node, "l").await, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_a_message_points_at_is_unknown_until_its_marker_is_read() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    node.l2.cut();
    other.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    // With the bus gone afterwards, too.
    for _ in 0..20 {
        assert_eq!(fresh(&node, "k").await, None);
        pass(ms(700)).await;
        node.bus.cut();
    }
    restore(&node).await;
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_this_node_invalidates_during_the_outage_is_invalid() {
    let node = World::new().node().await;
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    cut(&node).await;
    pass(secs(5)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    for _ in 0..20 {
        assert_eq!(fresh(&node, "k").await, None);
        pass(ms(700)).await;
    }
    restore(&node).await;
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_was_never_read_stays_unknown_during_the_outage() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    other.set("k", 1_u32).tags(["t"]).grace("1h").await.unwrap();
    cut(&node).await;
    set(&node, "l", 2, &["t"]).await;
    assert_eq!(fresh(&node, "l").await, None);
    assert_eq!(get_stale(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_value_written_during_the_outage_remembers_the_last_known_marker() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    node.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    node.l2.cut();
    pass(secs(5)).await;
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    node.l2.restore();
    pass(secs(10)).await;
    assert_eq!((fresh(&node, "k").await, fresh(&other, "k").await), (Some(1), Some(1)));
    let (entry, marker) = (node.document("k").unwrap(), node.document("___bc:t:t").unwrap());
    assert_eq!(entry["tagMarkers"][0], marker["value"]);
    // One that was outdated when it was written is stale when that is known.
    cut(&node).await;
    other.delete_by_tag(["t"]).await.unwrap();
    pass(secs(5)).await;
    set(&node, "k", 2, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(2));
    restore(&node).await;
    assert_eq!((fresh(&node, "k").await, fresh(&other, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn with_check_after_a_marker_that_cannot_be_read_leaves_the_value_stale() {
    let check = |s: Store| s.when_bus_is_down(BusDown::CheckAfter(secs(3_600)));
    for world in worlds() {
        let node = world.node_where(check).await;
        set(&node, "k", 1, &["t"]).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        cut(&node).await;
        pass(ms(1_001)).await;
        assert_eq!(fresh(&node, "k").await, None);
    }
}

/// An L2 that stands still makes one caller wait, not all of them.
#[tokio::test(start_paused = true)]
async fn only_one_caller_finds_out_whether_a_frozen_second_tier_answers_again() {
    let node = World::new().node_where(|s| s.l2_circuit_breaker("off", 1)).await;
    set(&node, "k", 1, &["t"]).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    node.bus.cut();
    node.l2.hang();
    pass(secs(3)).await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    pass(ms(1_100)).await;
    let first = crate::races::go(node.get::<u32>("k"));
    settle().await;
    let before = tokio::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(fresh(&node, "k").await, Some(1));
    }
    assert_eq!(before.elapsed(), ms(0));
    assert_eq!(first.await.unwrap().unwrap(), Some(1));
}

/// It is unknown whether the tag was invalidated, so the factory's value is stale at once. It is
/// valid for callers that came before the factory began.
#[tokio::test(start_paused = true)]
async fn callers_share_a_run_of_the_factory_while_a_tag_cannot_be_read() {
    let check = |s: Store| s.when_bus_is_down(BusDown::CheckAfter(secs(3_600)));
    for world in worlds() {
        for node in [world.node().await, world.node_where(check).await] {
            cut(&node).await;
            let source = Source::slow(ms(20));
            let call = || crate::races::go(node.get_or_set("k", source.gives(1_u32)).tags(["t"]));
            let call_many = || {
                let source = source.clone();
                let factory = move |_: ManyContext| {
                    let source = source.clone();
                    async move {
                        source.run().await;
                        Ok::<_, Error>([("k".to_owned(), 1_u32)])
                    }
                };
                crate::races::go(node.get_or_set_many(["k"], factory).tags(["t"]))
            };
            let at_once: Vec<_> = (0..10).map(|_| (call(), call_many())).collect();
            for (one, many) in at_once {
                assert_eq!(one.await.unwrap().unwrap(), 1);
                assert_eq!(many.await.unwrap().unwrap(), [Some(1)]);
            }
            assert_eq!(source.runs(), 1);
            // Later callers share another run.
            let mut calls = Vec::new();
            for _ in 0..10 {
                calls.push(call());
                pass(ms(1)).await;
            }
            for call in calls {
                assert_eq!(call.await.unwrap().unwrap(), 1);
            }
            assert_eq!(source.runs(), 3);
        }
    }
}
