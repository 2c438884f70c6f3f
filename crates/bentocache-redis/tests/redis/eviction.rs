//! A Redis that evicts any key when it is full: what it loses of tags brings no value back.

use std::time::Duration;

use bentocache::{BentoCache, Memory, Store};
use bentocache_redis::{Redis, RedisBus};
use testservers::RedisServer;

const ENTRIES: usize = 1_000;

async fn node(server: &RedisServer) -> BentoCache {
    let url = server.url();
    let store = Store::new().l1(Memory::new()).l2(Redis::new(&url)).bus(RedisBus::new(&url));
    BentoCache::builder().ttl("1h").store("main", store).build().await.expect("a cache")
}

fn keys() -> impl Iterator<Item = String> + Clone {
    (0..ENTRIES).map(|i| format!("e{i}"))
}

/// How many of these keys are on the server. It counts them as used.
fn count(server: &RedisServer, keys: impl Iterator<Item = String>) -> Vec<bool> {
    let keys: Vec<String> = keys.collect();
    let mut command = vec!["mget"];
    command.extend(keys.iter().map(String::as_str));
    server.cli(&command).lines().map(|line| !line.is_empty()).collect()
}

fn number(server: &RedisServer, section: &str, field: &str) -> u64 {
    let info = server.cli(&["info", section]);
    let line = info.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').trim().parse().expect("a number")
}

/// Fills the memory of the server until it has evicted that many keys; `hot` is used meanwhile.
async fn press(server: &RedisServer, policy: &str, hot: impl Iterator<Item = String> + Clone) {
    let filler = node(server).await;
    server.config("maxmemory-samples", "10");
    server.config("maxmemory-policy", policy);
    let used = number(server, "memory", "used_memory");
    server.config("maxmemory", &(used + 2_000_000).to_string());
    let value = "x".repeat(4_000);
    let before = number(server, "stats", "evicted_keys");
    for round in 0..200 {
        let values = (0..50).map(|i| (format!("filler {round} {i}"), value.clone()));
        filler.set_many(values).await.expect("room is made");
        let _ = count(server, hot.clone());
        if number(server, "stats", "evicted_keys") - before > 2_000 {
            break;
        }
    }
    assert!(number(server, "stats", "evicted_keys") - before > 1_000, "{policy}: no pressure");
    server.config("maxmemory", "0");
    filler.disconnect_all().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_does_not_come_back_when_redis_evicts_keys() {
    for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
        let server = RedisServer::start();
        let [a, b] = [node(&server).await, node(&server).await];
        for (i, key) in keys().enumerate() {
            a.set(&key, i as u32).tags([format!("t{i}")]).await.expect("set");
        }
        a.delete_by_tag((0..ENTRIES).map(|i| format!("t{i}"))).await.expect("invalidated");

        press(&server, policy, keys().map(|key| format!("bentocache:{key}"))).await;

        let entries = count(&server, keys().map(|key| format!("bentocache:{key}")));
        let markers = count(&server, (0..ENTRIES).map(|i| format!("bentocache:___bc:t:t{i}")));
        let orphans = entries.iter().zip(&markers).filter(|(entry, marker)| **entry && !**marker);
        let orphans = orphans.count();
        assert!(orphans > 0, "{policy}: no marker was evicted whose entry is there");
        let c = node(&server).await;
        for (name, node) in [("a", &a), ("b", &b), ("c", &c)] {
            let found = node.get_many::<u32>(keys()).await.expect("an answer");
            let back = found.iter().flatten().count();
            assert_eq!(back, 0, "{policy}, {name}: of {orphans} without a marker");
        }
        // What is written now is valid for all, once `c` has told that a bucket was lost.
        let written = async {
            a.set("new", 7_u32).tags(["t0", "t1"]).await.expect("set");
            tokio::time::sleep(Duration::from_millis(50)).await;
            c.get::<u32>("new").await.expect("an answer")
        };
        if written.await.is_none() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            a.set("new", 7_u32).tags(["t0", "t1"]).await.expect("set");
            let found = c.get::<u32>("new").await.expect("an answer");
            assert_eq!(found, Some(7), "{policy}");
        }
        for node in [a, b, c] {
            node.disconnect_all().await.expect("it ends");
        }
    }
}

/// The cache says so when it connects.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_evicts_markers_is_advised_against() {
    let server = RedisServer::start();
    let found = async || {
        let node = node(&server).await;
        let codes: Vec<_> = node.advice().iter().map(ToString::to_string).collect();
        node.disconnect_all().await.expect("it ends");
        codes
    };
    server.config("maxmemory", "100mb");
    for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
        server.config("maxmemory-policy", policy);
        let found = found().await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].ends_with("[l2-evicts-markers]") && found[0].contains(policy),
            "{found:?}"
        );
    }
    for policy in ["volatile-lru", "volatile-ttl", "noeviction"] {
        server.config("maxmemory-policy", policy);
        assert_eq!(found().await, [""; 0], "{policy}");
    }
    // Without a limit, nothing is evicted.
    server.config("maxmemory-policy", "allkeys-lru");
    server.config("maxmemory", "0");
    assert_eq!(found().await, [""; 0]);
}

/// Two drivers with one address and database are one L2.
#[tokio::test]
async fn two_stores_on_one_database_with_one_prefix_are_advised_against() {
    let server = RedisServer::start();
    let with = async |one: Redis, other: Redis| {
        let store = |redis| Store::new().l1(Memory::new()).l2(redis).l1_ttl("1m");
        let builder = BentoCache::builder().default_store("a");
        let builder = builder.store("a", store(one)).store("b", store(other));
        let cache = builder.build().await.expect("a cache");
        cache.advice().iter().map(|advice| advice.code).collect::<Vec<_>>()
    };
    let (url, other) = (server.url(), format!("{}/1", server.url().trim_end_matches('/')));
    let client = redis::Client::open(&*url).expect("a client");
    assert_eq!(with(Redis::new(&url), Redis::new(&url)).await, ["shared-prefix"]);
    assert_eq!(with(Redis::new(&url), Redis::from_client(client)).await, ["shared-prefix"]);
    assert_eq!(with(Redis::new(&url), Redis::new(&other)).await, [""; 0]);
    assert_eq!(with(Redis::new(&url), Redis::new(&url).prefix("b")).await, [""; 0]);
}
