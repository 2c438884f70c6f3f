//! The options of a factory for its value: life, tags, tiers, and whether there is a value.

use crate::common::{Node, World, get, get_stale, ms, pass, secs, settle};
use crate::races::{Source, fresh, go};
use bentocache::{Context, Error, EventKind, Failure, ManyContext};
use bentocache_testkit::Ops;
use serde_json::json;

/// Produces 2 for `k` after `decide`.
async fn produce(node: &Node, decide: impl FnOnce(&Context<u32>) + Send + 'static) -> u32 {
    node.get_or_set("k", move |cx| async move {
        decide(&cx);
        Ok::<_, Error>(2_u32)
    })
    .await
    .unwrap()
}

/// The life of `k` in L2: fresh time and total time.
fn life(node: &Node) -> (u64, std::time::Duration) {
    let document = node.document("k").unwrap();
    let at = |name: &str| document[name].as_u64().unwrap();
    (at("logicalExpiration") - at("createdAt"), node.remaining("k").unwrap())
}

#[tokio::test(start_paused = true)]
async fn ttl_and_grace_of_the_factory_go_before_those_of_the_call() {
    let node = World::new().node_where(|s| s.ttl("1h").grace("1h")).await;
    produce(&node, |cx| {
        cx.ttl("5s").grace("20s");
    })
    .await;
    assert_eq!(life(&node), (5_000, secs(25)));
    pass(ms(4_999)).await;
    assert_eq!(fresh(&node, "k").await, Some(2));
    pass(ms(2)).await;
    assert_eq!((fresh(&node, "k").await, get_stale(&node, "k").await), (None, Some(2)));
    pass(secs(20)).await;
    assert_eq!(get_stale(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_ttl_may_be_forever() {
    let node = World::new().node_where(|s| s.ttl("1s")).await;
    produce(&node, |cx| {
        cx.ttl(None::<std::time::Duration>);
    })
    .await;
    assert_eq!(node.document("k").unwrap().get("logicalExpiration"), None);
    assert_eq!(node.remaining("k").unwrap(), std::time::Duration::MAX);
    pass(secs(50_000)).await;
    assert_eq!(fresh(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_or_less_stores_nothing_and_removes_what_is_there() {
    for ttl in ["0s", "-1s"] {
        let world = World::new();
        let (a, b) =
            (world.node_where(|s| s.grace("1h").timeout("none")).await, world.node().await);
        a.set("k", 1_u32).ttl("1s").await.unwrap();
        assert_eq!(fresh(&b, "k").await, Some(1));
        pass(secs(2)).await;
        let value = produce(&a, move |cx| {
            cx.ttl(ttl);
        })
        .await;
        assert_eq!(value, 2);
        settle().await;
        assert_eq!(get_stale(&a, "k").await, None, "{ttl}");
        assert_eq!(get_stale(&b, "k").await, None, "{ttl}");
        assert!(a.document("k").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn l1_ttl_bounds_the_life_in_the_first_tier_only() {
    let world = World::without_bus();
    let node = world.node_where(|s| s.ttl("1h")).await;
    produce(&node, |cx| {
        cx.l1_ttl("5s");
    })
    .await;
    assert_eq!(life(&node).0, 3_600_000);
    pass(ms(1)).await;
    world.node().await.set("k", 3_u32).await.unwrap();
    pass(ms(4_998)).await;
    assert_eq!(fresh(&node, "k").await, Some(2));
    pass(ms(2)).await;
    assert_eq!(fresh(&node, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn tags_add_to_those_of_the_call_and_count_once() {
    let node = World::new().node().await;
    node.get_or_set("k", |cx: Context<u32>| async move {
        cx.tags(["b", "c", "c"]);
        cx.tags(["a", "d"]);
        Ok::<_, Error>(2)
    })
    .tags(["a", "b"])
    .await
    .unwrap();
    let document = node.document("k").unwrap();
    let mut tags: Vec<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect();
    tags.sort_unstable();
    assert_eq!(tags, ["a", "b", "c", "d"]);
    node.delete_by_tag(["d"]).await.unwrap();
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn tags_of_a_namespace_are_its_own() {
    let node = World::new().node().await;
    let users = node.namespace("users");
    users
        .get_or_set("k", |cx: Context<u32>| async move {
            cx.tags(["t"]);
            Ok::<_, Error>(2)
        })
        .await
        .unwrap();
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(fresh(&users, "k").await, Some(2));
    users.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(fresh(&users, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn each_tier_can_be_left_as_it_is() {
    let node = World::new().node().await;
    produce(&node, |cx| {
        cx.skip_l2_write(true);
    })
    .await;
    assert!(node.document("k").is_none());
    assert_eq!(fresh(&node, "k").await, Some(2));

    let node = World::new().node().await;
    produce(&node, |cx| {
        cx.skip_l1_write(true);
    })
    .await;
    assert_eq!(node.document("k").unwrap()["value"], 2);
    node.l2.reset_calls();
    assert_eq!(node.get::<u32>("k").skip_l1_write(true).await.unwrap(), Some(2));
    assert_eq!(node.l2.on(Ops::GET).calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_factory_can_undo_what_the_call_skips() {
    let node = World::new().node().await;
    let call = node.get_or_set("k", |cx: Context<u32>| async move {
        cx.skip_l2_write(false).skip_l1_write(false);
        Ok::<_, Error>(2)
    });
    call.skip_l2_write(true).skip_l1_write(true).await.unwrap();
    assert_eq!(node.document("k").unwrap()["value"], 2);
    node.l2.reset_calls();
    assert_eq!((fresh(&node, "k").await, node.l2.calls()), (Some(2), 0));
}

#[tokio::test(start_paused = true)]
async fn other_processes_need_not_be_told() {
    let node = World::new().node_where(|s| s.announce_fills(true)).await;
    produce(&node, |cx| {
        cx.skip_bus_notify(true);
    })
    .await;
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
    node.delete("k").skip_bus_notify(true).await.unwrap();
    produce(&node, |_| {}).await;
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_key_is_the_one_the_caller_gave() {
    let node = World::new().node().await;
    let key = |cx: Context<String>| async move { Ok::<_, Error>(cx.key().to_owned()) };
    assert_eq!(node.namespace("users").get_or_set("a:b", key).await.unwrap(), "a:b");
}

/// Whether the factory sees this stale value, under any timeouts.
async fn sees(node: &Node, timeout: &str, force: bool, expected: Option<u32>) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let call = node.get_or_set("k", move |cx: Context<u32>| async move {
        tell.send(cx.stale().copied()).unwrap();
        Err::<u32, _>(Failure::new("no value"))
    });
    drop(call.timeout(timeout).force_fresh(force).grace_backoff("1ms").await);
    assert_eq!(told.await.unwrap(), expected, "timeout {timeout}, forced: {force}");
}

#[tokio::test(start_paused = true)]
async fn the_stale_value_is_there_whenever_there_is_one() {
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        let node = world.node_where(|s| s.grace("1h").ttl("1s")).await;
        sees(&node, "0s", false, None).await;
        node.set("k", 1_u32).await.unwrap();
        sees(&node, "0s", true, Some(1)).await;
        pass(secs(2)).await;
        for (timeout, force) in
            [("0s", false), ("1s", false), ("none", false), ("0s", true), ("none", true)]
        {
            sees(&node, timeout, force, Some(1)).await;
            pass(secs(1)).await;
        }
        node.expire("k").await.unwrap();
        sees(&node, "0s", false, Some(1)).await;
        pass(secs(3_600)).await;
        sees(&node, "0s", false, None).await;
    }
}

#[tokio::test(start_paused = true)]
async fn not_modified_stores_the_stale_value_as_a_new_one() {
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        let node = world.node_where(|s| s.grace("1h").ttl("10s").timeout("none")).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(11)).await;
        let same = |cx: Context<u32>| async move { cx.not_modified() };
        assert_eq!(node.get_or_set("k", same).await.unwrap(), 1);
        pass(ms(9_999)).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        pass(secs(3_000)).await;
        assert_eq!(get_stale(&node, "k").await, Some(1));
        let error = node.get_or_set("other", same).await.unwrap_err();
        assert!(matches!(&error, Error::Factory { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn not_modified_takes_over_an_invalidated_value() {
    let node = World::new().node_where(|s| s.grace("1h").timeout("none")).await;
    node.set("k", 1_u32).tags(["t"]).await.unwrap();
    node.expire_by_tag(["t"]).await.unwrap();
    let same = |cx: Context<u32>| async move { cx.not_modified() };
    assert_eq!(node.get_or_set("k", same).tags(["t"]).await.unwrap(), 1);
    assert_eq!(fresh(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn fail_is_a_failure_with_the_given_message() {
    let node = World::new().node_where(|s| s.grace("1h").timeout("none")).await;
    let fails = |cx: Context<u32>| async move { cx.fail::<u32>("the source is empty") };
    let error = node.get_or_set("k", fails).await.unwrap_err();
    assert!(matches!(&error, Error::Factory { .. }));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "the source is empty");
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    assert_eq!(node.get_or_set("k", fails).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn skip_is_recognised_inside_of_the_callers_own_error_type() {
    #[derive(Debug)]
    struct Mine(Box<dyn std::error::Error + Send + Sync>);
    impl std::fmt::Display for Mine {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("mine")
        }
    }
    impl std::error::Error for Mine {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&*self.0)
        }
    }
    let node = World::new().node().await;
    let skip = |cx: Context<u32>| async move { cx.skip::<u32>().map_err(|f| Mine(f.into())) };
    assert!(node.get_or_set("k", skip).await.unwrap_err().is_skipped());
}

#[tokio::test(start_paused = true)]
async fn a_skip_in_the_background_leaves_the_stale_value() {
    let node = World::new().node_where(|s| s.grace("1h")).await;
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let skip = |cx: Context<u32>| async move {
        pass(ms(5)).await;
        cx.skip::<u32>()
    };
    assert_eq!(node.get_or_set("k", skip).await.unwrap(), 1);
    pass(ms(10)).await;
    assert_eq!(get_stale(&node, "k").await, Some(1));
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_bad_text_is_the_error_of_all_who_wait_and_stores_nothing() {
    let node = World::new().node().await;
    let source = Source::held();
    let bad = || {
        let source = source.clone();
        move |cx: Context<u32>| async move {
            source.run().await;
            cx.ttl("soon");
            Ok::<_, Error>(1)
        }
    };
    let (first, second) = (go(node.get_or_set("k", bad())), go(node.get_or_set("k", bad())));
    source.begun(1).await;
    source.release();
    for call in [first, second] {
        let error = call.await.unwrap().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("ttl") && text.contains("soon"), "{text}");
    }
    assert_eq!(fresh(&node, "k").await, None);
    assert_eq!(crate::common::fill(&node, "k", 3).await, 3);
}

#[tokio::test(start_paused = true)]
async fn the_context_of_many_keys_decides_for_all_of_them() {
    let node = World::new().node_where(|s| s.ttl("1h").grace("1h")).await;
    let values = node
        .get_or_set_many(["k", "l"], |cx| async move {
            cx.ttl("5s").grace("20s").tags(["t"]);
            let of = |key: &String| (key.clone(), 2_u32);
            Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
        })
        .await
        .unwrap();
    assert_eq!(values, [Some(2), Some(2)]);
    assert_eq!(life(&node), (5_000, secs(25)));
    assert_eq!(node.document("l").unwrap()["tags"], json!(["t"]));
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(node.get_many::<u32>(["k", "l"]).grace("off").await.unwrap(), [None, None]);
}

#[tokio::test(start_paused = true)]
async fn the_context_of_many_keys_can_leave_tiers_as_they_are_and_fail() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    let produce = |cx: ManyContext| async move {
        match &*cx.keys()[0] {
            "l1" => cx.skip_l2_write(true).l1_ttl("2s"),
            "l2" => cx.skip_l1_write(true),
            _ => cx.skip_bus_notify(true),
        };
        Ok::<_, Error>([(cx.keys()[0].clone(), 2_u32)])
    };
    for key in ["l1", "l2", "quiet"] {
        node.get_or_set_many([key], produce).announce_fills(true).await.unwrap();
    }
    settle().await;
    assert_eq!(["l1", "l2", "quiet"].map(|key| node.document(key).is_some()), [false, true, true]);
    let received = |event: &EventKind<'_>| matches!(event, EventKind::BusReceived { .. });
    assert_eq!(other.seen.count(received), 2);
    node.seen.take();
    assert_eq!(node.get_many::<u32>(["l1", "l2"]).await.unwrap(), [Some(2), Some(2)]);
    assert_eq!(node.seen.reads(), ["hit l1 l1", "hit l2 l2"]);
    pass(secs(3)).await;
    assert_eq!(get(&node, "l1").await, None);
    let fails = |cx: ManyContext| async move { cx.fail::<Vec<(String, u32)>>("no source") };
    let error = node.get_or_set_many(["k"], fails).await.unwrap_err();
    assert!(matches!(error, Error::Factory { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_factory_says_is_not_remembered_for_the_next() {
    let node = World::new().node_where(|s| s.ttl("1h")).await;
    produce(&node, |cx| {
        cx.ttl("1s").tags(["t"]);
    })
    .await;
    pass(secs(2)).await;
    produce(&node, |_| {}).await;
    assert_eq!(life(&node).0, 3_600_000);
    assert_eq!(node.document("k").unwrap().get("tags"), None);
}
