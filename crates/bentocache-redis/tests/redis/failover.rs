//! Clusters and sentinels that choose another primary.

use std::time::Duration;

use bentocache_driver::{BusDriver, BusEvent, L2Driver, LockDriver, Topic, Write};
use bentocache_redis::{Redis, RedisBus, RedisLock};
use testservers::{RedisCluster, RedisSentinel};

use crate::common::{hears_again, in_time, next};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster() {
    let cluster = RedisCluster::start_with(3, 1);
    let redis =
        Redis::cluster([cluster.nodes()[0].url()]).prefix("app").timeout(Duration::from_secs(1));
    redis.connect().await.unwrap();
    let keys: Vec<_> = (0..60).map(|at| format!("k{at}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let write = |key| Write { key, value: "1".into(), ttl: None };
    let writes: Vec<_> = keys.iter().copied().map(write).collect();
    let everything_works = async || {
        in_time(async || redis.set_many(&writes).await).await;
        let values = redis.get_many(&keys).await.unwrap();
        assert!(values.iter().all(|value| value.as_deref() == Some(b"1")));
        for key in &keys[..6] {
            assert!(redis.update(key, b"1", "2".into(), None).await.unwrap());
            assert_eq!(redis.pull(key).await.unwrap(), Some("2".into()));
        }
        assert_eq!(redis.delete(&keys[..9]).await.unwrap(), 3);
        in_time(async || redis.clear("").await).await;
        let left = redis.get_many(&keys).await.unwrap();
        assert!(left.iter().all(Option::is_none));
    };
    everything_works().await;
    // In order.
    cluster.failover(cluster.primary_of("app:k0"));
    everything_works().await;
    // And by a crash: calls for the other nodes go on meanwhile.
    let dead = cluster.primary_of("app:k1");
    dead.kill();
    in_time(async || redis.set("k1", "1".into(), None).await).await;
    everything_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel() {
    let group = RedisSentinel::start();
    let quick = Duration::from_millis(300);
    let redis = Redis::sentinel([group.url()], RedisSentinel::NAME).ping_interval(quick);
    let lock = RedisLock::sentinel([group.url()], RedisSentinel::NAME).ping_interval(quick);
    let bus = RedisBus::sentinel([group.url()], RedisSentinel::NAME).ping_interval(quick);
    let topic = Topic::new("bentocache.notifications:test", "");
    let mut stream = bus.subscribe(topic).await.unwrap();
    redis.set("a", "1".into(), None).await.unwrap();
    assert!(lock.acquire("a", "token", Duration::from_secs(60)).await.unwrap());
    assert_eq!(group.primary().cli(&["get", "a"]), "1");

    let old = group.primary().port();
    group.failover();
    assert_ne!(group.primary().port(), old);
    in_time(async || redis.set("a", "2".into(), None).await).await;
    assert_eq!(group.primary().cli(&["get", "a"]), "2");
    in_time(async || lock.acquire("b", "token", Duration::from_secs(60)).await).await;
    assert_eq!(next(&mut stream).await, BusEvent::Lost);
    assert_eq!(next(&mut stream).await, BusEvent::Restored);
    hears_again(&bus, topic, &mut stream).await;
}
