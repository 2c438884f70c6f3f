//! A server that dies, hangs, refuses or comes later.

use std::time::{Duration, Instant};

use bentocache::{BentoCache, Memory, Store};
use bentocache_driver::{ErrorKind, L2Driver, Link};
use bentocache_redis::{Redis, RedisBus, RedisLock};
use testservers::{FaultProxy, RedisServer};

use crate::common::{in_time, next};

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_costs_no_time_and_comes_back() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    redis.set("a", "1".into(), None).await.unwrap();
    let mut link = redis.link().expect("a single server has a link");
    assert_eq!(next(&mut link).await, Link::Restored);
    server.kill();
    for _ in 0..10 {
        let start = Instant::now();
        let error = redis.get("a").await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert_eq!(next(&mut link).await, Link::Lost);
    server.restart();
    assert_eq!(next(&mut link).await, Link::Restored);
    redis.set("a", "2".into(), None).await.unwrap();
    assert_eq!(redis.get("a").await.unwrap(), Some("2".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_noticed_without_a_call() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url()).ping_interval(Duration::from_millis(50));
    redis.connect().await.unwrap();
    let mut link = redis.link().unwrap();
    assert_eq!(next(&mut link).await, Link::Restored);
    server.kill();
    assert_eq!(next(&mut link).await, Link::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_come_later() {
    let server = RedisServer::start();
    server.kill();
    let redis = Redis::new(server.url());
    let start = Instant::now();
    let error = redis.connect().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(redis.get("a").await.is_err());
    server.restart();
    in_time(async || redis.set("a", "1".into(), None).await).await;
    assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_are_not_noticed() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    redis.set("a", "1".into(), None).await.unwrap();
    for _ in 0..20 {
        server.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
        assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
        redis.set("a", "1".into(), None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_a_timeout() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url()).timeout(SHORT);
    redis.set("a", "1".into(), None).await.unwrap();
    server.freeze();
    let start = Instant::now();
    let error = redis.get("a").await.unwrap_err();
    assert!(start.elapsed() < SHORT * 3, "{:?}", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_transient());
    server.thaw();
    assert_eq!(in_time(async || redis.get("a").await).await, Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_but_open_connection_is_replaced() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let redis =
        Redis::new(format!("redis://{}", proxy.addr())).timeout(SHORT).connect_timeout(SHORT);
    redis.set("a", "1".into(), None).await.unwrap();
    let mut link = redis.link().unwrap();
    assert_eq!(next(&mut link).await, Link::Restored);
    proxy.freeze();
    assert_eq!(redis.get("a").await.unwrap_err().kind(), ErrorKind::Timeout);
    // By a ping, at once: the interval of the pings is seconds.
    assert_eq!(next(&mut link).await, Link::Lost);
    let start = Instant::now();
    while proxy.accepted() == 1 {
        assert!(start.elapsed() < SHORT * 10, "it is not replaced");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.pass().await.unwrap();
    assert_eq!(next(&mut link).await, Link::Restored);
    assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so_and_still_deletes() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    redis.set("a", "1".into(), None).await.unwrap();
    server.config("maxmemory", "1");
    let error = redis.set("b", "secret".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    let error = redis.update("a", b"1", "2".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    redis.set("c", "1".into(), None).await.unwrap_err();
    assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
    assert_eq!(redis.delete(&["a"]).await.unwrap(), 1);
    server.config("maxmemory", "0");
    redis.set("b", "2".into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_used_until_it_is_promoted() {
    let primary = RedisServer::start();
    let replica = RedisServer::replica_of(&primary);
    let redis = Redis::new(replica.url());
    let error = redis.set("a", "1".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("primary"), "{error}");
    // What it holds may be old: nobody must read it.
    assert_eq!(redis.get("a").await.unwrap_err().kind(), ErrorKind::Denied);
    replica.cli(&["replicaof", "no", "one"]);
    in_time(async || redis.set("a", "1".into(), None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_urls_are_settings() {
    for url in [
        "",
        "localhost:6379",
        "http://:hunter2@localhost",
        "redis://user:hunter2@localhost:port",
        "redis://user:hunter2@localhost:6379/hunter2",
        "redis://:hunter2@localhost/?protocol=hunter2",
        "redis://",
    ] {
        let redis = Redis::new(url);
        for error in [redis.connect().await.unwrap_err(), redis.get("a").await.unwrap_err()] {
            let text = format!("{error} {error:?}");
            assert_eq!(error.kind(), ErrorKind::Config, "{url}: {text}");
            assert!(text.contains("redis://user:password@host"), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
        assert!(redis.link().is_none());
        assert!(!format!("{redis:?}").contains("hunter2"));
    }
    let none: [&str; 0] = [];
    assert_eq!(Redis::cluster(none).connect().await.unwrap_err().kind(), ErrorKind::Config);
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn without_tls_the_error_names_the_feature() {
    let error = Redis::new("rediss://:hunter2@localhost").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("feature `redis-tls`"), "{error}");
}

/// Why a cache cannot be built.
async fn build(store: Store) -> String {
    let built = BentoCache::builder().store("main", store).build().await;
    built.expect_err("a setting that an operator has to repair").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_rights() {
    let server = RedisServer::start_with(&["--requirepass", "p@ss/word"]);
    let login = |login: &str| server.url().replace("redis://", &format!("redis://{login}"));
    let redis = Redis::new(login(":p%40ss%2Fword@"));
    redis.connect().await.unwrap();
    redis.set("a", "1".into(), None).await.unwrap();
    for wrong in ["", ":hunter2@", "nobody:hunter2@"] {
        let redis = Redis::new(login(wrong));
        let error = redis.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{wrong}: {error}");
        let refused = build(Store::new().l1(Memory::new()).bus(RedisBus::new(login(wrong)))).await;
        assert!(refused.contains("password"), "{refused}");
        let later = redis.get("a").await.unwrap_err();
        assert_eq!(later.kind(), ErrorKind::Denied, "{wrong}: {later}");
        assert!(error.to_string().contains("password"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let rules =
        ["acl", "setuser", "reader", "on", ">pw", "~a*", "+get", "+ping", "+client", "+select"];
    let rules: Vec<_> = ["-a", "p@ss/word"].into_iter().chain(rules).collect();
    server.cli(&rules);
    let redis = Redis::new(login("reader:pw@"));
    assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
    let refused = build(Store::new().l2(Redis::new(login("reader:pw@")))).await;
    assert!(refused.contains("ACL SETUSER") && refused.contains("'set'"), "{refused}");
    let bus = RedisBus::new(login("reader:pw@"));
    let refused = build(Store::new().l1(Memory::new()).bus(bus)).await;
    assert!(refused.contains("ACL SETUSER"), "{refused}");
    let error = redis.set("a", "2".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("ACL SETUSER"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_databases_and_given_connections() {
    use bentocache_driver::LockDriver;
    let server = RedisServer::start();
    let socket = Redis::new(format!("unix://{}?db=3", server.socket().display()));
    socket.set("a", "1".into(), None).await.unwrap();
    assert_eq!(server.cli(&["-n", "3", "get", "a"]), "1");
    let numbered = Redis::new(format!("{}/3", server.url()));
    assert_eq!(numbered.get("a").await.unwrap(), Some("1".into()));

    let client = redis::Client::open(format!("{}/3", server.url())).unwrap();
    let multiplexed = client.get_multiplexed_async_connection().await.unwrap();
    let manager = client.get_connection_manager().await.unwrap();
    let lock = RedisLock::from_manager(manager.clone());
    for redis in [
        Redis::from_client(client),
        Redis::from_multiplexed(multiplexed),
        Redis::from_manager(manager),
    ] {
        redis.connect().await.unwrap();
        assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
        assert_eq!(redis.get_many(&["b", "a"]).await.unwrap(), [None, Some("1".into())]);
        redis.disconnect().await.unwrap();
        assert_eq!(redis.get("a").await.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert!(lock.acquire("a", "token", Duration::from_secs(9)).await.unwrap());
    // A lock is no key of the cache.
    assert_eq!(numbered.get("a:lock").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_connection_gets_advice() {
    let server = RedisServer::start_with(&["--maxclients", "1"]);
    let first = Redis::new(server.url());
    first.connect().await.unwrap();
    let second = Redis::new(server.url());
    let error = second.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("maxclients"), "{error}");
    assert!(error.to_string().contains("from_manager"), "{error}");
    first.disconnect().await.unwrap();
    in_time(async || second.set("a", "1".into(), None).await).await;
}
