//! The driver's link reports: failing calls, and promptly their recovery.

use std::time::{Duration, Instant};

use bentocache_driver::{ErrorKind, L2Driver, Link, LinkStream};
use bentocache_redis::Redis;
use testservers::{FaultProxy, RedisCluster, RedisServer};

use crate::common::{self, next};

/// The time limit for the report after the repair: a check every half a second, and a slow machine.
const PROMPTLY: Duration = Duration::from_millis(1_500);
/// The time limit for noticing an open but silent link.
const NOTICED: Duration = Duration::from_secs(3);

async fn linked(redis: &Redis) -> LinkStream {
    redis.connect().await.expect("a connection");
    let mut link = redis.link().expect("a link");
    assert_eq!(next(&mut link).await, Link::Restored);
    link
}

/// Waits for the report after the repair that was just made.
async fn restored_promptly(link: &mut LinkStream) {
    let start = Instant::now();
    assert_eq!(next(link).await, Link::Restored);
    assert!(start.elapsed() < PROMPTLY, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_that_has_room_again_is_reported() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    let mut link = linked(&redis).await;
    server.config("maxmemory", "1");
    assert_eq!(redis.set("a", "1".into(), None).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(next(&mut link).await, Link::Lost);
    // Reads succeed, and say nothing about writes.
    for _ in 0..10 {
        redis.get("a").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.config("maxmemory", "0");
    restored_promptly(&mut link).await;
    redis.set("a", "1".into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_look_at_a_refused_write_changes_nothing() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    let mut link = linked(&redis).await;
    redis.set("there", "value".into(), Some(Duration::from_secs(60))).await.unwrap();
    for key in ["there", "absent"] {
        server.config("maxmemory", "1");
        redis.set(key, "other".into(), None).await.unwrap_err();
        assert_eq!(next(&mut link).await, Link::Lost);
        server.config("maxmemory", "0");
        restored_promptly(&mut link).await;
    }
    assert_eq!(redis.get("there").await.unwrap(), Some("value".into()));
    assert!(server.cli(&["ttl", "there"]).parse::<i64>().unwrap() > 0);
    assert_eq!(server.cli(&["exists", "absent"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_come_back_are_reported() {
    let server = RedisServer::start();
    server.cli(&["acl", "setuser", "app", "on", ">pw", "~*", "+@all"]);
    let redis = Redis::new(server.url().replace("redis://", "redis://app:pw@"));
    let mut link = linked(&redis).await;
    server.cli(&["acl", "setuser", "app", "-@write"]);
    assert_eq!(redis.set("a", "1".into(), None).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(next(&mut link).await, Link::Lost);
    server.cli(&["acl", "setuser", "app", "+@all"]);
    restored_promptly(&mut link).await;
    redis.set("a", "1".into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_that_is_taken_back_is_reported() {
    let server = RedisServer::start();
    server.cli(&["acl", "setuser", "app", "on", ">pw", "~*", "+@all"]);
    let redis = Redis::new(server.url().replace("redis://", "redis://app:pw@"));
    let mut link = linked(&redis).await;
    server.cli(&["acl", "setuser", "app", "resetpass", ">other"]);
    server.cli(&["client", "kill", "user", "app"]);
    assert_eq!(next(&mut link).await, Link::Lost);
    assert_eq!(redis.set("a", "1".into(), None).await.unwrap_err().kind(), ErrorKind::Denied);
    server.cli(&["acl", "setuser", "app", "resetpass", ">pw"]);
    restored_promptly(&mut link).await;
    redis.set("a", "1".into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_answer_is_reported_when_the_server_answers_again() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url());
    let mut link = linked(&redis).await;
    server.freeze();
    let limit = Duration::from_millis(300);
    tokio::time::timeout(limit, redis.get("a")).await.unwrap_err();
    assert_eq!(next(&mut link).await, Link::Lost);
    server.thaw();
    restored_promptly(&mut link).await;
    redis.get("a").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_refused_is_reported() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let redis = Redis::new(format!("redis://{}", proxy.addr()));
    let mut link = linked(&redis).await;
    proxy.refuse().await.unwrap();
    assert_eq!(next(&mut link).await, Link::Lost);
    // Long enough for the pauses between attempts to have grown.
    tokio::time::sleep(Duration::from_secs(4)).await;
    proxy.pass().await.unwrap();
    restored_promptly(&mut link).await;
    redis.set("a", "1".into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_link_is_noticed_without_a_call() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let redis = Redis::new(format!("redis://{}", proxy.addr()));
    let mut link = linked(&redis).await;
    let start = Instant::now();
    proxy.freeze();
    assert_eq!(next(&mut link).await, Link::Lost);
    assert!(start.elapsed() < NOTICED, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_back_is_reported() {
    let cluster = RedisCluster::start(3);
    let redis = Redis::cluster(cluster.urls()).timeout(Duration::from_secs(1));
    let mut link = linked(&redis).await;
    redis.set("a", "1".into(), None).await.unwrap();
    let shard = cluster.primary_of("a");
    shard.kill();
    redis.set("a", "1".into(), None).await.unwrap_err();
    assert_eq!(next(&mut link).await, Link::Lost);
    shard.restart();
    while next(&mut link).await != Link::Restored {}
    common::in_time(async || redis.set("a", "1".into(), None).await).await;
}
