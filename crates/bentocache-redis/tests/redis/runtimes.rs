//! Drivers that outlive the runtime on which they were first used.

use std::sync::LazyLock;
use std::time::Duration;

use bentocache_driver::{BusDriver, ErrorKind, L2Driver, LockDriver, Topic};
use bentocache_redis::{Redis, RedisBus, RedisLock, RedisTracking};
use futures_util::StreamExt;
use tokio::runtime::{Builder, Runtime};

use crate::common::{next, server};

const LEASE: Duration = Duration::from_secs(1);

struct Drivers {
    redis: Redis,
    bus: RedisBus,
    tracking: RedisTracking,
    beside: RedisTracking,
    lock: RedisLock,
}

static DRIVERS: LazyLock<Drivers> = LazyLock::new(|| {
    let url = server().url();
    let redis = Redis::new(&url).prefix("runtimes");
    Drivers {
        bus: RedisBus::new(&url),
        tracking: Redis::new(&url).read_only_tracking(),
        beside: redis.tracking(),
        lock: RedisLock::new(&url).prefix("runtimes"),
        redis,
    }
});

/// A topic with a channel of this process: others may use the same server.
fn topic() -> Topic<'static> {
    static CHANNEL: LazyLock<String> =
        LazyLock::new(|| bentocache_testkit::unique("bentocache.notifications:test"));
    Topic::new(&CHANNEL, "runtimes:")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Uses every operation.
async fn everything_works(token: &str) {
    let Drivers { redis, bus, tracking, beside, lock } = &*DRIVERS;
    redis.connect().await.unwrap();
    redis.set("a", "1".into(), None).await.unwrap();
    assert_eq!(redis.get("a").await.unwrap(), Some("1".into()));
    assert_eq!(redis.get_many(&["a", "b"]).await.unwrap(), [Some("1".into()), None]);
    assert!(redis.update("a", b"1", "2".into(), None).await.unwrap());
    assert_eq!(redis.pull("a").await.unwrap(), Some("2".into()));
    assert_eq!(redis.delete(&["a"]).await.unwrap(), 0);
    redis.clear("x").await.unwrap();
    assert_eq!(redis.keys("").count().await, 0);
    assert!(next(&mut redis.link().unwrap()).await == bentocache_driver::Link::Restored);
    assert!(lock.acquire("a", token, LEASE).await.unwrap());
    assert!(lock.release("a", token).await.unwrap());
    for (sender, mut stream) in [
        (bus, bus.subscribe(topic()).await.unwrap()),
        (bus, tracking.subscribe(topic()).await.unwrap()),
        (bus, beside.subscribe(topic()).await.unwrap()),
    ] {
        sender.publish(topic(), token.to_owned().into()).await.unwrap();
        while next(&mut stream).await
            != bentocache_driver::BusEvent::Message(token.to_owned().into())
        {}
    }
    tracking.publish(topic(), "x".into()).await.unwrap();
    beside.publish(topic(), "x".into()).await.unwrap();
}

/// Polls a call on a thread that has no runtime, or one that has ended.
macro_rules! closed {
    ($($call:expr),* $(,)?) => {
        $(
            let error = futures_util::FutureExt::now_or_never($call)
                .expect("an answer at once")
                .err()
                .expect("an error");
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
            assert!(error.to_string().contains("runtime"), "{error}");
        )*
    };
}

fn every_call_is_refused() {
    let Drivers { redis, bus, tracking, beside, lock } = &*DRIVERS;
    closed!(
        redis.connect(),
        redis.get("a"),
        redis.set("a", "1".into(), None),
        redis.insert("a", "1".into(), None),
        redis.delete(&["a"]),
        redis.clear("x"),
        redis.get_many(&["a", "b"]),
        redis.pull("a"),
        redis.update("a", b"1", "2".into(), None),
        redis.delete_if("a", b"1"),
        bus.publish(topic(), "x".into()),
        bus.subscribe(topic()),
        tracking.publish(topic(), "x".into()),
        tracking.subscribe(topic()),
        beside.publish(topic(), "x".into()),
        beside.subscribe(topic()),
        lock.acquire("a", "token", LEASE),
        lock.renew("a", "token", LEASE),
        lock.release("a", "token"),
    );
    let keys: Vec<_> =
        futures_util::FutureExt::now_or_never(redis.keys("").collect()).expect("an end");
    assert!(keys[0].as_ref().is_err_and(|error| error.kind() == ErrorKind::Closed));
    assert!(redis.link().is_none());
}

#[test]
fn a_driver_works_on_one_runtime_after_the_other() {
    every_call_is_refused();
    for token in ["one", "two", "three"] {
        let runtime = runtime();
        runtime.block_on(everything_works(token));
        let handle = runtime.handle().clone();
        drop(runtime);
        every_call_is_refused();
        let _entered = handle.enter();
        every_call_is_refused();
    }
}

#[test]
fn a_call_that_is_under_way_when_the_runtime_ends_does_not_hang() {
    let server = testservers::RedisServer::start();
    let redis = std::sync::Arc::new(Redis::new(server.url()));
    let first = runtime();
    first.block_on(redis.connect()).unwrap();
    server.freeze();
    let second = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let call = second.spawn({
        let redis = redis.clone();
        async move { redis.get("a").await }
    });
    std::thread::sleep(Duration::from_millis(100));
    drop(first);
    server.thaw();
    let limit = Duration::from_secs(20);
    let call = second.block_on(async { tokio::time::timeout(limit, call).await });
    let error = call.expect("it hangs").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(second.block_on(redis.get("a")).unwrap(), None);
}
