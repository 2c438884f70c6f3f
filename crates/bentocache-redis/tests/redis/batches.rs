//! Many keys in one call.

use std::time::Duration;

use bentocache_driver::{L2Driver, Write};
use bentocache_redis::Redis;
use testservers::{RedisCluster, RedisServer};

use crate::common;

const MANY: usize = 20_000;

fn keys(prefix: &str) -> Vec<String> {
    (0..MANY).map(|at| format!("{prefix}:{at}")).collect()
}

/// The number of socket reads of the nodes.
fn reads(cluster: &RedisCluster) -> u64 {
    let of_node = |node: &RedisServer| {
        let stats = node.cli(&["info", "stats"]);
        let reads = stats.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        reads.expect("a count").trim().parse::<u64>().expect("a number")
    };
    cluster.nodes().iter().map(of_node).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_takes_many_keys_in_few_round_trips() {
    // Not the shared one, since the reads of other tests would count.
    let cluster = RedisCluster::start(3);
    few_round_trips(Redis::cluster(cluster.urls()).prefix("batches"), &cluster).await;
    let client = redis::cluster::ClusterClient::new(cluster.urls()).expect("a client");
    let given = client.get_async_connection().await.expect("a connection");
    few_round_trips(Redis::from_cluster(given).prefix("given"), &cluster).await;
}

async fn few_round_trips(redis: Redis, cluster: &RedisCluster) {
    redis.connect().await.expect("a cluster");
    let keys = keys("k");
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let value = |key: &&str| (*key).to_owned().into();
    let writes: Vec<_> =
        keys.iter().map(|key| Write { key, value: value(key), ttl: None }).collect();
    let before = reads(cluster);
    redis.set_many(&writes).await.expect("set_many");
    let values = redis.get_many(&keys).await.expect("get_many");
    for (key, value) in keys.iter().zip(values) {
        assert_eq!(value.as_deref(), Some(key.as_bytes()));
    }
    assert_eq!(redis.delete(&keys).await.expect("delete"), MANY as u64);
    let reads = reads(cluster) - before;
    assert!(reads < MANY as u64 / 10, "{reads} reads for three batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_follows_slots_that_have_moved() {
    let cluster = RedisCluster::start_with(3, 1);
    let redis = Redis::cluster(cluster.urls());
    redis.connect().await.expect("a cluster");
    let keys: Vec<_> = (0..200).map(|at| format!("k{at}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let write = |key| Write { key, value: "1".into(), ttl: None };
    let writes: Vec<_> = keys.iter().copied().map(write).collect();
    redis.set_many(&writes).await.expect("set_many");
    cluster.failover(cluster.primary_of("k0"));
    common::in_time(async || redis.set_many(&writes).await).await;
    let values = redis.get_many(&keys).await.expect("get_many");
    assert!(values.iter().all(|value| value.as_deref() == Some(b"1")));
    assert_eq!(redis.delete(&keys).await.expect("delete"), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clear_reaches_the_shards_that_live_and_says_that_one_is_dead() {
    let cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        // The others still serve their slots.
        node.config("cluster-require-full-coverage", "no");
    }
    let redis = Redis::cluster(cluster.urls()).prefix("app").timeout(Duration::from_secs(1));
    let keys: Vec<_> = (0..60).map(|at| format!("k{at}")).collect();
    for key in &keys {
        redis.set(key, "1".into(), None).await.expect("set");
    }
    let dead = cluster.primary_of("app:k0");
    dead.kill();
    redis.clear("").await.expect_err("a part is not cleared");
    for node in cluster.nodes().iter().filter(|node| node.port() != dead.port()) {
        assert_eq!(node.cli(&["dbsize"]), "0");
    }
    dead.restart();
    common::in_time(async || redis.clear("").await).await;
    assert_eq!(dead.cli(&["dbsize"]), "0");
}
