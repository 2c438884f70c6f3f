//! An address that is moved to another server while the former one lives on.

use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, L2Driver, Topic};
use bentocache_redis::{Redis, RedisBus};
use testservers::{FaultProxy, RedisServer};

use crate::common::{hears_again, next};

/// A heartbeat; checks come after three of them.
const OFTEN: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn connections_follow_the_address() {
    let [former, present] = [(); 2].map(|()| RedisServer::start());
    let proxy = FaultProxy::start(former.addr()).await.expect("a proxy");
    let url = format!("redis://{}", proxy.addr());
    let redis = Redis::new(&url).ping_interval(OFTEN);
    let bus = RedisBus::new(&url).ping_interval(OFTEN);
    let topic = Topic::new("any", "");
    let mut messages = bus.subscribe(topic).await.expect("a subscription");
    redis.set("a", "1".into(), None).await.expect("set");
    hears_again(&bus, topic, &mut messages).await;
    assert_eq!(former.cli(&["get", "a"]), "1");

    proxy.lead_to(present.addr());
    let start = Instant::now();
    while present.cli(&["get", "a"]) != "2" {
        let _ = redis.set("a", "2".into(), None).await;
        assert!(start.elapsed() < PATIENCE, "writes go to the former server");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(next(&mut messages).await, BusEvent::Lost);
    assert_eq!(next(&mut messages).await, BusEvent::Restored);
    hears_again(&bus, topic, &mut messages).await;
    // No client is left at the former server.
    let start = Instant::now();
    while former.cli(&["info", "clients"]).lines().any(|line| {
        // The asking program is one client.
        line.strip_prefix("connected_clients:").is_some_and(|count| count.trim() != "1")
    }) {
        assert!(start.elapsed() < PATIENCE, "a connection to the former server is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// With the heartbeats of the defaults.
#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_followed_within_five_seconds() {
    const WITHIN: Duration = Duration::from_secs(5);
    let [former, present] = [(); 2].map(|()| RedisServer::start());
    let proxy = FaultProxy::start(former.addr()).await.expect("a proxy");
    let url = format!("redis://{}", proxy.addr());
    let (redis, bus) = (Redis::new(&url), RedisBus::new(&url));
    let topic = Topic::new("any", "");
    let mut messages = bus.subscribe(topic).await.expect("a subscription");
    redis.set("a", "1".into(), None).await.expect("set");
    proxy.lead_to(present.addr());
    let start = Instant::now();
    assert_eq!(next(&mut messages).await, BusEvent::Lost);
    assert_eq!(next(&mut messages).await, BusEvent::Restored);
    while present.cli(&["get", "a"]) != "2" {
        let _ = redis.set("a", "2".into(), None).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(start.elapsed() < WITHIN, "writes go to the former server");
    }
    assert!(start.elapsed() < WITHIN, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_the_same_server_stays() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
    let redis = Redis::new(format!("redis://{}", proxy.addr())).ping_interval(OFTEN);
    redis.set("a", "1".into(), None).await.expect("set");
    let list = || server.cli(&["client", "list"]);
    // The program that asks uses the socket.
    let is_ours = |line: &&str| line.contains("laddr=127.0.0.1");
    let id =
        list().lines().find(is_ours).and_then(|line| line.split(' ').next().map(str::to_owned));
    let id = id.expect("a connection");
    let start = Instant::now();
    while proxy.accepted() < 4 {
        assert!(start.elapsed() < PATIENCE, "it looks at the address now and then");
        tokio::time::sleep(OFTEN).await;
    }
    redis.set("a", "2".into(), None).await.expect("set");
    assert!(list().contains(&id), "{id} was replaced");
}
