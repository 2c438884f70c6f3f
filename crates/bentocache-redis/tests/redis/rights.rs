//! The rights that the guide lists are enough.

use std::time::Duration;

use bentocache_driver::{BusDriver, BusEvent, L2Driver, Link, LockDriver, Topic, Write};
use bentocache_redis::{Redis, RedisBus, RedisLock};
use futures_util::StreamExt;
use testservers::{FaultProxy, RedisServer};

use crate::common::{in_time, next};

/// The rules of the example in the guide.
fn rules() -> Vec<&'static str> {
    let guide = include_str!("../../../../docs/redis.md");
    let (_, rules) = guide.split_once("ACL SETUSER shop ").expect("an example");
    let (rules, _) = rules.split_once("```").expect("its end");
    rules.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn those_of_the_example() {
    let server = RedisServer::start();
    let user: Vec<_> = ["acl", "setuser", "shop"].into_iter().chain(rules()).collect();
    assert_eq!(server.cli(&user), "OK");
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let url = format!("redis://shop:password@{}", proxy.addr());
    let redis = Redis::new(&url).prefix("shop");
    redis.connect().await.unwrap();
    // It may not ask the server for its settings, which does no harm.
    assert_eq!(redis.findings().await, []);
    let key = "bentocache:a";
    redis.set(key, "1".into(), Some(Duration::from_secs(9))).await.unwrap();
    assert_eq!(redis.get(key).await.unwrap(), Some("1".into()));
    let write = Write { key: "bentocache:b", value: "1".into(), ttl: None };
    redis.set_many(&[write]).await.unwrap();
    redis.get_many(&[key, "bentocache:b"]).await.unwrap();
    assert!(redis.update(key, b"1", "2".into(), None).await.unwrap());
    assert!(redis.delete_if(key, b"2").await.unwrap());
    assert!(redis.insert(key, "1".into(), None).await.unwrap());
    assert_eq!(redis.pull(key).await.unwrap(), Some("1".into()));
    assert_eq!(redis.delete(&["bentocache:b"]).await.unwrap(), 1);
    assert_eq!(redis.keys("bentocache:").count().await, 0);
    redis.clear("bentocache:").await.unwrap();

    let lock = RedisLock::new(&url).prefix("shop");
    assert!(lock.acquire(key, "token", Duration::from_secs(9)).await.unwrap());
    assert!(lock.renew(key, "token", Duration::MAX).await.unwrap());
    assert!(lock.release(key, "token").await.unwrap());
    let bus = RedisBus::new(&url);
    let topic = Topic::new("bentocache.notifications:main", "");
    let mut stream = bus.subscribe(topic).await.unwrap();
    bus.publish(topic, "a".into()).await.unwrap();
    assert_eq!(next(&mut stream).await, BusEvent::Message("a".into()));

    // To recover promptly: a full server, and a write that is stuck.
    let mut link = redis.link().unwrap();
    assert_eq!(next(&mut link).await, Link::Restored);
    server.config("maxmemory", "1");
    redis.set(key, "1".into(), None).await.unwrap_err();
    assert_eq!(next(&mut link).await, Link::Lost);
    server.config("maxmemory", "0");
    assert_eq!(next(&mut link).await, Link::Restored);
    proxy.stall();
    let limit = Duration::from_millis(400);
    tokio::time::timeout(limit, redis.set(key, "late".into(), None)).await.unwrap_err();
    in_time(async || redis.get(key).await).await;
    assert_eq!(server.cli(&["acl", "log"]), "", "something was refused");
}
