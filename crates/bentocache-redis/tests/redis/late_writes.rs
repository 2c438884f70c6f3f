//! Writes that were given up and are still on their way.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Memory, Store};
use bentocache_driver::{BusDriver, L2Driver, Write};
use bentocache_redis::{Redis, RedisBus};
use testservers::{FaultProxy, RedisServer};

use crate::common::in_time;

/// As the store bounds its calls.
const LIMIT: Duration = Duration::from_millis(400);

/// Asserts that the key keeps that value while late bytes arrive.
async fn keeps(redis: &Redis, key: &str, value: &'static str) {
    for _ in 0..50 {
        assert_eq!(redis.get(key).await.unwrap(), Some(value.into()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_given_up_is_refused_when_it_arrives() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let one = Redis::new(format!("redis://{}", proxy.addr()));
    let two = Redis::new(server.url());
    // A single write, and some that travel together.
    for count in [1, 40] {
        one.set("a", "0".into(), None).await.unwrap();
        let accepted = proxy.accepted();
        proxy.stall();
        let sets =
            (0..count).map(|_| tokio::time::timeout(LIMIT, one.set("a", "old".into(), None)));
        for given_up in futures_util::future::join_all(sets).await {
            given_up.unwrap_err();
        }
        // The next call goes over another connection, once the old one is dead.
        in_time(async || one.get("a").await).await;
        assert!(proxy.accepted() > accepted);
        two.set("a", "new".into(), None).await.unwrap();
        proxy.pass().await.unwrap();
        keeps(&two, "a", "new").await;
        assert_eq!(one.get("a").await.unwrap(), Some("new".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_way_on_a_connection_that_is_replaced_is_refused() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let one = Redis::new(format!("redis://{}", proxy.addr()));
    let two = Redis::new(server.url());
    one.set("a", "0".into(), None).await.unwrap();
    let accepted = proxy.accepted();
    proxy.stall();
    // Its caller is patient: a ping finds that the connection is dead.
    let patient = tokio::spawn(async move { one.set("a", "old".into(), None).await });
    let before = Instant::now();
    while proxy.accepted() == accepted {
        assert!(before.elapsed() < Duration::from_secs(5), "it is not replaced");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    patient.await.unwrap().unwrap_err();
    two.set("a", "new".into(), None).await.unwrap();
    proxy.pass().await.unwrap();
    keeps(&two, "a", "new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_write_costs_no_connection() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let redis = Redis::new(format!("redis://{}", proxy.addr()));
    redis.connect().await.unwrap();
    proxy.delay(Duration::from_millis(20));
    for _ in 0..20 {
        let limit = Duration::from_millis(10);
        tokio::time::timeout(limit, redis.set("a", "1".into(), None)).await.unwrap_err();
    }
    redis.get("a").await.unwrap();
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_end_connections_it_goes_on() {
    let server = RedisServer::start();
    server.cli(&["acl", "setuser", "app", "on", ">pw", "~*", "&*", "+@all", "-client|kill"]);
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let redis = Redis::new(format!("redis://app:pw@{}", proxy.addr()));
    redis.connect().await.unwrap();
    proxy.stall();
    tokio::time::timeout(LIMIT, redis.set("a", "old".into(), None)).await.unwrap_err();
    in_time(async || redis.set("a", "1".into(), None).await).await;
    assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_after_its_deadline_is_refused_by_the_server() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let one = Redis::new(url).prefix("app").write_deadline(LIMIT);
    let two = Redis::new(server.url()).prefix("app");
    one.set("a", "0".into(), Some(Duration::from_secs(60))).await.unwrap();
    assert_eq!(two.get("a").await.unwrap(), Some("0".into()));
    assert!(server.cli(&["ttl", "app:a"]).parse::<i64>().unwrap() > 50);
    assert!(!one.insert("a", "1".into(), None).await.unwrap());
    // Nothing gets through, so that no connection can be ended.
    proxy.freeze();
    let write = Write { key: "b", value: "old".into(), ttl: None };
    let (set, many) = (one.set("a", "old".into(), None), [write]);
    let both = async { tokio::join!(set, one.set_many(&many)) };
    tokio::time::timeout(LIMIT, both).await.unwrap_err();
    for key in ["a", "b"] {
        two.set(key, "new".into(), None).await.unwrap();
    }
    // What remains: until the deadline, the write would win.
    tokio::time::sleep(LIMIT / 4).await;
    proxy.pass().await.unwrap();
    keeps(&two, "a", "new").await;
    keeps(&two, "b", "new").await;
    in_time(async || one.set("a", "newer".into(), None).await).await;
    assert_eq!(two.get("a").await.unwrap(), Some("newer".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_the_script_learns_it_again() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url()).write_deadline(LIMIT);
    redis.set("a", "1".into(), None).await.unwrap();
    server.cli(&["script", "flush"]);
    let start = Instant::now();
    in_time(async || redis.set("a", "2".into(), None).await).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // As does one that was restarted.
    server.kill();
    server.restart();
    in_time(async || redis.set("a", "3".into(), None).await).await;
}

#[tokio::test]
async fn deadlines_that_cannot_work_are_settings() {
    let server = RedisServer::start();
    let fenced = Redis::new(server.url()).write_deadline(LIMIT);
    let tracking = fenced.tracking();
    let cluster = Redis::cluster([server.url()]).write_deadline(LIMIT);
    let topic = bentocache_driver::Topic::new("any", "");
    for error in [
        fenced.connect().await.unwrap_err(),
        cluster.connect().await.unwrap_err(),
        tracking.subscribe(topic).await.err().unwrap(),
    ] {
        assert_eq!(error.kind(), bentocache_driver::ErrorKind::Config, "{error}");
    }
}

/// A cache whose calls of L2 go through the proxy, and are bounded as usual.
async fn node(proxy: &FaultProxy, has_deadline: bool) -> BentoCache {
    let url = format!("redis://{}", proxy.addr());
    let redis = Redis::new(&url);
    let redis = if has_deadline { redis.write_deadline(LIMIT) } else { redis };
    let store = Store::new().l1(Memory::new()).l2(redis).bus(RedisBus::new(url));
    let builder = BentoCache::builder().l2_timeout(None, LIMIT);
    builder.store("main", store).build().await.unwrap()
}

/// The numbers of the connections to the server.
fn connections(server: &RedisServer) -> HashSet<String> {
    let list = server.cli(&["client", "list", "type", "normal"]);
    list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

async fn all_nodes_agree_on_the_newer_value(has_deadline: bool) {
    let server = RedisServer::start();
    let held = FaultProxy::start(server.addr()).await.unwrap();
    let open = FaultProxy::start(server.addr()).await.unwrap();
    let one = node(&held, has_deadline).await;
    let (two, three) = (node(&open, has_deadline).await, node(&open, has_deadline).await);
    one.set("a", "first".to_owned()).await.unwrap();
    for round in 0..3 {
        let before = connections(&server);
        let is_ended = || before.difference(&connections(&server)).count() > 1;
        held.stall();
        one.set("a", format!("old {round}")).await.unwrap();
        // With a deadline at once; otherwise when the connection of the write has been ended. One
        // of the others is that of the command itself.
        while !has_deadline && !is_ended() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let new = format!("new {round}");
        two.set("a", new.clone()).await.unwrap();
        held.pass().await.unwrap();
        let start = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut values = Vec::new();
            for node in [&one, &two, &three] {
                values.push(node.get::<String>("a").await.unwrap());
            }
            if values.iter().all(|value| value.as_deref() == Some(&new)) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{values:?}, not {new:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_agree_on_the_newer_value_once_the_old_connection_is_ended() {
    all_nodes_agree_on_the_newer_value(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_agree_on_the_newer_value_with_a_deadline() {
    all_nodes_agree_on_the_newer_value(true).await;
}
