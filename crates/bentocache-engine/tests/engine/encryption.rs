//! Encryption of L2: nothing of a value can be read there, and what cannot be decrypted is a miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::common::{Node, World, get, get_stale, ms, pass, secs, settle};
use crate::logs::Log;
use crate::races::{Source, fresh, go};
use bentocache::file::File;
use bentocache::{BentoCache, Error, EventKind, InProcessBus, KeyRing, Memory, Store};
use bytes::Bytes;

/// Not in any stored byte, log or error.
const SECRET: &str = "correct horse battery staple";

fn secret() -> String {
    SECRET.to_owned()
}

fn one() -> KeyRing {
    KeyRing::new(1, [1; 32])
}

async fn node(world: &World, ring: KeyRing) -> Node {
    world.node_where(|s| s.grace("1h").timeout("none").encryption(ring)).await
}

fn worlds() -> [World; 3] {
    [World::new(), World::without_bus(), World::only_l2()]
}

/// The bytes under all keys but those of markers and buckets.
fn values(world: &World) -> Vec<(String, Bytes)> {
    let keys = world.l2.all_keys().into_iter().filter(|key| !key.contains("___bc:"));
    keys.map(|key| (key.clone(), world.l2.peek(&key).unwrap())).collect()
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// The reasons of the events about values that could not be decoded, since the last call.
fn refused(node: &Node) -> Vec<String> {
    let reason = |event: bentocache::Event<'_>| match event.kind {
        EventKind::DecodeFailed { reason, .. } => Some(reason.into_owned()),
        _ => None,
    };
    node.seen.take().into_iter().filter_map(reason).collect()
}

#[tokio::test(start_paused = true)]
async fn every_write_of_a_value_is_encrypted() {
    for world in worlds() {
        let a = node(&world, one()).await;
        a.set("set", secret()).tags(["a secret tag"]).await.unwrap();
        let inspected = a.inspect("set").await.unwrap().l2.unwrap();
        assert!(inspected.is_encrypted && inspected.size.is_some());
        a.set_many([("many:1", secret()), ("many:2", secret())]).await.unwrap();
        let fill = |_| async { Ok::<_, Error>(secret()) };
        a.get_or_set("fill", fill).await.unwrap();
        a.set("expired", secret()).await.unwrap();
        a.expire("expired").await.unwrap();
        a.set("backed off", secret()).ttl("1s").await.unwrap();
        pass(secs(2)).await;
        let fails = |_| async { Err::<String, _>("down") };
        assert_eq!(a.get_or_set("backed off", fails).await.unwrap(), SECRET);
        a.set_forever("forever", secret()).await.unwrap();
        let all = values(&world);
        assert_eq!(all.len(), 7);
        for (key, bytes) in all {
            assert_eq!(bytes[..3], [0xB3, 2, 1], "{key}");
            for text in [SECRET, "secret", "value", "createdAt", "tags"] {
                assert!(!has(&bytes, text), "{key} {text}");
            }
        }
        // Another process reads all of it.
        let b = node(&world, one()).await;
        for key in ["set", "many:1", "many:2", "fill", "backed off", "forever"] {
            assert_eq!(b.get::<String>(key).await.unwrap().as_deref(), Some(SECRET), "{key}");
        }
        let stale = b.get::<String>("expired").grace("1h").await.unwrap();
        assert_eq!(stale.as_deref(), Some(SECRET));
        assert!(!b.has("expired").await.unwrap() && b.has("set").await.unwrap());
        b.delete_by_tag(["a secret tag"]).await.unwrap();
        assert_eq!(b.get::<String>("set").await.unwrap(), None);
        assert_eq!(b.pull::<String>("fill").await.unwrap().as_deref(), Some(SECRET));
        assert_eq!(refused(&b), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn neither_values_nor_keys_of_the_ring_get_into_logs_and_errors() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let world = World::without_bus();
    let hex = "c9".repeat(32);
    let a = node(&world, KeyRing::new(1, hex.as_str())).await;
    a.set("k", secret()).await.unwrap();
    let b = node(&world, KeyRing::new(1, [2; 32])).await;
    assert_eq!(b.get::<String>("k").await.unwrap(), None);
    a.l2.cut();
    a.set("k", secret()).await.unwrap();
    a.l2.restore();
    pass(secs(10)).await;
    let text = log.take();
    assert!(text.contains("cannot be decoded"), "{text}");
    for secret in [SECRET, &hex[..8], "201, 201", "[2, 2", "\\xc9"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let short = World::without_bus();
    let store = Store::new().l2(short.l2.clone()).encryption(KeyRing::new(1, "c9c9c9"));
    let error = BentoCache::builder().store("s", store).build().await.err().unwrap();
    assert!(matches!(error, Error::InvalidOption { option: "encryption", .. }));
    assert!(!format!("{error} {error:?}").contains("c9c9"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_decrypted_is_a_miss_with_a_reason() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    for world in worlds() {
        let a = node(&world, one()).await;
        a.set("k", 1_u32).await.unwrap();
        a.set("other", 2_u32).await.unwrap();
        settle().await;
        let stored = world.l2.peek("bentocache:k").unwrap();
        let moved = world.l2.peek("bentocache:other").unwrap();
        let mut changed = stored.to_vec();
        changed[40] ^= 1;
        let cases = [
            (KeyRing::new(2, [1; 32]), stored.clone(), "the key ring does not have"),
            (KeyRing::new(1, [2; 32]), stored.clone(), "changed"),
            (one(), moved, "changed"),
            (one(), changed.into(), "changed"),
            (one(), stored.slice(..stored.len() - 1), "changed"),
            (one(), stored.slice(..2), "changed"),
            (one(), Bytes::from_static(b"{\"value\":1,\"createdAt\":1}"), "not encrypted"),
            (one(), Bytes::new(), "not encrypted"),
        ];
        for (ring, bytes, reason) in cases {
            world.l2.put("bentocache:k", bytes, None);
            let b = node(&world, ring).await;
            log.take();
            assert_eq!(get_stale(&b, "k").await, None, "{reason}");
            let reasons = refused(&b);
            assert!(reasons.len() == 1 && reasons[0].contains(reason), "{reasons:?}");
            let warnings = log.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains(reason), "{warnings:?}");
            assert!(!b.has("k").await.unwrap());
            assert_eq!(b.get_many::<u32>(["k"]).await.unwrap(), [None]);
            // Such a value is no obstacle.
            assert_eq!(b.get_or_set("k", Source::new().gives(3_u32)).await.unwrap(), 3);
            assert_eq!(fresh(&b, "k").await, Some(3), "{reason}");
        }
        // Without a key ring.
        a.set("k", 1_u32).await.unwrap();
        settle().await;
        let plain = world.node().await;
        assert_eq!(get(&plain, "k").await, None);
        assert!(refused(&plain)[0].contains("no key ring"));
        plain.set("k", 5_u32).await.unwrap();
        assert_eq!(get(&plain, "k").await, Some(5));
    }
}

#[tokio::test(start_paused = true)]
async fn values_from_before_the_encryption_can_be_accepted() {
    let world = World::without_bus();
    let plain = world.node().await;
    plain.set("k", 1_u32).grace("1h").await.unwrap();
    let a = node(&world, one().accept_plain(true)).await;
    assert_eq!(get(&a, "k").await, Some(1));
    // Changes of such a value encrypt it.
    a.expire("k").await.unwrap();
    assert_eq!(get_stale(&a, "k").await, Some(1));
    assert_eq!(world.l2.peek("bentocache:k").unwrap()[..2], [0xB3, 2]);
}

#[tokio::test(start_paused = true)]
async fn comparisons_are_of_documents_and_not_of_their_encrypted_bytes() {
    let world = World::new();
    let (a, b) = (node(&world, one()).await, node(&world, one()).await);
    // A set that was stored although its answer was lost is found when it is repeated.
    a.l2.fail_late();
    a.set("k", 1_u32).await.unwrap();
    a.l2.calm();
    let stored = world.l2.peek("bentocache:k").unwrap();
    pass(secs(10)).await;
    assert_eq!(world.l2.peek("bentocache:k").unwrap(), stored, "nothing to write");
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(1), Some(1)));
    // A late value of a factory is taken back out of L2.
    let source = Source::held();
    let fill = go(a.get_or_set("late", source.gives(1_u32)));
    source.begun(1).await;
    a.bus.hold();
    source.release();
    fill.await.unwrap().unwrap();
    assert!(world.l2.peek("bentocache:late").is_some());
    b.delete("late").await.unwrap();
    world.l2.put("bentocache:late", world.l2.peek("bentocache:k").unwrap(), None);
    a.bus.calm();
    a.bus.release();
    settle().await;
    assert!(world.l2.peek("bentocache:late").is_some(), "what is not ours stays");
    // A deletion that waits removes what it was meant for, and nothing younger.
    a.l2.cut();
    a.delete("k").await.unwrap();
    a.l2.restore();
    pass(secs(10)).await;
    assert_eq!(get_stale(&b, "k").await, None);
    a.l2.cut();
    a.set("m", 1_u32).await.unwrap();
    pass(ms(5)).await;
    b.set("m", 2_u32).await.unwrap();
    a.l2.restore();
    pass(secs(10)).await;
    assert_eq!((get(&a, "m").await, get(&b, "m").await), (Some(2), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_fill_over_an_invalidation_is_taken_back() {
    let world = World::new();
    let (a, b) = (node(&world, one()).await, node(&world, one()).await);
    let stored = a.get_or_set("k", Source::new().gives(1_u32));
    assert_eq!(stored.await.unwrap(), 1);
    let old = world.l2.peek("bentocache:k").unwrap();
    b.delete("k").await.unwrap();
    // L2 looks as if the write of this node had arrived after the deletion by the other one, but
    // before the message about the deletion.
    world.l2.put("bentocache:k", old, None);
    settle().await;
    assert!(world.l2.peek("bentocache:k").is_none());
}

/// Each process gets the next key as an old one first, then as the current one.
#[tokio::test(start_paused = true)]
async fn keys_are_rotated_under_traffic() {
    let (k1, k2, k3) = ([1; 32], [2; 32], [3; 32]);
    let rings: [&dyn Fn() -> KeyRing; 5] = [
        &|| KeyRing::new(1, k1).with_old(2, k2),
        &|| KeyRing::new(2, k2).with_old(1, k1),
        &|| KeyRing::new(2, k2).with_old(3, k3).with_old(1, k1),
        &|| KeyRing::new(3, k3).with_old(2, k2).with_old(1, k1),
        &|| KeyRing::new(3, k3).with_old(2, k2),
    ];
    let world = World::new();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        nodes.push(Arc::new(node(&world, rings[0]()).await));
    }
    let mut value = 0_u32;
    for ring in rings {
        for at in 0..2 {
            let stop = Arc::new(AtomicBool::new(false));
            let traffic: Vec<_> = nodes
                .iter()
                .map(|node| {
                    let (node, stop) = (node.clone(), stop.clone());
                    tokio::spawn(async move {
                        while !stop.load(SeqCst) {
                            let keys = (0..20_u32).map(|i| format!("k{i}"));
                            for key in keys {
                                let source = Source::new();
                                node.get_or_set(key.as_str(), source.gives(9_u32)).await.unwrap();
                            }
                            pass(ms(7)).await;
                        }
                    })
                })
                .collect();
            for i in 0..50_u32 {
                value += 1;
                let (writer, reader) = (&nodes[i as usize % 2], &nodes[1 - i as usize % 2]);
                writer.set(format!("k{}", i % 20), value).await.unwrap();
                settle().await;
                assert_eq!(get(reader, &format!("k{}", i % 20)).await, Some(value));
            }
            stop.store(true, SeqCst);
            for task in traffic {
                task.await.unwrap();
            }
            for node in &nodes {
                assert_eq!(refused(node), [""; 0]);
            }
            nodes[at] = Arc::new(node(&world, ring()).await);
        }
    }
    let ids: Vec<u8> = values(&world).iter().map(|(_, bytes)| bytes[6]).collect();
    assert!(ids.iter().all(|id| *id >= 2), "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn where_l2_cannot_clear_encrypted_values_are_cleared_too() {
    for world in [World::new().without_clear(), World::without_bus().without_clear()] {
        let (a, b) = (node(&world, one()).await, node(&world, one()).await);
        a.namespace("n").set("k", 1_u32).await.unwrap();
        assert_eq!(get(&b, "n:k").await, Some(1));
        a.namespace("n").clear().await.unwrap();
        pass(ms(1_100)).await;
        assert_eq!(get_stale(&b, "n:k").await, None);
    }
}

#[tokio::test]
async fn the_files_of_the_file_driver_are_encrypted() {
    let directory = tempfile::tempdir().unwrap();
    let cache = async |ring: KeyRing| {
        let store = Store::new().l2(File::new(directory.path())).encryption(ring);
        BentoCache::builder().store("s", store).build().await.unwrap()
    };
    let first = cache(one()).await;
    first.set("k", secret()).await.unwrap();
    first.disconnect_all().await.unwrap();
    let mut files = 0;
    let mut folders = vec![directory.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            assert!(!has(&std::fs::read(path).unwrap(), "correct horse"));
        }
    }
    assert!(files > 0);
    let value = cache(one()).await.get::<String>("k").await.unwrap();
    assert_eq!(value.as_deref(), Some(SECRET));
    let other = cache(KeyRing::new(1, [9; 32])).await;
    assert_eq!(other.get::<String>("k").await.unwrap(), None);
}

/// The bus carries no values, so stores without L2 need no keys.
#[tokio::test(start_paused = true)]
async fn a_store_without_l2_ignores_the_ring() {
    let store = Store::new().l1(Memory::new()).bus(InProcessBus::new()).encryption(one());
    let cache = BentoCache::builder().store("s", store).build().await.unwrap();
    cache.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&cache, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_l1_is_encrypted_as_l2_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("l1.snapshot");
    let world = World::only_l1();
    let node = async |ring: Option<KeyRing>| {
        world
            .node_where(|store| {
                let store = store.l1(Memory::new().snapshot(&path));
                if let Some(ring) = ring { store.encryption(ring) } else { store }
            })
            .await
    };
    let write = async |ring| {
        let a = node(ring).await;
        a.set("k", secret()).await.unwrap();
        a.disconnect().await.unwrap();
    };
    write(Some(one())).await;
    assert!(!has(&std::fs::read(&path).unwrap(), SECRET));
    let rotated = KeyRing::new(2, [2; 32]).with_old(1, [1; 32]);
    assert_eq!(node(Some(rotated)).await.get::<String>("k").await.unwrap(), Some(secret()));

    // A wrong key, none, and a file in clear.
    write(Some(one())).await;
    assert_eq!(node(Some(KeyRing::new(1, [3; 32]))).await.get::<String>("k").await.unwrap(), None);
    write(Some(one())).await;
    assert_eq!(node(None).await.get::<String>("k").await.unwrap(), None);
    write(None).await;
    assert_eq!(node(Some(one())).await.get::<String>("k").await.unwrap(), None);
}
