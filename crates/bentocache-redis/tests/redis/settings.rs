//! Invalid settings fail the build, with advice.

use bentocache_driver::{BusDriver, ErrorKind, L2Driver, Topic};
use bentocache_redis::{Redis, RedisBus};
use testservers::{RedisCluster, RedisSentinel, RedisServer, wait_for};

use crate::common;

/// Asserts that the cache could not be built, and that later calls could be repaired.
async fn refused(redis: Redis, advice: &str) {
    let error = redis.connect().await.expect_err("a wrong setting");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains(advice), "{error}");
    let error = redis.get("a").await.expect_err("a wrong setting");
    assert!(error.is_transient(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_as_a_server() {
    let cluster = RedisCluster::start(3);
    refused(Redis::new(cluster.nodes()[0].url()), "Redis::cluster").await;
    // Messages go through every node.
    let bus = RedisBus::new(cluster.nodes()[0].url());
    let topic = Topic::new("any", "");
    let mut stream = bus.subscribe(topic).await.expect("a subscription");
    common::hears_again(&bus, topic, &mut stream).await;
    let tracking = Redis::cluster(cluster.urls()).tracking().subscribe(topic).await;
    assert_eq!(tracking.err().expect("an error").kind(), ErrorKind::Config);
    let redis = Redis::cluster(cluster.urls());
    drop(redis.tracking());
    let error = redis.connect().await.expect_err("a wrong setting");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("RedisBus"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_as_a_cluster() {
    let server = RedisServer::start();
    refused(Redis::cluster([server.url()]), "Redis::new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels() {
    let group = RedisSentinel::start();
    refused(Redis::sentinel([group.url()], "nobody"), "no primary of that name").await;
    let server = group.primary().url();
    let name = RedisSentinel::NAME;
    refused(Redis::sentinel([server], name), "not that of a sentinel").await;
    refused(Redis::new(group.url()), "Redis::sentinel").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_with_a_password() {
    let group = RedisSentinel::start();
    let secret = ["acl", "setuser", "default", "resetpass", ">secret"];
    assert_eq!(group.sentinel().cli(&secret), "OK");
    let redis = || Redis::sentinel([group.url()], RedisSentinel::NAME);
    refused(redis(), "sentinel_login").await;
    refused(redis().sentinel_login(None, "hunter2"), "sentinel_login").await;
    redis().sentinel_login(None, "secret").connect().await.expect("the right login");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_nobody_can_reach() {
    let cluster = RedisCluster::start(3);
    for (at, node) in cluster.nodes().iter().enumerate() {
        // Nothing listens there.
        node.config("cluster-announce-port", &(at + 2).to_string());
    }
    wait_for("the cluster to announce its addresses", || {
        let slots = cluster.nodes().iter().map(|node| node.cli(&["cluster", "slots"]));
        slots.into_iter().all(|slots| {
            cluster.nodes().iter().all(|node| !slots.contains(&node.port().to_string()))
        })
    });
    refused(Redis::cluster(cluster.urls()), "node_address_map").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_kind() {
    use tokio::io::AsyncWriteExt;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    refused(Redis::new(url), "Redis server").await;
}
