//! The health of a cache on a server that is up, frozen, killed and back, and on a cluster.

use std::time::{Duration, Instant, SystemTime};

use bentocache::{BentoCache, L2Health, Memory, Store};
use bentocache_redis::{Redis, RedisBus};
use testservers::{RedisCluster, RedisServer};

const LIMIT: Duration = Duration::from_millis(500);

async fn cache(url: &str) -> BentoCache {
    let store = Store::new()
        .l1(Memory::new())
        .l2(Redis::new(url))
        .bus(RedisBus::new(url))
        .l2_timeout(None, LIMIT);
    BentoCache::builder().store("main", store).build().await.expect("a cache")
}

/// The health of L2, which takes little longer than the limit in any case.
async fn l2(cache: &BentoCache) -> L2Health {
    let start = Instant::now();
    let health = cache.health().await;
    // The machine of the tests is busy.
    assert!(start.elapsed() < LIMIT * 4, "{:?}", start.elapsed());
    assert!(health.is_live() && health.is_ready(), "an L1 is there: {health:?}");
    assert_eq!(health.stores.len(), 1);
    let l2 = health.stores[0].l2.clone().expect("an L2");
    assert_eq!(health.is_degraded(), !l2.is_reachable() || !is_linked(&health.stores[0]));
    l2
}

fn is_linked(store: &bentocache::StoreHealth) -> bool {
    store.bus.as_ref().expect("a bus").is_linked
}

/// The health once L2 answers, or once it does not.
async fn until(cache: &BentoCache, answers: bool) -> L2Health {
    let start = Instant::now();
    loop {
        let health = l2(cache).await;
        if health.is_reachable() == answers {
            return health;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "still: {health:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_up_frozen_killed_and_back() {
    let server = RedisServer::start();
    let cache = cache(&server.url()).await;
    let up = l2(&cache).await;
    assert!(up.is_reachable(), "{up:?}");
    assert!(up.latency > Duration::ZERO && up.latency < LIMIT, "{up:?}");
    assert_eq!((up.driver, up.parts), ("redis", 1));
    assert!(cache.health().await.stores[0].bus.as_ref().is_some_and(|bus| bus.is_linked));

    let before = SystemTime::now();
    server.freeze();
    let frozen = until(&cache, false).await;
    assert_eq!(frozen.failed_parts, 1);
    // Both clocks have a step of a few milliseconds.
    assert!(frozen.since >= before - Duration::from_millis(50), "{frozen:?}");
    let later = l2(&cache).await;
    assert_eq!(later.since, frozen.since, "it is the same outage");

    server.thaw();
    let thawed = until(&cache, true).await;
    assert!(thawed.since > frozen.since, "{thawed:?}");

    server.kill();
    let killed = until(&cache, false).await;
    let error = killed.error.as_ref().expect("why").to_string();
    assert!(killed.since > thawed.since, "{killed:?}");
    assert!(!error.is_empty() && !error.contains("bentocache"), "no key: {error}");

    server.restart();
    let back = until(&cache, true).await;
    assert!(back.since > killed.since, "{back:?}");
    // The bus comes back by itself.
    let start = Instant::now();
    while !is_linked(&cache.health().await.stores[0]) {
        assert!(start.elapsed() < Duration::from_secs(20), "no bus");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_asked_shard_by_shard() {
    let cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        node.config("cluster-require-full-coverage", "no");
    }
    let store =
        Store::new().l1(Memory::new()).l2(Redis::cluster(cluster.urls())).l2_timeout(None, LIMIT);
    let cache = BentoCache::builder().store("main", store).build().await.expect("a cache");
    let health = async || cache.health().await.stores.remove(0).l2.expect("an L2");
    let all = health().await;
    assert_eq!((all.parts, all.failed_parts), (3, 0), "{all:?}");
    cluster.nodes()[1].kill();
    let start = Instant::now();
    loop {
        let one = health().await;
        if one.failed_parts == 1 {
            assert_eq!(one.parts, 3);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{one:?}");
    }
}
