//! `set`, `set_many` and `set_forever`.

use std::collections::BTreeMap;
use std::error::Error as _;

use crate::common::{World, get, get_stale, pass, secs, settle};
use bentocache::{Error, Memory, RecoveryMode, Store};
use bentocache_testkit::{ChaosL2, MapL2, Ops};
use serde::{Deserialize, Serialize};

#[tokio::test(start_paused = true)]
async fn a_value_goes_into_both_tiers_and_is_announced() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    get(&b, "k").await;
    a.seen.take();
    b.seen.take();
    a.set("k", 2_u32).tags(["t"]).await.unwrap();
    settle().await;
    assert_eq!(a.seen.texts(), ["written k", "published 1"]);
    assert_eq!(b.seen.texts(), ["received 1"]);
    assert_eq!(a.document("k").unwrap()["value"], 2);
    assert_eq!(a.document("k").unwrap()["tags"], serde_json::json!(["t"]));
    a.l2.reset_calls();
    assert_eq!(get(&a, "k").await, Some(2));
    assert_eq!(a.l2.on(Ops::GET).calls(), 0);
    assert_eq!(get(&b, "k").await, Some(2));
}

/// Encoded once, however many tiers and limits want to know the bytes; not at all for a memory
/// without a limit of size.
#[tokio::test(start_paused = true)]
async fn a_value_is_encoded_once_and_only_where_bytes_are_needed() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    static ENCODED: AtomicUsize = AtomicUsize::new(0);
    #[derive(Clone, Deserialize)]
    struct Counting;
    impl Serialize for Counting {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            ENCODED.fetch_add(1, SeqCst);
            serializer.serialize_unit()
        }
    }
    let built = |store| async {
        bentocache::BentoCache::builder().store("s", store).build().await.unwrap()
    };
    let both = built(Store::new().l1(Memory::new().max_size("1mb")).l2(MapL2::new())).await;
    both.set("k", Counting).await.unwrap();
    assert_eq!(ENCODED.swap(0, SeqCst), 1);
    let memory = built(Store::new().l1(Memory::new())).await;
    memory.set("k", Counting).await.unwrap();
    memory.get_or_set("l", |_| async { Ok::<_, Error>(Counting) }).await.unwrap();
    assert_eq!(ENCODED.load(SeqCst), 0);
}

/// The message must not arrive before the value: peers would load the old one again.
#[tokio::test(start_paused = true)]
async fn it_is_announced_only_after_the_second_tier_took_it() {
    let node = World::new().node().await;
    node.l2.on(Ops::SET).hold_after();
    let set = tokio::spawn({
        let cache = node.cache.clone();
        async move { cache.set("k", 1_u32).await }
    });
    node.l2.held(1).await;
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
    node.l2.release();
    set.await.unwrap().unwrap();
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_second_tier_did_not_take_is_not_announced_but_queued() {
    let node = World::new().node_where(|s| s.recovery(100, "1h")).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    let told = node.seen.texts();
    assert!(!told.iter().any(|text| text.starts_with("published")), "{told:?}");
    assert!(told.contains(&"queued 1".to_owned()), "{told:?}");
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_reaches_the_second_tier_and_the_other_nodes_later() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    a.l2.on(Ops::WRITES).fail();
    a.set("k", 2_u32).await.unwrap();
    a.l2.calm();
    pass(secs(5)).await;
    assert_eq!(a.document("k").unwrap()["value"], 2);
    assert_eq!(get(&b, "k").await, Some(2));
}

/// In Node, `set` on a store with only an L2 said true and stored nothing while the
/// breaker was open.
#[tokio::test(start_paused = true)]
async fn a_set_that_the_breaker_stops_is_an_error_or_queued_and_never_a_lie() {
    let world = World::only_l2();
    let strict = world.node_where(|s| s.l2_circuit_breaker("10s", 1)).await;
    let lenient = |s: Store| {
        let s = s.l2_circuit_breaker("10s", 1).suppress_l2_errors(true);
        // Without a bus nothing proves that the key was not deleted meanwhile.
        s.recovery_mode(RecoveryMode::LastWrite)
    };
    let lenient = world.node_where(lenient).await;
    let kept_nowhere = world
        .node_where(|s| s.l2_circuit_breaker("10s", 1).suppress_l2_errors(true).recovery(0, "1s"))
        .await;
    for node in [&strict, &lenient, &kept_nowhere] {
        node.l2.fail_next(1);
        let _ = node.get::<u32>("other").await;
    }
    assert!(matches!(strict.set("k", 1_u32).await, Err(Error::L2 { .. })));
    lenient.set("l", 1_u32).await.unwrap();
    assert_eq!(get(&lenient, "l").await, Some(1), "as it will be");
    pass(secs(30)).await;
    assert_eq!(lenient.document("l").unwrap()["value"], 1);
    pass(secs(15)).await;
    kept_nowhere.l2.fail_next(1);
    let _ = kept_nowhere.get::<u32>("other").await;
    assert!(kept_nowhere.set("m", 1_u32).await.is_err(), "it is stored nowhere and kept nowhere");
}

#[tokio::test(start_paused = true)]
async fn an_l2_failure_that_is_not_suppressed_is_an_error_and_is_not_announced() {
    let node = World::new().node_where(|s| s.suppress_l2_errors(false)).await;
    node.l2.on(Ops::WRITES).fail();
    let error = node.set("k", 1_u32).await.unwrap_err();
    assert!(matches!(&error, Error::L2 { operation: "set", .. }), "{error:?}");
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
    node.l2.calm();
    assert_eq!(get(&node, "k").await, None, "what was refused is not served");
}

#[tokio::test(start_paused = true)]
async fn each_tier_and_the_bus_can_be_left_out() {
    let world = World::new();
    let node = world.node().await;
    node.set("no l2", 1_u32).skip_l2_write(true).await.unwrap();
    assert_eq!(node.document("no l2"), None);
    assert_eq!(get(&node, "no l2").await, Some(1));
    node.set("no l1", 1_u32).skip_l1_write(true).await.unwrap();
    node.seen.take();
    assert_eq!(get(&node, "no l1").await, Some(1));
    assert_eq!(node.seen.reads(), ["hit l2 no l1"]);
    settle().await;
    node.bus.reset_calls();
    node.set("no bus", 1_u32).skip_bus_notify(true).await.unwrap();
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn skip_l1_write_leaves_no_older_value_in_the_first_tier() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.set("k", 2_u32).skip_l1_write(true).await.unwrap();
    assert_eq!(get(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_set_replaces_value_life_and_tags() {
    let node = World::new().node().await;
    node.set("k", 1_u32).ttl("1h").grace("1h").tags(["t"]).await.unwrap();
    node.set("k", 2_u32).ttl("1m").await.unwrap();
    assert_eq!(node.life("k"), (Some(60_000), Some(60_000)));
    pass(secs(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(get(&node, "k").await, Some(2), "it has no tags any more");
    pass(secs(60)).await;
    assert_eq!(get_stale(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn many_values_take_one_round_trip_and_one_message() {
    let world = World::new();
    let node = world.node().await;
    let b = world.node().await;
    // The bucket of the tag is made at its first use.
    node.set("first", 1_u32).tags(["t"]).await.unwrap();
    settle().await;
    node.l2.reset_calls();
    node.bus.reset_calls();
    node.set_many((0..100_u32).map(|i| (format!("k{i}"), i))).ttl("1h").tags(["t"]).await.unwrap();
    settle().await;
    assert_eq!(node.l2.on(Ops::WRITES).calls(), 1);
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 1);
    for i in 0..100 {
        let key = format!("k{i}");
        assert_eq!(get(&node, &key).await, Some(i));
        assert_eq!(get(&b, &key).await, Some(i));
        assert_eq!(node.life(&key).0, Some(3_600_000));
    }
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(get(&node, "k7").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_key_given_twice_gets_the_last_value_in_every_tier() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set_many([("k", 1_u32), ("k", 2_u32)]).await.unwrap();
        assert_eq!(get(&node, "k").await, Some(2));
        if let Some(document) = node.document("k") {
            assert_eq!(document["value"], 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn setting_nothing_does_nothing() {
    let node = World::new().node().await;
    node.set_many(Vec::<(String, u32)>::new()).await.unwrap();
    node.set_many(Vec::<(String, u32)>::new()).tags(["t"]).ttl("0").await.unwrap();
    settle().await;
    assert_eq!((node.l2.on(Ops::WRITES).calls(), node.bus.calls()), (0, 0));
    assert_eq!(node.seen.texts(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_tags_of_the_caller_are_left_as_they_are_and_count_once() {
    let node = World::new().node().await;
    let tags = vec!["b".to_owned(), "a".to_owned(), "b".to_owned()];
    node.set("k", 1_u32).tags(tags.clone()).await.unwrap();
    assert_eq!(tags, ["b", "a", "b"]);
    let stored = node.document("k").unwrap()["tags"].clone();
    let mut stored: Vec<String> = serde_json::from_value(stored).unwrap();
    stored.sort();
    assert_eq!(stored, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn tags_given_in_several_calls_add_up() {
    let node = World::new().node().await;
    for tag in ["a", "b"] {
        node.set("k", 1_u32).tags(["a"]).tags(["b"]).await.unwrap();
        pass(secs(1)).await;
        node.delete_by_tag([tag]).await.unwrap();
        assert_eq!(get(&node, "k").await, None, "{tag}");
    }
}

/// A map with keys that JSON has no form for.
fn unencodable() -> BTreeMap<(u8, u8), u8> {
    BTreeMap::from([((1, 2), 3)])
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_encoded_is_an_error_with_its_key_and_nothing_is_stored() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    let error = node.set("k", unencodable()).await.unwrap_err();
    assert!(matches!(error, Error::Encode { .. }) && error.key() == Some("k"), "{error:?}");
    assert_eq!(get(&node, "k").await, Some(1));
    let many = [("a", BTreeMap::new()), ("b", unencodable())];
    let error = node.set_many(many).await.unwrap_err();
    assert!(error.key() == Some("b") && error.to_string().contains("1 of 2 keys"), "{error}");
    assert!(node.document("a").is_some(), "the good ones are stored");
}

#[tokio::test(start_paused = true)]
async fn a_memory_alone_needs_no_encoding() {
    let node = World::only_l1().node().await;
    node.set("k", unencodable()).await.unwrap();
    assert_eq!(node.get("k").await.unwrap(), Some(unencodable()));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_for_the_second_tier_is_an_error_that_names_the_limit() {
    let store =
        Store::new().l1(Memory::new()).l2(ChaosL2::new(MapL2::new().max_value(200).max_key(40)));
    let cache = bentocache::BentoCache::builder().store("s", store).build().await.unwrap();
    cache.set("k", "old".to_owned()).await.unwrap();
    let error = cache.set("k", "x".repeat(1_000)).await.unwrap_err();
    assert!(error.to_string().contains("200"), "{error}");
    assert_eq!(cache.get::<String>("k").await.unwrap(), None, "neither the new nor the old value");
    let error = cache.set("k".repeat(100), 1).await.unwrap_err();
    assert!(error.to_string().contains("40"), "{error}");
    let produce = |_| async { Ok::<_, Error>("x".repeat(1_000)) };
    let value = cache.get_or_set("l", produce).await.unwrap();
    assert_eq!(value.len(), 1_000, "a caller of get_or_set gets its value");
}

/// A list in a list in a list, of so many levels.
fn nested(levels: usize) -> serde_json::Value {
    (1..levels).fold(serde_json::json!([]), |inner, _| serde_json::json!([inner]))
}

#[tokio::test(start_paused = true)]
async fn a_value_too_deep_to_be_read_back_is_an_error_that_names_the_limit() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", nested(127)).await.unwrap();
    assert_eq!(b.get("k").await.unwrap(), Some(nested(127)));
    let error = a.set("k", nested(128)).await.unwrap_err();
    assert!(matches!(error, Error::Encode { .. }) && error.key() == Some("k"), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("127 levels"), "{error:?}");
    assert_eq!(b.get("k").await.unwrap(), Some(nested(127)), "nothing is stored");
    // A memory keeps it as it is.
    let memory = World::only_l1().node().await;
    memory.set("k", nested(200)).await.unwrap();
    assert_eq!(memory.get("k").await.unwrap(), Some(nested(200)));
}
