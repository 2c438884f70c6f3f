//! A cancelled call reports what it was waiting for.

use std::error::Error as _;
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Store};
use bentocache_driver::{BusDriver, Topic};
use bentocache_redis::{Redis, RedisBus};
use testservers::{FaultProxy, RedisServer};
use tokio::time::timeout;

use crate::common::in_time;

async fn cache(redis: Redis) -> BentoCache {
    let store = Store::new().l2(redis).l2_timeout("500ms", "500ms").suppress_l2_errors(false);
    BentoCache::builder().ttl("10m").store("main", store).build().await.expect("a cache")
}

/// The words of L2 for a call that fails because it is cut.
async fn cut(cache: &BentoCache) -> String {
    let start = Instant::now();
    loop {
        let found = cache.get::<u32>("a").await;
        let why = found.err().and_then(|error| error.source().map(ToString::to_string));
        match why.filter(|why| why.contains("did not answer within")) {
            Some(why) => return why,
            None => assert!(start.elapsed() < Duration::from_secs(20), "no call is cut"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_cannot_be_opened() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
    let cache = cache(Redis::new(format!("redis://{}", proxy.addr()))).await;
    cache.set("a", 1_u32).await.expect("set");
    // Its connections are gone, and new ones get no answer, as at the port of another program.
    proxy.freeze();
    proxy.cut();
    let why = cut(&cache).await;
    let wanted = format!("500ms: the server at {} is not connected yet", proxy.addr());
    assert!(why.contains(&wanted), "{why}");
    assert!(why.contains("TLS") && why.contains("address"), "{why}");
}

async fn a_bus_says_it<B: BusDriver>(open: impl Fn(String) -> B) {
    const SHORT: Duration = Duration::from_millis(300);
    let topic = Topic::new("bentocache.notifications:trouble", "app:");
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
    let wanted = format!("the server at {} is not connected yet", proxy.addr());
    let (publisher, subscriber) = (open(proxy.addr().to_string()), open(proxy.addr().to_string()));
    proxy.freeze();
    assert!(timeout(SHORT, publisher.publish(topic, "1".into())).await.is_err());
    assert!(timeout(SHORT, subscriber.subscribe(topic)).await.is_err());
    for bus in [&publisher, &subscriber] {
        let why = bus.trouble().expect("there is no connection");
        assert!(why.contains(&wanted), "{why}");
    }
    proxy.pass().await.expect("it passes on");
    in_time(async || publisher.publish(topic, "1".into()).await).await;
    assert_eq!(publisher.trouble(), None);
    // On a connection that has fallen silent.
    proxy.freeze();
    assert!(timeout(SHORT, publisher.publish(topic, "2".into())).await.is_err());
    let why = publisher.trouble().expect("there is no answer");
    assert!(why.contains(&proxy.addr().to_string()), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_or_a_subscription_without_an_answer() {
    a_bus_says_it(|addr| RedisBus::new(format!("redis://{addr}"))).await;
    a_bus_says_it(|addr| Redis::new(format!("redis://{addr}")).read_only_tracking()).await;
}
