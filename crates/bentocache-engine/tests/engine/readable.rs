//! `set` says Ok only for what can be read back.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::{Node, World};
use bentocache::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};

fn unwritten<T: std::fmt::Debug>(result: Result<T>, says: &[&str]) {
    let error = result.expect_err("it cannot be read back");
    let Error::Encode { key, source } = &error else { panic!("{error:?}") };
    assert_eq!(&**key, "k");
    let text = source.to_string();
    assert!(says.iter().all(|part| text.contains(part)), "{text}");
}

async fn nothing_is_stored(node: &Node) {
    assert!(!node.has("k").await.unwrap());
    assert_eq!(node.document("k"), None);
}

#[tokio::test(start_paused = true)]
async fn numbers_that_are_not_finite_are_refused_in_json() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        for number in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            unwritten(node.set("k", number).await, &["`f64`", "not finite"]);
            unwritten(node.set("k", Some(number)).await, &["Option<f64>", "not finite"]);
            unwritten(node.set("k", vec![(1_u8, number as f32)]).await, &["f32", "not finite"]);
            nothing_is_stored(&node).await;
        }
        node.set("k", f64::MAX).await.unwrap();
        assert_eq!(node.get("k").await.unwrap(), Some(f64::MAX));
    }
}

/// Nothing is encoded there.
#[tokio::test(start_paused = true)]
async fn a_store_without_a_second_tier_keeps_any_value() {
    let node = World::only_l1().node().await;
    node.set("k", f64::INFINITY).await.unwrap();
    assert_eq!(node.get("k").await.unwrap(), Some(f64::INFINITY));
    node.set("k", Some(None::<u8>)).await.unwrap();
    assert_eq!(node.get("k").await.unwrap(), Some(Some(None::<u8>)));
}

#[cfg(feature = "msgpack")]
#[tokio::test(start_paused = true)]
async fn message_pack_keeps_numbers_that_are_not_finite() {
    let codec = bentocache::Codec::message_pack();
    let node = World::only_l2().node_where(|s| s.codec(codec)).await;
    node.set("k", f64::INFINITY).await.unwrap();
    assert_eq!(node.get("k").await.unwrap(), Some(f64::INFINITY));
}

#[tokio::test(start_paused = true)]
async fn an_option_of_nothing_is_refused_and_every_other_comes_back_as_it_was() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        unwritten(node.set("k", Some(None::<u8>)).await, &["Option<u8>", "read back as `None`"]);
        unwritten(node.set("k", Some(())).await, &["read back as `None`"]);
        nothing_is_stored(&node).await;
        for value in [None, Some(Some(1_u8))] {
            node.set("k", value).await.unwrap();
            assert_eq!(node.get::<Option<Option<u8>>>("k").await.unwrap(), Some(value));
        }
    }
}

/// Serde reads numbers of such an enum by way of 64 bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Big { number: i128 },
}

#[tokio::test(start_paused = true)]
async fn a_type_that_cannot_read_what_it_writes_is_refused_with_its_name_and_the_reason() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        for _ in 0..2 {
            let set = node.set("k", Tagged::Big { number: 1 }).await;
            unwritten(set, &["readable::Tagged", "i128 is not supported"]);
        }
        nothing_is_stored(&node).await;
    }

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Renamed {
        #[serde(rename(serialize = "old", deserialize = "new"))]
        _field: u8,
    }
    let node = World::new().node().await;
    let set = node.set("k", Renamed { _field: 1 }).await;
    unwritten(set, &["Renamed", "missing field `new`"]);
    nothing_is_stored(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_factorys_value_that_cannot_be_read_back_is_returned_and_not_stored_in_the_second_tier() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        let made = || async { Ok::<_, Error>(Tagged::Big { number: 7 }) };
        let value = node.get_or_set("k", move |_| made()).await.unwrap();
        assert_eq!(value, Tagged::Big { number: 7 });
        assert_eq!(node.document("k"), None);
        let infinite = || async { Ok::<_, Error>(f64::INFINITY) };
        assert_eq!(node.get_or_set("f", move |_| infinite()).await.unwrap(), f64::INFINITY);
        assert_eq!(node.document("f"), None);
    }
}

static DECODED: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug, Clone, Serialize)]
struct Counted(u8);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, SeqCst);
        u8::deserialize(reader).map(Self)
    }
}

#[test]
fn only_the_first_value_of_a_type_is_read_back_whatever_the_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let node = runtime.block_on(World::new().node());
    for number in 0..3 {
        runtime.block_on(async { node.set("k", Counted(number)).await }).unwrap();
    }
    let cache = node.cache.clone();
    std::thread::spawn(move || cache.blocking().set("k", Counted(4)).unwrap()).join().unwrap();
    assert_eq!(DECODED.load(SeqCst), 1);
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Before {
    #[serde(rename = "userName")]
    name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct After {
    full_name: String,
}

/// The reasons of the reads that failed since the last call.
fn reasons(node: &Node) -> Vec<String> {
    let reason = |event: bentocache::Event<'static>| match event.kind {
        bentocache::EventKind::DecodeFailed { reason, .. } => Some(reason.into_owned()),
        _ => None,
    };
    node.seen.take().into_iter().filter_map(reason).collect()
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_no_longer_of_its_type_says_which_field_is_missing_and_not_what_it_is() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", Before { name: "secret".into() }).await.unwrap();
        let others = world.node().await;
        for reader in [&node, &others] {
            reader.seen.take();
            assert!(reader.get::<After>("k").await.unwrap().is_none());
            assert!(reader.get::<u32>("k").await.unwrap().is_none());
            // Once in each tier.
            let mut reasons = reasons(reader);
            reasons.dedup();
            if reasons.is_empty() {
                // The other one has no L1 in common.
                assert!(!reader.has("k").await.unwrap());
                continue;
            }
            let [after, number] = &reasons[..] else { panic!("{reasons:?}") };
            let has = |text: &str, parts: &[&str]| parts.iter().all(|part| text.contains(part));
            assert!(has(after, &["readable::After", "missing field `full_name`"]), "{after}");
            assert!(has(number, &["`u32`", "invalid type: map, expected u32"]), "{number}");
            assert!(!after.contains("secret") && !number.contains("secret"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_of_another_type_and_a_field_of_another_kind_say_so_too() {
    let node = World::new().node_where(|s| s.grace("1h")).await;
    node.set("k", After { full_name: "secret".into() }).ttl("1s").await.unwrap();
    crate::common::pass(crate::common::secs(2)).await;
    node.seen.take();
    assert!(node.get::<Vec<u8>>("k").await.unwrap().is_none());
    let text = reasons(&node).join("; ");
    assert!(text.contains("Vec<u8>") && text.contains("invalid type: map"), "{text}");

    let json = br#"{"value":{"full_name":4711},"createdAt":1}"#;
    node.map.put("bentocache:n", json.to_vec(), None);
    assert!(node.get::<After>("n").await.unwrap().is_none());
    let text = reasons(&node).join("; ");
    assert!(text.contains("invalid type: integer, expected a string"), "{text}");
    assert!(!text.contains("4711"), "{text}");
}
