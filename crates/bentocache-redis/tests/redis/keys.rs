//! Keys of others, of other types, and at the limits.

use bentocache_driver::{ErrorKind, L2Driver, LockDriver, Write};
use bentocache_redis::{Redis, RedisLock};
use bentocache_testkit::unique;
use std::time::Duration;
use testservers::RedisServer;

use crate::common::{next, server};

async fn all(redis: &Redis, prefix: &str) -> Vec<String> {
    let mut keys = redis.keys(prefix);
    let mut found = Vec::new();
    while let Some(key) = std::future::poll_fn(|cx| keys.as_mut().poll_next(cx)).await {
        found.push(key.expect("a key"));
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn globs_in_prefixes_are_letters() {
    let server = RedisServer::start();
    let hostile = ["app*", "app?", "app[12]", "app[^1]", "app[a-c]", "app\\", "app\\*", "a*p?[x]"];
    for prefix in hostile {
        let redis = Redis::new(server.url()).prefix(prefix);
        redis.set("mine", "1".into(), None).await.unwrap();
        let plain = Redis::new(server.url());
        for other in
            ["apple:mine", "app1:mine", "appa:mine", "app:mine", "app\\x:mine", "ap", "axxpyx:"]
        {
            plain.set(other, "theirs".into(), None).await.unwrap();
        }
        assert_eq!(all(&redis, "").await, ["mine"], "{prefix}");
        redis.clear("").await.unwrap();
        assert_eq!(redis.get("mine").await.unwrap(), None, "{prefix}");
        assert_eq!(all(&plain, "").await.len(), 7, "{prefix} cleared the keys of others");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_cleared_only_when_it_is_ours() {
    let server = RedisServer::start();
    let plain = Redis::new(server.url());
    plain.set("apple", "1".into(), None).await.unwrap();
    let error = plain.clear("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("prefix"), "{error}");
    let ours = Redis::new(server.url()).prefix("app");
    ours.set("a", "1".into(), None).await.unwrap();
    assert_eq!(plain.get("app:a").await.unwrap(), Some("1".into()));
    ours.clear("").await.unwrap();
    assert_eq!(server.cli(&["keys", "*"]), "apple");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_not_text_are_left_alone() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    redis.set("app:a", "1".into(), None).await.unwrap();
    assert_eq!(server.cli(&["eval", "return redis.call('set', 'app:\\255\\254', '1')", "0"]), "OK");
    assert_eq!(all(&redis, "app:").await, ["app:a"]);
    redis.clear("app:").await.unwrap();
    assert_eq!(server.cli(&["dbsize"]), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_not_keys() {
    let server = RedisServer::start();
    let (redis, lock) = (Redis::new(server.url()), RedisLock::new(server.url()));
    let lease = Duration::from_secs(60);
    assert!(lock.acquire("app:a", "token", lease).await.unwrap());
    for key in ["app:a", "app:a:lock", "app:a:lock\u{ff}", "app:a:lock\u{fffd}"] {
        assert_eq!(redis.get(key).await.unwrap(), None, "{key}");
        redis.set(key, "1".into(), None).await.unwrap();
    }
    assert_eq!(all(&redis, "app:a:").await.len(), 3);
    redis.clear("app:").await.unwrap();
    assert!(!lock.acquire("app:a", "other", lease).await.unwrap(), "clear took the lock along");
    assert!(lock.release("app:a", "token").await.unwrap());
    assert_eq!(server.cli(&["dbsize"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_types_are_misses() {
    let redis = Redis::new(server().url());
    let name = unique("list");
    let name = name.as_str();
    assert_eq!(server().cli(&["rpush", name, "1"]), "1");
    assert_eq!(redis.get(name).await.unwrap(), None);
    assert_eq!(redis.get_many(&[name, name]).await.unwrap(), [None, None]);
    assert_eq!(redis.pull(name).await.unwrap(), None);
    assert!(!redis.update(name, b"1", "2".into(), None).await.unwrap());
    assert!(!redis.delete_if(name, b"1").await.unwrap());
    assert_eq!(server().cli(&["llen", name]), "1");
    redis.set(name, "2".into(), None).await.unwrap();
    assert_eq!(redis.get(name).await.unwrap(), Some("2".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_names_the_limit() {
    let redis = Redis::new(server().url());
    let limit = redis.capabilities().max_value.unwrap();
    assert_eq!(limit, 512 << 20);
    // Zeroes that nobody looks at take no memory.
    let error = redis.set("a", vec![0; limit + 1].into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
    let small = Redis::new(server().url()).max_value(10);
    assert_eq!(
        small.update("a", b"", vec![0; 11].into(), None).await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    small.set("a", vec![0; 10].into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_survive_a_flush() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    for _ in 0..3 {
        redis.set("a", "1".into(), None).await.unwrap();
        assert!(redis.update("a", b"1", "2".into(), None).await.unwrap());
        assert!(redis.delete_if("a", b"2").await.unwrap());
        server.cli(&["script", "flush"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_keys_may_be_left_early() {
    let redis = Redis::new(server().url()).prefix(unique("app"));
    for at in 0..20 {
        redis.set(&format!("k{at}"), "1".into(), None).await.unwrap();
    }
    let mut keys = redis.keys("k");
    assert!(next(&mut keys).await.unwrap().starts_with('k'));
    drop(keys);
    assert_eq!(all(&redis, "").await.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_above_the_limit_of_the_server_is_too_large() {
    let server = RedisServer::start_with(&["--proto-max-bulk-len", "1mb"]);
    let redis = Redis::new(server.url());
    for _ in 0..3 {
        let value = bytes::Bytes::from(vec![b'x'; 3 << 20]);
        // What one has learned does not help the others.
        let [single, many, new] = [(); 3].map(|()| Redis::new(server.url()));
        let write = Write { key: "a", value: value.clone(), ttl: None };
        for error in [
            redis.set("a", value.clone(), None).await.expect_err("too large"),
            single.set("a", value.clone(), None).await.expect_err("too large"),
            many.set_many(&[write]).await.expect_err("too large"),
            new.insert("a", value, None).await.expect_err("too large"),
        ] {
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
            assert!(error.to_string().contains("1048576"), "{error}");
        }
        redis.set("b", vec![b'x'; 1 << 20].into(), None).await.expect("it fits");
    }
}
