//! Bad input: keys, values, durations and numbers of any kind, and hostile bytes in L2
//! and on the bus.

use std::time::Duration;

use crate::common::{World, fill, get, leap, pass, secs, settle};
use bentocache::driver::{BusDriver, Topic};
use bentocache::file::File;
use bentocache::{BentoCache, Cache, Error, InProcessBus, Memory, Store};
use bentocache_testkit::suite::HOSTILE;
use bentocache_testkit::{MapL2, Ops};
use bytes::Bytes;
use proptest::prelude::*;

/// Caches on every driver there is in this repository without a server.
async fn caches(dir: &tempfile::TempDir) -> Vec<(&'static str, BentoCache)> {
    let build = |store| async { BentoCache::builder().store("s", store).build().await.unwrap() };
    let file = |name| File::new(dir.path().join(name)).prune_interval(None);
    vec![
        ("memory", build(Store::new().l1(Memory::new())).await),
        ("map", build(Store::new().l2(MapL2::new())).await),
        ("file", build(Store::new().l2(file("alone"))).await),
        (
            "all",
            build(Store::new().l1(Memory::new()).l2(file("two")).bus(InProcessBus::new())).await,
        ),
    ]
}

/// Hostile keys and a few long ones.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> = HOSTILE.iter().map(|key| (*key).to_owned()).collect();
    keys.extend(["\0".into(), "a\0".into(), "a\0b".into(), "..:..:x".into()]);
    keys.extend(["k".repeat(255), "k".repeat(256), "k".repeat(10_240), "ß".repeat(5_000)]);
    keys
}

#[tokio::test]
async fn no_key_reaches_another_keys_data() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys();
    for (driver, cache) in caches(&dir).await {
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(cache.get::<usize>(key).await.unwrap(), None, "{driver} {key:?}");
            cache.set(key, i).grace("1h").await.unwrap();
        }
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(cache.get::<usize>(key).await.unwrap(), Some(i), "{driver} {key:?}");
            assert!(cache.has(key).await.unwrap(), "{driver} {key:?}");
        }
        let all = cache.get_many::<usize>(&keys).await.unwrap();
        assert_eq!(all, (0..keys.len()).map(Some).collect::<Vec<_>>(), "{driver}");
        cache.expire(&keys[3]).await.unwrap();
        for (i, key) in keys.iter().enumerate() {
            let fresh = (i != 3).then_some(i);
            assert_eq!(cache.get::<usize>(key).await.unwrap(), fresh, "{driver} {key:?}");
        }
        for (i, key) in keys.iter().enumerate() {
            assert!(cache.delete(key).await.unwrap(), "{driver} {key:?}");
            if let Some(next) = keys.get(i + 1).filter(|_| i + 1 != 3) {
                assert_eq!(
                    cache.get::<usize>(next).await.unwrap(),
                    Some(i + 1),
                    "{driver} {next:?}"
                );
            }
        }
    }
    // Nothing was written outside of the directories.
    let entries: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(entries.len(), 2, "{entries:?}");
}

#[tokio::test]
async fn hostile_namespaces_and_prefixes_clear_only_themselves() {
    let dir = tempfile::tempdir().unwrap();
    for (driver, cache) in caches(&dir).await {
        for name in HOSTILE {
            // `x:y` is in the namespace `x`, so only names without a colon are apart.
            let name = name.trim_end_matches(':');
            if name.contains(':') || name.is_empty() {
                continue;
            }
            let keep = [format!("{name}x"), format!("x{name}"), name.to_lowercase() + "y"];
            for key in &keep {
                cache.namespace(key).set("k", 1_u32).await.unwrap();
            }
            cache.namespace(name).set("k", 2_u32).await.unwrap();
            cache.namespace(name).clear().await.unwrap();
            assert_eq!(get(&cache.namespace(name), "k").await, None, "{driver} {name:?}");
            for key in &keep {
                let kept = get(&cache.namespace(key), "k").await;
                assert_eq!(kept, Some(1), "{driver}: clearing {name:?} removed {key:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_keys_work_across_the_bus() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    for key in keys() {
        a.set(&key, 1_u32).await.unwrap();
        settle().await;
        assert_eq!(get(&b, &key).await, Some(1), "{key:?}");
        a.set(&key, 2_u32).await.unwrap();
        settle().await;
        assert_eq!(get(&b, &key).await, Some(2), "{key:?}");
        b.delete(&key).await.unwrap();
        settle().await;
        assert_eq!(get(&a, &key).await, None, "{key:?}");
    }
    assert_eq!(a.seen.count(|kind| matches!(kind, bentocache::EventKind::BusRejected)), 0);
}

#[tokio::test(start_paused = true)]
async fn keys_that_would_pass_for_what_is_known_of_a_tag_are_refused_by_name() {
    let node = World::new().node().await;
    let users = node.namespace("users");
    users.set("k", 1_u32).tags(["t"]).await.unwrap();
    for (cache, key) in [(&*node.cache, "users:___bc:t:t"), (&users, "___bc:t:t")] {
        let errors = [
            cache.set(key, u64::MAX).await.unwrap_err(),
            cache.delete(key).await.unwrap_err(),
            cache.expire(key).await.unwrap_err(),
            cache.pull::<u64>(key).await.unwrap_err(),
            cache.set_many([("fine", 1_u64), (key, 2)]).await.unwrap_err(),
            cache.delete_many(["fine", key]).await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::InvalidKey { .. }), "{error:?}");
            assert!(error.to_string().contains("reserved"), "{error}");
        }
        // A fill cannot write there either.
        let _ = cache.get_or_set(key, |_| async { Ok::<_, Error>(9_u64) }).await;
    }
    assert_eq!(get(&node, "fine").await, None, "all or none");
    assert_eq!(get(&users, "k").await, Some(1));
    assert_eq!(get(&World::new().node().await.cache, "___bc").await, None);
}

#[tokio::test(start_paused = true)]
async fn keys_are_case_sensitive_and_exact() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        let keys = ["key", "Key", "KEY", "key ", " key", "é", "e\u{301}", "ß", "ss", "SS"];
        for (i, key) in (0_u32..).zip(keys) {
            node.set(key, i).await.unwrap();
        }
        for (i, key) in (0_u32..).zip(keys) {
            assert_eq!(get(&node, key).await, Some(i), "{key:?}");
        }
    }
}

#[tokio::test]
async fn values_of_no_bytes_and_of_64_mb() {
    let dir = tempfile::tempdir().unwrap();
    for (driver, cache) in caches(&dir).await {
        cache.set("empty", String::new()).await.unwrap();
        cache.set("none", Vec::<u8>::new()).await.unwrap();
        assert_eq!(cache.get::<String>("empty").await.unwrap(), Some(String::new()), "{driver}");
        assert_eq!(cache.get::<Vec<u8>>("none").await.unwrap(), Some(Vec::new()), "{driver}");
        // Reading and writing that much takes seconds in a debug build: memory and file together.
        if driver != "all" {
            continue;
        }
        let large = "x".repeat(64 << 20);
        cache.set("large", large.clone()).await.unwrap();
        assert!(cache.get::<String>("large").await.unwrap() == Some(large), "{driver}");
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_at_the_edge_survive_the_second_tier() {
    let world = World::only_l2();
    let node = world.node().await;
    node.set("u64", u64::MAX).await.unwrap();
    node.set("i64", i64::MIN).await.unwrap();
    node.set("f64", [0.1_f64, -0.0, 1e300, f64::MIN_POSITIVE, f64::MAX]).await.unwrap();
    node.set("char", '\u{10ffff}').await.unwrap();
    node.set("text", "\0\u{1}\"\\\u{7f}\u{2028}🍱".to_owned()).await.unwrap();
    assert_eq!(node.get("u64").await.unwrap(), Some(u64::MAX));
    assert_eq!(node.get("i64").await.unwrap(), Some(i64::MIN));
    let floats = node.get::<[f64; 5]>("f64").await.unwrap();
    assert_eq!(floats, Some([0.1, -0.0, 1e300, f64::MIN_POSITIVE, f64::MAX]));
    assert_eq!(node.get("char").await.unwrap(), Some('\u{10ffff}'));
    let text = node.get::<String>("text").await.unwrap().unwrap();
    assert_eq!(text, "\0\u{1}\"\\\u{7f}\u{2028}🍱");
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_the_largest_duration_lasts() {
    let dir = tempfile::tempdir().unwrap();
    for (driver, cache) in caches(&dir).await {
        for (key, ttl) in [("max", Duration::MAX), ("secs", Duration::from_secs(u64::MAX))] {
            cache.set(key, 1_u32).ttl(ttl).grace(Duration::MAX).tags(["t"]).await.unwrap();
            cache.set_forever("forever", 1_u32).grace(ttl).await.unwrap();
            assert_eq!(get(&cache, key).await, Some(1), "{driver}");
            let produce = |_| async { Ok::<_, Error>(2_u32) };
            let value = cache.get_or_set("fill", produce).ttl(ttl).hard_timeout(ttl).grace(ttl);
            assert_eq!(value.await.unwrap(), 2, "{driver}");
        }
    }
    let node = World::new().node().await;
    node.set("k", 1_u32).ttl(Duration::MAX).await.unwrap();
    leap(secs(10 * 365 * 24 * 3_600)).await;
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tags() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        let tags = || (0..10_000).map(|i| format!("tag {i} 🍱\0*"));
        node.set("k", 1_u32).tags(tags()).await.unwrap();
        assert_eq!(get(&node, "k").await, Some(1));
        let produce = move |cx: bentocache::Context<u32>| async move {
            cx.tags(tags());
            Ok::<_, Error>(2)
        };
        assert_eq!(node.get_or_set("l", produce).await.unwrap(), 2);
        assert_eq!(get(&node, "l").await, Some(2));
        pass(secs(1)).await;
        node.delete_by_tag(["tag 9999 🍱\0*"]).await.unwrap();
        assert_eq!(node.get_many::<u32>(["k", "l"]).await.unwrap(), [None, None]);
        node.set("m", 3_u32).tags(tags()).await.unwrap();
        pass(secs(1)).await;
        node.delete_by_tag(tags()).await.unwrap();
        assert_eq!(get(&node, "m").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_tags_are_exact() {
    let node = World::new().node().await;
    let tags: Vec<String> = keys();
    for tag in &tags {
        node.set(format!("of {tag}"), 1_u32).tags([tag]).await.unwrap();
    }
    pass(secs(1)).await;
    for (i, tag) in tags.iter().enumerate() {
        node.delete_by_tag([tag]).await.unwrap();
        assert_eq!(get(&node, &format!("of {tag}")).await, None, "{tag:?}");
        if let Some(next) = tags.get(i + 1) {
            assert_eq!(get(&node, &format!("of {next}")).await, Some(1), "{tag:?} and {next:?}");
        }
    }
}

/// Every operation on a key whose bytes in L2 are anything. None may fail or panic.
async fn survives(cache: &Cache, key: &str) {
    cache.has(key).await.unwrap();
    cache.get::<u32>(key).await.unwrap();
    cache.get::<serde_json::Value>(key).grace("1h").await.unwrap();
    cache.get_many::<u32>([key, "other"]).grace("1h").await.unwrap();
    cache.expire(key).await.unwrap();
    cache.delete_by_tag(["t", "a"]).await.unwrap();
    let produce = |_| async { Err::<u32, _>("down") };
    let _ = cache.get_or_set(key, produce).grace("1h").timeout("1s").await;
    let many = |_| async { Ok::<_, Error>([("x".to_owned(), 1_u32)]) };
    cache.get_or_set_many([key], many).await.unwrap();
    cache.pull::<u32>(key).grace("1h").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn malformed_documents_are_a_miss() {
    let world = World::new();
    let node = world.node().await;
    let deep = format!("{{\"value\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let long = format!("{{\"value\":1,\"tags\":[{}\"t\"]}}", "\"t\",".repeat(100_000));
    let documents: [&[u8]; 26] = [
        b"",
        b" ",
        b"\0",
        b"\xff\xfe",
        b"null",
        b"true",
        b"\"text\"",
        b"[]",
        b"{}",
        b"{\"value\":1",
        b"{\"value\":1}}",
        b"{\"value\":1}garbage",
        b"{\"value\":\xff}",
        b"{\"value\":1,\"createdAt\":-1}",
        b"{\"value\":1,\"createdAt\":1e400}",
        b"{\"value\":1,\"logicalExpiration\":-5}",
        b"{\"value\":1,\"logicalExpiration\":\"soon\"}",
        b"{\"value\":1,\"logicalExpiration\":{}}",
        b"{\"value\":1,\"tags\":\"t\"}",
        b"{\"value\":1,\"tags\":[1,null]}",
        b"{\"value\":1,\"tags\":[\"t\",\"a\"],\"tagMarkers\":[1]}",
        b"{\"value\":1,\"tags\":[\"t\"],\"tagMarkers\":[-1]}",
        b"{\"value\":1,\"staleUntil\":99999999999999999999}",
        b"{\"value\":1,\"createdAt\":99999999999999999,\"logicalExpiration\":1}",
        deep.as_bytes(),
        long.as_bytes(),
    ];
    for document in documents {
        world.l2.put("bentocache:k", document.to_vec(), None);
        survives(&node, "k").await;
        assert_eq!(fill(&node, "k", 7).await, 7);
        node.delete("k").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_that_leaves_no_room_for_a_later_one_makes_no_value_immortal() {
    for marker in ["1e308", "9007199254740991", "18446744073709551615"] {
        for fails in [false, true] {
            let world = World::new();
            let node = world.node().await;
            let document = format!(r#"{{"value":{marker},"createdAt":{}}}"#, u64::MAX);
            node.map.put("bentocache:___bc:t:t", document, None);
            for round in 0..2_u32 {
                node.set("k", round).tags(["t"]).await.unwrap();
                if fails {
                    node.l2.fail();
                }
                node.delete_by_tag(["t"]).await.unwrap();
                node.l2.calm();
                pass(secs(10)).await;
                for node in [&node, &world.node().await] {
                    assert_eq!(get(node, "k").await, None, "{marker}, {round}");
                }
            }
            node.set("k", 2_u32).tags(["t"]).await.unwrap();
            assert_eq!(get(&node, "k").await, Some(2), "{marker}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_marker_leaves_its_entries_stale_and_is_no_error() {
    let world = World::new();
    for bytes in ["garbage", "{}", r#"{"value":"x"}"#, r#"{"value":null}"#] {
        let node = world.node().await;
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        let other = world.node().await;
        world.l2.put("bentocache:___bc:t:t", bytes, None);
        assert_eq!(get(&other, "k").await, None, "{bytes}");
        assert!(!other.has("k").await.unwrap());
        other.delete_by_tag(["t"]).await.unwrap();
        other.set("k", 2_u32).tags(["t"]).await.unwrap();
        assert_eq!(get(&other, "k").await, Some(2), "{bytes}");
    }
}

fn documents() -> impl Strategy<Value = Vec<u8>> {
    let fields = prop::sample::select(vec![
        "\"value\":1",
        "\"value\":null",
        "\"value\":[1e999]",
        "\"createdAt\":1",
        "\"createdAt\":\"x\"",
        "\"createdAt\":99999999999999999999",
        "\"logicalExpiration\":null",
        "\"logicalExpiration\":1e15",
        "\"logicalExpiration\":-1",
        "\"tags\":[\"t\"]",
        "\"tags\":[\"a\",\"a\"]",
        "\"tags\":null",
        "\"tagMarkers\":[0]",
        "\"tagMarkers\":[0,1]",
        "\"tagMarkers\":\"x\"",
        "\"staleUntil\":1e17",
        "\"staleUntil\":0",
        "\"staleUntil\":-1",
    ]);
    let built = prop::collection::vec(fields, 0..6)
        .prop_map(|fields| format!("{{{}}}", fields.join(",")).into_bytes());
    let framed = prop::collection::vec(any::<u8>(), 0..40).prop_map(|mut bytes| {
        bytes.splice(0..0, [0xb3, 1, 0, 0]);
        bytes
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..60), framed, built]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_in_the_second_tier_are_survived(bytes in documents(), as_marker: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::new();
            let node = world.node_where(|s| s.l2_circuit_breaker("off", 1)).await;
            if as_marker {
                node.set("k", 1_u32).tags(["t"]).await.unwrap();
            }
            let key = if as_marker { "bentocache:___bc:t:t" } else { "bentocache:k" };
            world.l2.put(key, bytes.clone(), None);
            survives(&*world.node().await, "k").await;
        });
    }

    #[test]
    fn any_bytes_on_the_bus_are_survived(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20),
        kind in 0_u8..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::new();
            let node = world.node().await;
            node.set("k", 1_u32).await.unwrap();
            settle().await;
            for mut message in messages {
                if message.len() > 30 {
                    // As a sender writes it, up to there.
                    message[..24].copy_from_slice(b"abcdefghijklmnopqrstuvwx");
                    message[24] = kind;
                }
                send(&world, message).await;
            }
            settle().await;
            assert_eq!(get(&node, "k").await, Some(1));
            assert_eq!(node.bus.on(Ops::SUBSCRIBE).calls(), 0, "it listens on");
        });
    }
}

async fn send(world: &World, message: impl Into<Bytes>) {
    let topic = Topic::new("bentocache.notifications:s", "bentocache:");
    world.bus.publish(topic, message.into()).await.unwrap();
}

/// A message of another process.
fn message(kind: u8, namespace: &[u8], keys: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"abcdefghijklmnopqrstuvwx".to_vec();
    bytes.push(kind);
    for part in std::iter::once(&namespace).chain(keys) {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[tokio::test(start_paused = true)]
async fn malformed_messages_are_counted_and_ignored() {
    let world = World::new();
    let node = world.node().await;
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    let good = message(3, b"bentocache", &[b"k"]);
    let mut lying = good.clone();
    lying[30..].fill(0xff);
    let mut huge = message(3, b"bentocache", &[]);
    huge.extend([0xff; 4]);
    let bad = [
        Vec::new(),
        b"?".to_vec(),
        good[..24].to_vec(),
        good[..28].to_vec(),
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        message(0, b"bentocache", &[b"k"]),
        message(5, b"bentocache", &[b"k"]),
        message(0xff, b"bentocache", &[b"k"]),
        message(3, b"bentocache", &[b"\xff"]),
        message(3, b"\xff", &[b"k"]),
        lying,
        huge,
    ];
    let sent = bad.len();
    for message in bad {
        send(&world, message).await;
    }
    settle().await;
    node.l2.reset_calls();
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(node.l2.calls(), 0, "nothing happened to it");
    assert_eq!(node.seen.count(|kind| matches!(kind, bentocache::EventKind::BusRejected)), sent);
    send(&world, good).await;
    settle().await;
    node.l2.fail();
    assert_eq!(get(&node, "k").await, None, "a good one still works");
}

/// The error of a refusal says what would do.
#[tokio::test(start_paused = true)]
async fn a_key_over_the_limit_of_a_driver_is_refused_and_the_limit_is_named() {
    let store = Store::new().l1(Memory::new()).l2(MapL2::new().max_key(100));
    let cache = BentoCache::builder().store("s", store).build().await.unwrap();
    let key = "k".repeat(200);
    let error = cache.set(&key, 1_u32).await.unwrap_err();
    assert!(error.to_string().contains("100 bytes"), "{error}");
    assert_eq!(get(&cache, &key).await, None);
    assert_eq!(fill(&cache, &key, 2).await, 2, "reading and producing go on");
    assert!(!cache.delete(&key).await.unwrap_or(false) || cache.missing(&key).await.unwrap());
}
