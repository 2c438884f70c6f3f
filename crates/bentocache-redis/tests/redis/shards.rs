//! One shard of a cluster does not answer: the others still work.

use std::time::{Duration, Instant};

use bentocache::{BentoCache, Cache, Store};
use bentocache_driver::{DriverError, ErrorKind, L2Driver, Link};
use bentocache_redis::Redis;
use testservers::{RedisCluster, RedisServer};

use crate::common::{in_time, next};

/// A cluster whose living nodes serve their slots whatever the others do.
fn cluster() -> RedisCluster {
    let cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        node.config("cluster-require-full-coverage", "no");
    }
    cluster
}

async fn cache(redis: Redis) -> BentoCache {
    let store = Store::new().l2(redis).l2_circuit_breaker("30s", 5).suppress_l2_errors(false);
    BentoCache::builder().ttl("10m").store("main", store).build().await.expect("a cache")
}

/// Keys of the dead node, and of the others.
fn keys(cluster: &RedisCluster, dead: &RedisServer) -> (Vec<String>, Vec<String>) {
    let keys = (0..60).map(|at| format!("k{at}"));
    keys.partition(|key| cluster.primary_of(&full(key)).port() == dead.port())
}

fn full(key: &str) -> String {
    format!("bentocache:{key}")
}

#[derive(Default, Debug)]
struct Tally {
    failed: usize,
    works: usize,
    slowest: Duration,
}

/// Reads and writes these keys, one after the other, for that long.
async fn calls(cache: &Cache, keys: &[String], time: Duration) -> Tally {
    let (start, mut tally) = (Instant::now(), Tally::default());
    for (at, key) in keys.iter().cycle().enumerate() {
        if start.elapsed() > time {
            break;
        }
        let before = Instant::now();
        let worked = match at % 2 {
            0 => cache.get::<u32>(key).await.map(|value| assert_eq!(value, Some(1))),
            _ => cache.set(key, 1_u32).await,
        };
        tally.slowest = tally.slowest.max(before.elapsed());
        match worked {
            Ok(()) => tally.works += 1,
            Err(_) => tally.failed += 1,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tally
}

async fn others_work_without(take: impl Fn(&RedisServer), back: impl Fn(&RedisServer)) {
    let cluster = cluster();
    let cache = cache(Redis::cluster(cluster.urls())).await;
    let dead = &cluster.nodes()[1];
    let (of_dead, of_others) = keys(&cluster, dead);
    cache.set_many(of_dead.iter().chain(&of_others).map(|key| (key, 1_u32))).await.expect("set");
    take(dead);
    let time = Duration::from_secs(8);
    let (others, other, dead_ones) = tokio::join!(
        calls(&cache, &of_others, time),
        calls(&cache, &of_others, time),
        calls(&cache, &of_dead, time)
    );
    assert_eq!((others.failed, other.failed, dead_ones.works), (0, 0, 0), "{others:?} {other:?}");
    assert!(others.works > 200, "{others:?}");
    // Many keys at once: what lives is used.
    let all: Vec<_> = of_dead.iter().chain(&of_others).collect();
    let found = cache.get_many::<u32>(&all).suppress_l2_errors(true).await.expect("suppressed");
    let found = all.iter().zip(found).filter(|(_, value)| *value == Some(1)).count();
    assert_eq!(found, of_others.len());
    assert!(cache.get_many::<u32>(&all).await.is_err());
    back(dead);
    let start = Instant::now();
    for key in &of_dead {
        while cache.set(key, 1_u32).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(5), "it is back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shard_costs_the_others_nothing() {
    others_work_without(RedisServer::kill, RedisServer::restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_shard_costs_the_others_nothing() {
    others_work_without(RedisServer::freeze, RedisServer::thaw).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_built_while_a_shard_is_frozen() {
    let cluster = cluster();
    let dead = &cluster.nodes()[2];
    let (of_dead, of_others) = keys(&cluster, dead);
    dead.freeze();
    let redis = Redis::cluster(cluster.urls()).connect_timeout(Duration::from_secs(1));
    redis.connect().await.expect("the others");
    for key in &of_others {
        redis.set(&full(key), "1".into(), None).await.expect("a shard that lives");
    }
    let start = Instant::now();
    let error = redis.get(&full(&of_dead[0])).await.expect_err("a dead shard");
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let named = format!("the node 127.0.0.1:{} of the cluster, which has the key", dead.port());
    assert!(error.to_string().contains(&named), "{error}");
    dead.thaw();
    in_time(async || redis.set(&full(&of_dead[0]), "1".into(), None).await).await;
}

/// The engine repeats what waits for the shard when it is told; without that it would wait for a pause
/// of its own, or for a breaker.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_returns_is_reported_without_a_call() {
    let cluster = cluster();
    let redis = Redis::cluster(cluster.urls()).timeout(Duration::from_secs(1));
    let dead = &cluster.nodes()[1];
    let (of_dead, of_others) = keys(&cluster, dead);
    redis.connect().await.expect("a cluster");
    let mut link = redis.link().expect("a link");
    dead.freeze();
    in_time(async || {
        // Refused at once: the driver knows that the shard is dead.
        match redis.get(&full(&of_dead[0])).await {
            Err(error) if error.to_string().contains("which has the key") => Ok(()),
            answer => Err(answer
                .err()
                .unwrap_or_else(|| DriverError::new(ErrorKind::Unavailable, "it is not dead yet"))),
        }
    })
    .await;
    // All reports until now concern its end.
    while let Ok(report) = tokio::time::timeout(Duration::from_secs(3), next(&mut link)).await {
        assert!(matches!(report, Link::Restored | Link::Lost));
    }
    redis.set(&full(&of_others[0]), "1".into(), None).await.expect("a shard that lives");
    dead.thaw();
    while next(&mut link).await != Link::Restored {}
    redis.set(&full(&of_dead[0]), "1".into(), None).await.expect("a shard that is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clear_names_what_is_left_and_is_ended_there_only() {
    let cluster = cluster();
    let redis = Redis::cluster(cluster.urls()).timeout(Duration::from_secs(1));
    let dead = &cluster.nodes()[0];
    let (of_dead, of_others) = keys(&cluster, dead);
    for key in of_dead.iter().chain(&of_others) {
        redis.set(&full(key), "1".into(), None).await.expect("set");
    }
    let part = redis.part(&full(&of_dead[0])).expect("a shard");
    assert!(of_dead.iter().all(|key| redis.part(&full(key)) == Some(part)));
    assert!(of_others.iter().all(|key| redis.part(&full(key)).is_some_and(|other| other != part)));
    for take in [RedisServer::freeze, RedisServer::kill] {
        take(dead);
        let error = redis.clear("bentocache:").await.expect_err("a part is not cleared");
        assert_eq!(error.parts().map(|parts| &parts[..]), Some(&[part][..]), "{error}");
        assert!(error.to_string().contains("1 of 3 shards"), "{error}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{}", dead.port())), "{error}");
        for node in &cluster.nodes()[1..] {
            assert_eq!(node.cli(&["dbsize"]), "0");
        }
    }
    for key in &of_others {
        redis.set(&full(key), "2".into(), None).await.expect("a shard that lives");
    }
    redis.clear_parts("bentocache:", &[part]).await.expect_err("it is dead");
    dead.restart();
    dead.cli(&["set", "other", "1"]);
    in_time(async || redis.set(&full(&of_dead[0]), "1".into(), None).await).await;
    in_time(async || redis.clear_parts("bentocache:", &[part]).await).await;
    assert_eq!(redis.get(&full(&of_dead[0])).await.expect("get"), None);
    for key in &of_others {
        assert_eq!(redis.get(&full(key)).await.expect("get"), Some("2".into()), "{key}");
    }
    redis.clear("bentocache:").await.expect("all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_is_replaced_while_the_others_work() {
    let cluster = RedisCluster::start_with(3, 1);
    for node in cluster.nodes() {
        node.config("cluster-require-full-coverage", "no");
    }
    let cache = cache(Redis::cluster(cluster.urls())).await;
    let dead = &cluster.nodes()[0];
    let (of_dead, of_others) = keys(&cluster, dead);
    cache.set_many(of_dead.iter().chain(&of_others).map(|key| (key, 1_u32))).await.expect("set");
    dead.freeze();
    let start = Instant::now();
    let back = async {
        while cache.set(&of_dead[0], 1_u32).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(15), "no other primary");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ((), others) = tokio::join!(back, calls(&cache, &of_others, Duration::from_secs(10)));
    assert_eq!(others.failed, 0, "{others:?}");
    for key in &of_dead {
        assert!(cache.set(key, 1_u32).await.is_ok(), "{key}");
    }
}
