//! The bus over which the server reports changes.

use std::time::Duration;

use bentocache_driver::{BusDriver, BusEvent, ErrorKind, L2Driver, Topic};
use bentocache_redis::Redis;
use testservers::{RedisCluster, RedisServer};

use crate::common::next;

const SHORT: Duration = Duration::from_millis(200);

fn topic() -> Topic<'static> {
    Topic::new("unused", "bentocache:")
}

fn changed(key: &str) -> BusEvent {
    BusEvent::Changed(vec![key.to_owned()])
}

#[tokio::test(flavor = "multi_thread")]
async fn any_writer_is_reported() {
    let server = RedisServer::start();
    let tracking = Redis::new(server.url()).read_only_tracking();
    let mut stream = tracking.subscribe(topic()).await.unwrap();
    server.cli(&["set", "bentocache:by-hand", "1"]);
    assert_eq!(next(&mut stream).await, changed("bentocache:by-hand"));
    server.cli(&["set", "other:key", "1"]);
    server.cli(&["eval", "redis.call('set', 'bentocache:\\255', '1')", "0"]);
    server.cli(&["del", "bentocache:by-hand"]);
    assert_eq!(next(&mut stream).await, changed("bentocache:by-hand"));
    let redis = Redis::new(server.url());
    redis.set("bentocache:a", "1".into(), Some(Duration::from_millis(50))).await.unwrap();
    assert_eq!(next(&mut stream).await, changed("bentocache:a"));
    // Its end is a change too.
    assert_eq!(next(&mut stream).await, changed("bentocache:a"));
    server.cli(&["flushall"]);
    assert_eq!(next(&mut stream).await, BusEvent::AllChanged);
    tracking.disconnect().await.unwrap();
    assert!(std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await.is_none());
    assert_eq!(tracking.subscribe(topic()).await.err().unwrap().kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_other_processes_arrive_too() {
    let server = RedisServer::start();
    let cluster = RedisCluster::start(3);
    let redis = Redis::new(server.url());
    let kinds = [
        [
            Redis::new(server.url()).read_only_tracking(),
            Redis::new(server.url()).read_only_tracking(),
        ],
        [redis.tracking(), Redis::new(server.url()).read_only_tracking()],
        [
            Redis::cluster(cluster.urls()).read_only_tracking(),
            Redis::cluster(cluster.urls()).read_only_tracking(),
        ],
    ];
    for [sender, reader] in kinds {
        let mut stream = reader.subscribe(topic()).await.unwrap();
        sender.publish(topic(), "a change".into()).await.unwrap();
        assert_eq!(next(&mut stream).await, BusEvent::Message("a change".into()));
        for tracking in [sender, reader] {
            tracking.disconnect().await.unwrap();
            let error = tracking.publish(topic(), "late".into()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Closed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_without_the_prefix_of_the_client() {
    let server = RedisServer::start();
    let tracking = Redis::new(server.url()).prefix("app").read_only_tracking();
    let mut stream = tracking.subscribe(topic()).await.unwrap();
    let mut everything = tracking.subscribe(Topic::new("unused", "")).await.unwrap();
    server.cli(&["set", "bentocache:a", "theirs"]);
    server.cli(&["set", "app:bentocache:a", "1"]);
    server.cli(&["set", "app:other", "1"]);
    assert_eq!(next(&mut stream).await, changed("bentocache:a"));
    assert_eq!(next(&mut everything).await, changed("bentocache:a"));
    assert_eq!(next(&mut everything).await, changed("other"));
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_are_reported() {
    let server = RedisServer::start();
    let tracking =
        Redis::new(server.url()).ping_interval(SHORT).timeout(SHORT).connect_timeout(SHORT);
    let tracking = tracking.read_only_tracking();
    let mut stream = tracking.subscribe(topic()).await.unwrap();
    let mut breaks = async |cut: &dyn Fn(), heal: &dyn Fn()| {
        cut();
        assert_eq!(next(&mut stream).await, BusEvent::Lost);
        heal();
        assert_eq!(next(&mut stream).await, BusEvent::Restored);
        server.cli(&["set", "bentocache:a", "1"]);
        assert_eq!(next(&mut stream).await, changed("bentocache:a"));
    };
    breaks(&|| server.kill(), &|| server.restart()).await;
    breaks(&|| server.freeze(), &|| server.thaw()).await;
    // The connection is subscribed to the channel as well.
    let kill = ["client", "kill", "type", "pubsub"];
    breaks(&|| drop(server.cli(&kill)), &|| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_primary_of_a_cluster_is_watched() {
    let cluster = RedisCluster::start_with(3, 1);
    let tracking = Redis::cluster([cluster.nodes()[1].url()])
        .ping_interval(SHORT)
        .connect_timeout(SHORT * 2)
        .read_only_tracking();
    let redis = Redis::cluster(cluster.urls());
    let mut stream = tracking.subscribe(topic()).await.unwrap();
    let keys: Vec<_> = (0..20).map(|at| format!("bentocache:{at}")).collect();
    for key in &keys {
        redis.set(key, "1".into(), None).await.unwrap();
        assert_eq!(next(&mut stream).await, changed(key));
    }
    // The old primary lives on as a replica; the connections must move all the same.
    let old = cluster.primary_of(&keys[0]);
    cluster.failover(old);
    assert_eq!(next(&mut stream).await, BusEvent::Lost);
    while next(&mut stream).await != BusEvent::Restored {}
    for key in &keys {
        redis.set(key, "2".into(), None).await.unwrap();
        assert_eq!(next(&mut stream).await, changed(key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_driver_its_own_writes_are_not_reported() {
    let server = RedisServer::start();
    let redis = Redis::new(server.url()).prefix("app");
    let tracking = redis.tracking();
    let mut stream = tracking.subscribe(topic()).await.unwrap();
    let mut only_others = async || {
        redis.set("bentocache:ours", "1".into(), None).await.unwrap();
        redis.pull("bentocache:ours").await.unwrap();
        redis.delete(&["bentocache:ours"]).await.unwrap();
        server.cli(&["set", "app:bentocache:a", "1"]);
        assert_eq!(next(&mut stream).await, changed("bentocache:a"));
    };
    only_others().await;
    only_others().await;
    // The server attributes the writes of a script to another client. That costs one read.
    redis.set("bentocache:ours", "1".into(), None).await.unwrap();
    redis.update("bentocache:ours", b"1", "2".into(), None).await.unwrap();
    assert_eq!(next(&mut stream).await, changed("bentocache:ours"));
    // The connection that asked for the reports is lost: that is a gap, too.
    let clients = server.cli(&["client", "list"]);
    let writer =
        clients.lines().find(|client| client.contains(" redir=") && !client.contains("redir=-1"));
    let id = writer.unwrap().split(' ').next().unwrap().trim_start_matches("id=");
    assert_eq!(server.cli(&["client", "kill", "id", id]), "1");
    redis.get("any").await.unwrap();
    assert_eq!(next(&mut stream).await, BusEvent::Lost);
    assert_eq!(next(&mut stream).await, BusEvent::Restored);
    redis.set("bentocache:ours", "1".into(), None).await.unwrap();
    server.cli(&["set", "app:bentocache:a", "1"]);
    assert_eq!(next(&mut stream).await, changed("bentocache:a"));
}
