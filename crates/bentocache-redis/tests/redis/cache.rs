//! Whole caches on one server, as the processes of a deployment have them.

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bentocache::{BentoCache, Memory, RecoveryMode, Store};
use bentocache_redis::{Redis, RedisBus};
use testservers::RedisServer;

async fn with_bus(server: &RedisServer) -> BentoCache {
    let url = server.url();
    let store = Store::new().l1(Memory::new()).l2(Redis::new(&url)).bus(RedisBus::new(&url));
    BentoCache::builder().ttl("10m").store("main", store).build().await.expect("a cache")
}

async fn with_tracking(server: &RedisServer) -> BentoCache {
    let url = server.url();
    let redis = Redis::new(&url);
    let tracking = redis.tracking();
    let store = Store::new().l1(Memory::new()).l2(redis).bus(tracking);
    BentoCache::builder().ttl("10m").store("main", store).build().await.expect("a cache")
}

/// The cached value, or `fresh` if the factory had to run.
async fn read(bento: &BentoCache, key: &str, fresh: u32) -> u32 {
    let factory = move |_| async move { Ok::<_, Infallible>(fresh) };
    bento.get_or_set(key, factory).await.expect("a value")
}

async fn becomes(bento: &BentoCache, key: &str, wanted: u32) {
    let start = Instant::now();
    while bento.get::<u32>(key).await.expect("an answer") != Some(wanted) {
        assert!(start.elapsed() < Duration::from_secs(10), "{key} has not become {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_values_and_hear_of_changes() {
    let server = RedisServer::start();
    let [one, two] = [with_bus(&server).await, with_bus(&server).await];
    assert_eq!(read(&one, "a", 1).await, 1);
    assert!(server.cli(&["get", "bentocache:a"]).contains("\"value\":1"));
    assert_eq!(two.get::<u32>("a").await.unwrap(), Some(1));
    one.set("a", 2_u32).await.unwrap();
    becomes(&two, "a", 2).await;
    two.set("a", 3_u32).await.unwrap();
    becomes(&one, "a", 3).await;
    // The gap: a change without a message.
    server.cli(&["client", "kill", "type", "pubsub"]);
    server.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
    one.set("a", 4_u32).await.unwrap();
    becomes(&two, "a", 4).await;
    one.clear().await.unwrap();
    assert_eq!(server.cli(&["keys", "bentocache:a"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_hears_of_any_writer_and_leaves_our_own_values() {
    let server = RedisServer::start();
    let bento = with_tracking(&server).await;
    assert_eq!(read(&bento, "a", 1).await, 1);
    let written = server.cli(&["get", "bentocache:a"]);
    // When the report about another client's later write has arrived, the report about our own has,
    // too.
    assert_eq!(read(&bento, "b", 1).await, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() + 1;
    let end = now + 600_000;
    let other = format!(r#"{{"value":2,"createdAt":{now},"logicalExpiration":{end}}}"#);
    server.cli(&["set", "bentocache:b", &other]);
    becomes(&bento, "b", 2).await;
    assert_eq!(server.cli(&["get", "bentocache:a"]), written, "our own value was taken back");
    assert_eq!(read(&bento, "a", 9).await, 1);
    // Also if the connection for writing is another one.
    server.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
    // A value that is on its way when the link is restored is rightly removed: an invalidation may
    // have been missed. With a stable link none is.
    let (start, mut kept, mut at) = (Instant::now(), 0, 0);
    while kept < 50 {
        assert!(start.elapsed() < Duration::from_secs(10), "our own values are taken back");
        let key = format!("k{at}");
        assert_eq!(read(&bento, &key, 1).await, 1);
        let again = read(&bento, &key, 2).await;
        let is_kept = again == 1 && !server.cli(&["get", &format!("bentocache:{key}")]).is_empty();
        (kept, at) = (if is_kept { kept + 1 } else { 0 }, at + 1);
    }
    server.cli(&["del", "bentocache:a"]);
    let start = Instant::now();
    while bento.get::<u32>("a").await.unwrap().is_some() {
        assert!(start.elapsed() < Duration::from_secs(10), "a deleted value lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waited_takes_the_place_of_what_is_no_entry() {
    let server = RedisServer::start();
    let url = server.url();
    let store = Store::new().l1(Memory::new()).l2(Redis::new(&url)).recovery(10, "500ms");
    let store = store.recovery_mode(RecoveryMode::LastWrite);
    let bento = BentoCache::builder().store("main", store).build().await.expect("a cache");
    server.config("maxmemory", "1");
    bento.set("k", 1_u32).await.expect("it waits");
    server.config("maxmemory", "0");
    // It is not a string, so a read finds nothing, and yet it is in the way.
    server.cli(&["lpush", "bentocache:k", "a list"]);
    assert!(server.cli(&["type", "bentocache:k"]).contains("list"));
    let start = Instant::now();
    while !server.cli(&["type", "bentocache:k"]).contains("string") {
        assert!(start.elapsed() < Duration::from_secs(10), "it never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bento.get::<u32>("k").await.expect("an answer"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_touch_moves_the_expiry_of_the_server() {
    let server = RedisServer::start();
    let [one, two] = [with_bus(&server).await, with_bus(&server).await];
    one.set("a", 1_u32).ttl("1m").await.unwrap();
    assert_eq!(two.get::<u32>("a").await.unwrap(), Some(1));
    let left = || server.cli(&["pttl", "bentocache:a"]).parse::<i64>().unwrap();
    for (ttl, millis) in [("1h", 3_600_000), ("10s", 10_000), ("forever", -1)] {
        assert!(two.touch("a").ttl(ttl).await.unwrap());
        assert!((millis - 5_000..=millis).contains(&left()), "{ttl}: {}", left());
        becomes(&one, "a", 1).await;
    }
    assert!(one.delete("a").await.unwrap());
    assert!(!two.touch("a").await.unwrap());
    assert_eq!(left(), -2);
}

/// The traffic moves from one process to the other; then nobody asks any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_sliding_value_stays_while_some_process_asks_for_it() {
    const IDLE: Duration = Duration::from_secs(4);
    let server = RedisServer::start();
    let nodes = [with_bus(&server).await, with_bus(&server).await];
    nodes[0].set("a", 1_u32).ttl("1h").sliding(IDLE).await.unwrap();
    let start = Instant::now();
    for round in 0..8 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(nodes[round / 2 % 2].get::<u32>("a").await.unwrap(), Some(1), "{round}");
    }
    assert!(start.elapsed() > IDLE * 2);
    tokio::time::sleep(IDLE + IDLE / 4).await;
    assert_eq!(server.cli(&["exists", "bentocache:a"]), "0");
    for node in &nodes {
        assert_eq!(node.get::<u32>("a").await.unwrap(), None);
    }
}
