//! Clusters and sentinels whose servers announce addresses that cannot be reached from here.

use std::time::Duration;

use bentocache_driver::{BusDriver, ErrorKind, L2Driver, LockDriver, Topic, Write};
use bentocache_redis::{Redis, RedisBus, RedisLock};
use testservers::{FaultProxy, RedisCluster, RedisSentinel, wait_for};

use crate::common::{hears_again, in_time};

type Map = Vec<(String, String)>;

/// A cluster whose nodes announce other ports. Replicas would believe them.
fn with_other_ports() -> (RedisCluster, Map) {
    let cluster = RedisCluster::start(3);
    let announced = |at: usize| (at + 2).to_string();
    let mut map = Map::new();
    for (at, node) in cluster.nodes().iter().enumerate() {
        // Nobody listens there.
        node.config("cluster-announce-port", &announced(at));
        map.push((format!("127.0.0.1:{}", announced(at)), node.addr().to_string()));
    }
    announce(&cluster, |slots| {
        cluster.nodes().iter().all(|node| !slots.contains(&node.port().to_string()))
    });
    (cluster, map)
}

/// A cluster with replicas whose nodes announce unknown host names.
fn with_other_hosts() -> (RedisCluster, Map) {
    let cluster = RedisCluster::start_with(3, 1);
    let mut map = Map::new();
    for (at, node) in cluster.nodes().iter().enumerate() {
        let host = format!("node-{at}.invalid");
        node.config("cluster-announce-hostname", &host);
        node.config("cluster-preferred-endpoint-type", "hostname");
        map.push((format!("{host}:{}", node.port()), node.addr().to_string()));
    }
    announce(&cluster, |slots| {
        (0..cluster.nodes().len()).all(|at| slots.contains(&format!("node-{at}.invalid")))
    });
    (cluster, map)
}

fn announce(cluster: &RedisCluster, is_announced: impl Fn(&str) -> bool) {
    wait_for("the cluster to announce its addresses", || {
        cluster.nodes().iter().all(|node| is_announced(&node.cli(&["cluster", "slots"])))
    });
}

async fn works_with_a_map((cluster, map): (RedisCluster, Map)) {
    let error = Redis::cluster(cluster.urls()).connect().await.expect_err("unreachable");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("node_address_map"), "{error}");

    let redis = Redis::cluster([cluster.nodes()[0].url()])
        .node_address_map(map.clone())
        .timeout(Duration::from_secs(1));
    redis.connect().await.expect("a map");
    let keys: Vec<_> = (0..60).map(|at| format!("app:k{at}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let write = |key| Write { key, value: "1".into(), ttl: None };
    let writes: Vec<_> = keys.iter().copied().map(write).collect();
    redis.set_many(&writes).await.expect("set_many");
    for key in &keys {
        assert_eq!(redis.get(key).await.expect("get"), Some("1".into()), "{key}");
    }
    let lock = RedisLock::cluster(cluster.urls()).node_address_map(map.clone());
    assert!(lock.acquire("l", "token", Duration::from_secs(9)).await.expect("a lock"));
    let bus = RedisBus::cluster(cluster.urls()).node_address_map(map);
    let topic = Topic::new("any", "");
    let mut stream = bus.subscribe(topic).await.expect("a subscription");
    hears_again(&bus, topic, &mut stream).await;

    in_time(async || redis.clear("app:").await).await;
    assert!(redis.get_many(&keys).await.expect("get_many").iter().all(Option::is_none));
    if cluster.nodes().len() == 3 {
        return;
    }
    // Redirections, and a primary that is dead.
    cluster.failover(cluster.primary_of("app:k0"));
    in_time(async || redis.set_many(&writes).await).await;
    cluster.primary_of("app:k1").kill();
    in_time(async || redis.set_many(&writes).await).await;
    in_time(async || redis.clear("app:").await).await;
    hears_again(&bus, topic, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_announces_other_ports() {
    works_with_a_map(with_other_ports()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_announces_other_hosts() {
    works_with_a_map(with_other_hosts()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_sentinels_name() {
    let group = RedisSentinel::start();
    let proxy = FaultProxy::start(group.primary().addr()).await.expect("a proxy");
    let map = [(group.primary().addr().to_string(), proxy.addr().to_string())];
    let redis = Redis::sentinel([group.url()], RedisSentinel::NAME)
        .node_address_map(map)
        .ping_interval(Duration::from_millis(200));
    redis.set("a", "1".into(), None).await.expect("a connection");
    assert_eq!(proxy.accepted(), 1);
    // It stays there: the sentinel's answer is translated with the map.
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.set("a", "2".into(), None).await.expect("the connection");
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_with_a_wrong_address() {
    for redis in [Redis::cluster(["redis://127.0.0.1"]), Redis::new("redis://127.0.0.1")] {
        let redis = redis.node_address_map([("redis://10.0.0.1:6379", "127.0.0.1:7000")]);
        let error = redis.connect().await.expect_err("a wrong address");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("node_address_map has \"redis://10"), "{error}");
    }
}
