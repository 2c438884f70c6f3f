//! Servers that are alive, but that other clients do not use any more.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache_driver::{
    BusDriver, BusEvent, BusStream, ErrorKind, L2Driver, Link, LockDriver, Topic,
};
use bentocache_redis::{Redis, RedisBus, RedisLock};
use testservers::{RedisCluster, RedisSentinel, RedisServer};

use crate::common::{hears_again, in_time, next};

/// The time limit for leaving such a server: two checks, and a slow machine.
const SOON: Duration = Duration::from_secs(4);

/// A topic with a channel of this process: others may use the same server.
fn topic() -> Topic<'static> {
    static CHANNEL: LazyLock<String> =
        LazyLock::new(|| bentocache_testkit::unique("bentocache.notifications:test"));
    Topic::new(&CHANNEL, "app:")
}

/// Waits for the report of a loss that began just now.
async fn lost_soon(stream: &mut BusStream) {
    let start = Instant::now();
    assert_eq!(next(stream).await, BusEvent::Lost);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_leaves_a_primary_that_was_demoted() {
    let server = RedisServer::start();
    let other = RedisServer::start();
    let (redis, lock) = (Redis::new(server.url()), RedisLock::new(server.url()));
    let (bus, tracking) =
        (RedisBus::new(server.url()), Redis::new(server.url()).read_only_tracking());
    redis.set("a", "1".into(), None).await.unwrap();
    assert!(lock.acquire("a", "token", Duration::from_secs(9)).await.unwrap());
    bus.publish(topic(), "a message".into()).await.unwrap();
    let mut link = redis.link().unwrap();
    assert_eq!(next(&mut link).await, Link::Restored);
    let mut messages = bus.subscribe(topic()).await.unwrap();
    let mut changes = tracking.subscribe(topic()).await.unwrap();

    server.cli(&["replicaof", "127.0.0.1", &other.port().to_string()]);
    // Without calls: the heartbeat finds the role.
    lost_soon(&mut messages).await;
    lost_soon(&mut changes).await;
    assert_eq!(next(&mut link).await, Link::Lost);
    for error in [
        redis.get("a").await.unwrap_err(),
        redis.set("a", "1".into(), None).await.unwrap_err(),
        lock.acquire("b", "token", Duration::from_secs(9)).await.unwrap_err(),
        bus.publish(topic(), "to nobody".into()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("address of the primary"), "{error}");
    }

    server.cli(&["replicaof", "no", "one"]);
    for stream in [&mut messages, &mut changes] {
        assert_eq!(next(stream).await, BusEvent::Restored);
    }
    assert_eq!(next(&mut link).await, Link::Restored);
    redis.set("a", "1".into(), None).await.unwrap();
    hears_again(&bus, topic(), &mut messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_a_replica_fails_the_build() {
    let primary = RedisServer::start();
    let replica = RedisServer::replica_of(&primary);
    let error = Redis::new(replica.url()).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("address of the primary"), "{error}");
    assert!(error.to_string().contains(&replica.port().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_follows_the_sentinels_when_the_old_primary_lives_on() {
    let group = RedisSentinel::start();
    let bus = RedisBus::sentinel([group.url()], RedisSentinel::NAME);
    let redis = Redis::sentinel([group.url()], RedisSentinel::NAME);
    redis.set("a", "1".into(), None).await.unwrap();
    let mut stream = bus.subscribe(topic()).await.unwrap();
    group.switch_over();
    lost_soon(&mut stream).await;
    assert_eq!(next(&mut stream).await, BusEvent::Restored);
    // Received from the new server.
    let published = group.primary().cli(&["publish", topic().channel, "by hand"]);
    assert_eq!(published, "1");
    assert_eq!(next(&mut stream).await, BusEvent::Message("by hand".into()));
    in_time(async || redis.set("a", "2".into(), None).await).await;
    assert_eq!(group.primary().cli(&["get", "a"]), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_the_sentinels_have_given_up_is_left() {
    let group = RedisSentinel::start();
    let bus = RedisBus::sentinel([group.url()], RedisSentinel::NAME);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let old = group.primary().port();
    let new = group.servers().iter().find(|server| server.port() != old).unwrap();
    // The old primary does not learn of it, as behind a broken network, and still acts as a
    // primary.
    let (sentinel, name) = (group.sentinel(), RedisSentinel::NAME);
    sentinel.cli(&["sentinel", "remove", name]);
    new.cli(&["replicaof", "no", "one"]);
    sentinel.cli(&["sentinel", "monitor", name, "127.0.0.1", &new.port().to_string(), "1"]);
    lost_soon(&mut stream).await;
    assert_eq!(next(&mut stream).await, BusEvent::Restored);
    assert_eq!(new.cli(&["publish", topic().channel, "by hand"]), "1");
    assert_eq!(next(&mut stream).await, BusEvent::Message("by hand".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_taken_out_of_its_cluster_is_left() {
    let cluster = RedisCluster::start_with(3, 1);
    // A replica: it has no slots, so that it can be removed.
    let node = cluster.nodes().last().unwrap();
    let bus = RedisBus::cluster([node.url()]);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    hears_again(&bus, topic(), &mut stream).await;
    cluster.remove(node);
    lost_soon(&mut stream).await;
    assert_eq!(next(&mut stream).await, BusEvent::Restored);
    let published = cluster.nodes()[0].cli(&["publish", topic().channel, "by hand"]);
    drop(published);
    assert_eq!(next(&mut stream).await, BusEvent::Message("by hand".into()));
    // And the connection that publishes is at a node of the cluster, too.
    let start = Instant::now();
    let others = RedisBus::cluster(cluster.urls()[..3].to_vec());
    let mut heard = others.subscribe(topic()).await.unwrap();
    loop {
        in_time(async || bus.publish(topic(), "from it".into()).await).await;
        let message = tokio::time::timeout(Duration::from_millis(200), next(&mut heard)).await;
        if message.is_ok_and(|event| event == BusEvent::Message("from it".into())) {
            return;
        }
        assert!(start.elapsed() < SOON, "nobody hears it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_leave_a_primary_that_was_taken_out_of_its_cluster() {
    let cluster = RedisCluster::start(3);
    let removed = cluster.nodes().last().unwrap();
    // The removed node is the first address that is tried.
    let mut urls = cluster.urls();
    urls.reverse();
    let redis = Redis::cluster(urls);
    let keys: Vec<_> = (0..30).map(|at| format!("k{at}")).collect();
    for key in &keys {
        redis.set(key, "1".into(), None).await.unwrap();
    }
    cluster.move_slots(removed, &cluster.nodes()[0]);
    cluster.remove(removed);
    let start = Instant::now();
    for key in &keys {
        in_time(async || redis.set(key, "2".into(), None).await).await;
    }
    assert!(start.elapsed() < SOON * 2, "{:?}", start.elapsed());
    for key in &keys {
        assert_eq!(redis.get(key).await.unwrap(), Some("2".into()));
    }
    assert!(redis.get_many(&["k1", "k2"]).await.is_ok());
    redis.clear("k").await.unwrap();
    assert_eq!(removed.cli(&["dbsize"]), "0");
}
