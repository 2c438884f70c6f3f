//! `get`: where it looks, what it counts as a hit, and what it makes of failures.

use std::sync::Arc;

use crate::common::{World, fill, get, get_stale, ms, pass, secs, settle};
use bentocache::{Error, Memory, Store, TokioTime};
use bentocache_testkit::Ops;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn a_fresh_value_of_the_first_tier_is_served_without_the_second() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.reset_calls();
    node.seen.take();
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(node.l2.calls(), 0);
    assert_eq!(node.seen.reads(), ["hit l1 k"]);
}

#[tokio::test(start_paused = true)]
async fn a_value_of_the_second_tier_is_put_into_the_first() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(node.l2.on(Ops::READS).calls(), 1);
    assert_eq!(node.seen.reads(), ["hit l2 k", "hit l1 k"]);
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_none_in_every_arrangement_of_tiers() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(get_stale(&node, "k").await, None);
        assert_eq!(node.seen.reads(), ["miss k", "miss k"]);
        node.set("k", 1_u32).await.unwrap();
        assert_eq!(get(&node, "k").await, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn skip_l2_read_leaves_the_second_tier_unread() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    assert_eq!(node.get::<u32>("k").skip_l2_read(true).await.unwrap(), None);
    assert_eq!(node.l2.calls(), 0);
    let node = World::only_l2().node().await;
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(crate::common::get(&node, "k").await, Some(1));
    assert_eq!(node.get::<u32>("k").skip_l2_read(true).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn skip_l1_write_promotes_nothing() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    for _ in 0..2 {
        assert_eq!(node.get::<u32>("k").skip_l1_write(true).await.unwrap(), Some(1));
    }
    assert_eq!(node.seen.reads(), ["hit l2 k", "hit l2 k"]);
}

#[tokio::test(start_paused = true)]
async fn a_stored_null_is_a_value_and_not_a_miss() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("none", None::<u32>).await.unwrap();
        node.set("unit", ()).await.unwrap();
        node.set("null", serde_json::Value::Null).await.unwrap();
        for _ in 0..2 {
            assert_eq!(node.get::<Option<u32>>("none").await.unwrap(), Some(None));
            assert_eq!(node.get::<()>("unit").await.unwrap(), Some(()));
            assert_eq!(node.get::<serde_json::Value>("null").await.unwrap(), Some(json!(null)));
        }
        let produce = |_| async { Ok::<_, Error>(Some(7)) };
        assert_eq!(node.get_or_set("none", produce).await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_null_from_another_node_is_a_value() {
    let world = World::new();
    world.node().await.set("k", None::<u32>).await.unwrap();
    let node = world.node().await;
    assert_eq!(node.get::<Option<u32>>("k").await.unwrap(), Some(None));
    assert_eq!(node.get::<Option<u32>>("k").await.unwrap(), Some(None));
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct V1 {
    name: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct V2 {
    name: String,
    #[serde(default)]
    age: u32,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Strict {
    name: String,
    email: String,
}

#[tokio::test(start_paused = true)]
async fn another_type_is_converted_through_the_codec() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", V1 { name: "ann".into() }).await.unwrap();
        let wanted = V2 { name: "ann".into(), age: 0 };
        assert_eq!(node.get("k").await.unwrap(), Some(wanted.clone()));
        assert_eq!(node.get("k").await.unwrap(), Some(json!({"name": "ann"})));
        let produce = |_| async { Ok::<_, Error>(V2 { name: "no".into(), age: 1 }) };
        assert_eq!(node.get_or_set("k", produce).await.unwrap(), wanted);
        assert_eq!(node.get("k").await.unwrap(), Some(V1 { name: "ann".into() }));
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_as_the_type_is_a_miss_with_a_decode_event() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", V1 { name: "ann".into() }).await.unwrap();
        node.seen.take();
        assert_eq!(node.get::<Strict>("k").await.unwrap(), None);
        let texts = node.seen.texts();
        assert!(texts.contains(&"decode failed k".to_owned()), "{texts:?}");
        assert_eq!(texts.iter().filter(|text| *text == "miss k").count(), 1, "{texts:?}");
        assert_eq!(node.get::<Vec<u32>>("k").grace("1h").await.unwrap(), None);
        assert_eq!(node.get::<V1>("k").await.unwrap(), Some(V1 { name: "ann".into() }));
    }
}

#[tokio::test(start_paused = true)]
async fn get_or_set_recomputes_what_cannot_be_read_as_the_type() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", V1 { name: "ann".into() }).await.unwrap();
        let strict = Strict { name: "ann".into(), email: "a@b".into() };
        let produced = strict.clone();
        let produce = move |_| async move { Ok::<_, Error>(produced) };
        assert_eq!(node.get_or_set("k", produce).await.unwrap(), strict);
        assert_eq!(node.get("k").await.unwrap(), Some(strict));
    }
}

#[tokio::test(start_paused = true)]
async fn undecodable_bytes_in_the_second_tier_are_a_miss_everywhere() {
    let world = World::new();
    let node = world.node_where(|s| s.grace("1h")).await;
    for bytes in ["", " ", "garbage", "{", "{}", "[1]", "null", "1", r#"{"value":}"#, "\u{b3}\u{1}"]
    {
        world.l2.put("bentocache:k", bytes, None);
        node.seen.take();
        assert_eq!(get(&node, "k").await, None, "{bytes:?}");
        let texts = node.seen.texts();
        assert_eq!(texts, ["decode failed k", "miss k"], "{bytes:?}");
        assert_eq!(node.get_many::<u32>(["k"]).await.unwrap(), [None]);
        assert!(!node.has("k").await.unwrap());
        assert_eq!(fill(&node, "k", 5).await, 5);
        assert_eq!(node.document("k").unwrap()["value"], 5, "it is repaired");
        node.delete("k").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_default_is_the_callers_and_is_made_only_on_a_miss() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    let or = |found: Option<u32>| found.unwrap_or_else(|| panic!("not on a hit"));
    assert_eq!(or(get(&node, "k").await), 1);
    assert_eq!(get(&node, "none").await.unwrap_or(7), 7);
}

// failures of L2

#[tokio::test(start_paused = true)]
async fn a_suppressed_l2_failure_is_a_miss() {
    let node = World::new().node().await;
    node.l2.fail();
    assert_eq!(get(&node, "k").await, None);
    assert_eq!(node.get_many::<u32>(["a", "b"]).await.unwrap(), [None, None]);
    assert_eq!(fill(&node, "k", 3).await, 3);
    assert_eq!(get(&node, "k").await, Some(3), "L1 works on");
}

#[tokio::test(start_paused = true)]
async fn an_l2_failure_that_is_not_suppressed_names_the_operation_and_the_driver() {
    let node = World::only_l2().node().await;
    node.l2.fail();
    let error = node.get::<u32>("k").await.unwrap_err();
    assert!(matches!(&error, Error::L2 { operation: "get", driver: "map", .. }), "{error:?}");
    let error = node.get_or_set("k", |_| async { Ok::<u32, Error>(1) }).await.unwrap_err();
    assert!(matches!(error, Error::L2 { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_when_the_second_tier_fails() {
    let node = World::new().node_where(|s| s.ttl("1s").grace("1h")).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(2)).await;
    node.l2.fail();
    node.seen.take();
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(node.seen.reads(), ["graced l1 k"]);
}

/// In Node a two-tier read took 43 s with Redis unreachable.
#[tokio::test(start_paused = true)]
async fn a_second_tier_that_hangs_costs_a_second_and_then_nothing() {
    for (world, suppressed) in [(World::new(), true), (World::only_l2(), false)] {
        let node = world.node().await;
        node.l2.hang();
        for _ in 0..5 {
            let start = Instant::now();
            let got = node.get::<u32>("k").await;
            assert_eq!(start.elapsed(), secs(1));
            match got {
                Ok(value) => assert!(suppressed && value.is_none()),
                Err(error) => assert!(!suppressed && error.is_timeout(), "{error:?}"),
            }
        }
        let (start, calls) = (Instant::now(), node.l2.calls());
        for _ in 0..10 {
            assert_eq!(node.get::<u32>("k").await.is_ok(), suppressed);
        }
        assert_eq!((start.elapsed(), node.l2.calls()), (ms(0), calls), "the breaker is open");
    }
}

#[tokio::test(start_paused = true)]
async fn a_get_or_set_with_a_hung_second_tier_is_bounded() {
    let node = World::new().node().await;
    node.l2.hang();
    let start = Instant::now();
    assert_eq!(fill(&node, "k", 1).await, 1);
    assert!(start.elapsed() <= secs(2), "one read and one write: {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn after_the_breaker_one_probe_at_a_time_decides() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("10s", 3)).await;
    let reads = node.l2.on(Ops::GET);
    reads.fail();
    for _ in 0..10 {
        assert!(node.get::<u32>("k").await.is_err());
    }
    assert_eq!(reads.calls(), 3, "3 failures open it");
    pass(secs(11)).await;
    for _ in 0..10 {
        assert!(node.get::<u32>("k").await.is_err());
    }
    assert_eq!(reads.calls(), 4, "one probe, which failed");
    pass(secs(11)).await;
    reads.calm();
    reads.hold();
    let probe = tokio::spawn({
        let cache = node.cache.clone();
        async move { cache.get::<u32>("k").await }
    });
    reads.held(1).await;
    assert!(node.get::<u32>("k").await.is_err(), "while the probe is under way");
    assert_eq!(reads.calls(), 5, "no second probe at a time");
    reads.release();
    assert_eq!(probe.await.unwrap().unwrap(), None);
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn the_failures_that_open_the_breaker_are_in_a_row() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("10s", 3)).await;
    for _ in 0..5 {
        node.l2.fail_next(2);
        assert!(node.get::<u32>("k").await.is_err());
        assert!(node.get::<u32>("k").await.is_err());
        assert_eq!(get(&node, "k").await, None);
    }
}

/// In Node each namespace has its own.
#[tokio::test(start_paused = true)]
async fn a_store_has_one_breaker() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("10s", 2)).await;
    node.l2.fail();
    assert!(node.namespace("a").get::<u32>("k").await.is_err());
    assert!(node.namespace("b").get::<u32>("k").await.is_err());
    let calls = node.l2.calls();
    assert!(node.namespace("c").get::<u32>("k").await.is_err());
    assert!(node.get::<u32>("k").await.is_err());
    assert_eq!(node.l2.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_can_be_off() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("off", 1)).await;
    node.l2.fail();
    for _ in 0..20 {
        assert!(node.get::<u32>("k").await.is_err());
    }
    assert_eq!(node.l2.calls(), 20);
}

// what other nodes do

#[tokio::test(start_paused = true)]
async fn a_set_elsewhere_is_seen_here() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    // In the same millisecond.
    a.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(2));
}

/// In Node a message for a namespace that was not opened on a node was dropped, and an entry read
/// through the root handle stayed old.
#[tokio::test(start_paused = true)]
async fn messages_act_on_full_keys() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let users = a.namespace("users");
    users.set("1", 1_u32).await.unwrap();
    assert_eq!(get(&b, "users:1").await, Some(1));
    users.set("1", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "users:1").await, Some(2));
    users.delete("1").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "users:1").await, None);
    b.set("users:1", 3_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&users, "1").await, Some(3));
    b.set("users:1", 4_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&users, "1").await, Some(4));
    b.namespace("users").clear().await.unwrap();
    settle().await;
    assert_eq!(get(&users, "1").await, None);
}

// types of handles and values

#[tokio::test(start_paused = true)]
async fn a_typed_handle_needs_no_types_on_its_calls() {
    let node = World::new().node().await;
    let ages = node.namespace("ages").typed::<u8>();
    ages.set("ann", 42).await.unwrap();
    ages.set_many([("bob", 1), ("cy", 2)]).await.unwrap();
    ages.set_forever("eve", 3).await.unwrap();
    assert_eq!(ages.get("ann").await.unwrap(), Some(42));
    assert_eq!(ages.get_many(["bob", "x"]).await.unwrap(), [Some(1), None]);
    assert_eq!(ages.get_or_set("ann", |_| async { Ok::<_, Error>(9) }).await.unwrap(), 42);
    assert_eq!(ages.get_or_set_forever("f", |_| async { Ok::<_, Error>(9) }).await.unwrap(), 9);
    let many =
        ages.get_or_set_many(["ann"], |_| async { Ok::<_, Error>(Vec::<(String, u8)>::new()) });
    assert_eq!(many.await.unwrap(), [Some(42)]);
    assert_eq!(ages.pull("ann").await.unwrap(), Some(42));
    assert!(!ages.cache().has("ann").await.unwrap());
    assert_eq!(ages.clone().get("bob").await.unwrap(), Some(1));
    assert_eq!(node.get::<u8>("ages:bob").await.unwrap(), Some(1));
}

/// L1 holds the value itself: a hit clones it and does not decode it.
#[tokio::test(start_paused = true)]
async fn the_first_tier_holds_the_decoded_value() {
    #[derive(Clone)]
    struct Counted(Arc<()>);
    impl Serialize for Counted {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_unit()
        }
    }
    impl<'de> Deserialize<'de> for Counted {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            <()>::deserialize(deserializer).map(|()| Self(Arc::new(())))
        }
    }
    let node = World::new().node().await;
    let value = Counted(Arc::new(()));
    node.set("k", value.clone()).await.unwrap();
    let got = node.get::<Counted>("k").await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&got.0, &value.0));
}

#[tokio::test(start_paused = true)]
async fn a_request_does_nothing_until_it_is_awaited() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.reset_calls();
    drop(node.set("k", 2_u32));
    drop(node.delete("k"));
    drop(node.expire("k"));
    drop(node.pull::<u32>("k"));
    drop(node.clear());
    drop(node.get::<u32>("other"));
    settle().await;
    assert_eq!(node.l2.calls(), 0);
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_store_with_one_tier_that_is_memory_works_without_anything_else() {
    let cache = bentocache::BentoCache::builder()
        .clock(TokioTime::new())
        .store("m", Store::new().l1(Memory::new()))
        .build()
        .await
        .unwrap();
    cache.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&cache, "k").await, Some(1));
}
