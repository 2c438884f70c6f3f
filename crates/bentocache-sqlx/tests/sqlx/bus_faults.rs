//! Subscriptions that break, and are reported.

use std::sync::LazyLock;
use std::time::Duration;

use bentocache_driver::{BusDriver, BusEvent, BusStream, ErrorKind, Topic};
use bentocache_sqlx::PgNotifyBus;
use bentocache_testkit::unique;
use testservers::{FaultProxy, PostgresServer};
use tokio::time::timeout;

use crate::common::{self, Named, PATIENCE, becomes, hears_again, next, pg_pool};

const SHORT: Duration = Duration::from_millis(500);

/// For tests with a server of their own, or that bear messages of others.
/// With a channel of this process: others may use the same server.
fn topic() -> Topic<'static> {
    static CHANNEL: LazyLock<String> =
        LazyLock::new(|| bentocache_testkit::unique("bentocache.notifications:test"));
    Topic::new(&CHANNEL, "app:")
}

async fn lost(stream: &mut BusStream) {
    assert_eq!(next(stream).await, BusEvent::Lost);
}

async fn restored(stream: &mut BusStream) {
    assert_eq!(next(stream).await, BusEvent::Restored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_reported_and_comes_back() {
    let server = PostgresServer::start();
    let bus = PgNotifyBus::new(pg_pool(&server.url()));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..2 {
        server.kill();
        lost(&mut stream).await;
        server.restart();
        restored(&mut stream).await;
        assert_eq!(hears_again(&bus, topic(), &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_connection_is_reported_while_publishing_works() {
    let named = Named::new();
    let bus = PgNotifyBus::new(named.pool.clone());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let mut other = bus.subscribe(Topic::new("other", "app:")).await.unwrap();
    for _ in 0..5 {
        assert_eq!(named.kill("listen%"), "t");
        lost(&mut stream).await;
        restored(&mut stream).await;
        assert_eq!(hears_again(&bus, topic(), &mut stream).await, []);
        // All subscriptions share the connection.
        lost(&mut other).await;
        restored(&mut other).await;
        assert_eq!(hears_again(&bus, Topic::new("other", ""), &mut other).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_reported() {
    let proxy = FaultProxy::start(common::postgres().addr()).await.unwrap();
    let pool = Named::by(proxy.addr()).pool;
    let bus = PgNotifyBus::new(pool).ping_interval(SHORT).timeout(SHORT).connect_timeout(SHORT * 4);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    proxy.freeze();
    lost(&mut stream).await;
    let error = bus.publish(topic(), "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    proxy.pass().await.unwrap();
    restored(&mut stream).await;
    proxy.refuse().await.unwrap();
    lost(&mut stream).await;
    proxy.pass().await.unwrap();
    restored(&mut stream).await;
    hears_again(&bus, topic(), &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_alone_is_no_loss() {
    let interval = Duration::from_millis(30);
    let bus = PgNotifyBus::new(pg_pool(&common::postgres().url())).ping_interval(interval);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    // Many pings, with messages among them.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(hears_again(&bus, topic(), &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_subscriptions_share_one_connection_which_ends_with_them() {
    let named = Named::new();
    let bus = PgNotifyBus::new(named.pool.clone());
    assert_eq!(named.count(), 0);
    let mut streams = Vec::new();
    for at in 0..150 {
        let channel = format!("{} {at}", named.name);
        streams.push(bus.subscribe(Topic::new(&channel, "")).await.unwrap());
    }
    assert_eq!(named.count(), 1);
    let last = format!("{} 149", named.name);
    bus.publish(Topic::new(&last, ""), "1".into()).await.unwrap();
    assert_eq!(next(&mut streams[149]).await, BusEvent::Message("1".into()));
    drop(streams);
    let is_closed = async || named.count() == named.pool.size();
    becomes("the connection to be closed", is_closed).await;
    let mut stream = bus.subscribe(Topic::new(&last, "")).await.unwrap();
    assert_eq!(hears_again(&bus, Topic::new(&last, ""), &mut stream).await, []);
    assert_eq!(named.count(), named.pool.size() + 1);
    drop(bus);
    becomes("the connection to be closed", is_closed).await;
    let ended = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_by_other_clients_are_read_or_ignored() {
    let server = common::postgres();
    let bus = PgNotifyBus::new(pg_pool(&server.url()));
    let channel = unique("kit.");
    let topic = Topic::new(&channel, "");
    let mut stream = bus.subscribe(topic).await.unwrap();
    for nonsense in ["not base64!", "", ":", "a:0:2:AAAA", "a:9:2:AAAA", "a:1:2:AAAA", "a:b:c:d"] {
        server.sql(&format!("notify \"{channel}\", '{nonsense}'"));
    }
    server.sql(&format!("notify \"{channel}\", 'aGVsbG8='"));
    assert_eq!(next(&mut stream).await, BusEvent::Message("".into()), "no bytes are a message");
    assert_eq!(next(&mut stream).await, BusEvent::Message("hello".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_channels_and_large_messages_of_many_publishers() {
    let server = common::postgres();
    let long = |end: &str| format!("{}{}{end}", unique("kit."), "é".repeat(60));
    let (one, two) = (long("1"), long("2"));
    let bus = std::sync::Arc::new(PgNotifyBus::new(pg_pool(&server.url())));
    let mut stream = bus.subscribe(Topic::new(&one, "")).await.unwrap();
    bus.publish(Topic::new(&two, ""), "to another".into()).await.unwrap();
    let tasks: Vec<_> = (0..8_u8)
        .map(|task| {
            let (bus, one) = (bus.clone(), one.clone());
            tokio::spawn(async move {
                let message = vec![task; 300_000 + usize::from(task)];
                bus.publish(Topic::new(&one, ""), message.into()).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 8 {
        let BusEvent::Message(message) = next(&mut stream).await else { panic!("a gap") };
        let task = message[0];
        assert_eq!(message.len(), 300_000 + usize::from(task));
        assert!(message.iter().all(|byte| *byte == task), "mixed");
        seen.insert(task);
    }
    let huge = vec![0; (1 << 20) + 1];
    let error = bus.publish(Topic::new(&one, ""), huge.into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("1048576"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_takes_no_connection_of_the_pool() {
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let pool = options.connect_lazy(&common::postgres().url()).unwrap();
    let bus = PgNotifyBus::new(pool.clone());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    hears_again(&bus, topic(), &mut stream).await;
    drop(pool.acquire().await.unwrap());
    // Publishing does: without a connection it fails, and does not wait forever.
    let held = pool.acquire().await.unwrap();
    let bus = PgNotifyBus::new(pool.clone()).timeout(SHORT);
    let error = bus.publish(topic(), "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_becomes_read_only_is_lost_until_it_is_writable() {
    let server = PostgresServer::start();
    let bus = PgNotifyBus::new(pg_pool(&server.url()));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let read_only = |is_on: &str| {
        server.sql(&format!("alter system set default_transaction_read_only = {is_on}"));
        server.sql("select pg_reload_conf()");
    };
    read_only("on");
    lost(&mut stream).await;
    let other = PgNotifyBus::new(pg_pool(&server.url()));
    let Err(error) = other.subscribe(topic()).await else { panic!("nobody is heard there") };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("primary server"), "{error}");
    read_only("off");
    restored(&mut stream).await;
    hears_again(&bus, topic(), &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_noticed_within_three_seconds() {
    let proxy = FaultProxy::start(common::postgres().addr()).await.unwrap();
    let bus = PgNotifyBus::new(Named::by(proxy.addr()).pool);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let start = std::time::Instant::now();
    proxy.freeze();
    lost(&mut stream).await;
    // With room for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_says_what_it_was_waiting_for() {
    let short = Duration::from_millis(300);
    let proxy = FaultProxy::start(common::postgres().addr()).await.unwrap();
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let pool = pool.connect_lazy(&common::postgres().url_by(proxy.addr())).unwrap();
    let bus = PgNotifyBus::new(pool.clone());
    proxy.freeze();
    assert!(timeout(short, bus.subscribe(topic())).await.is_err());
    let why = bus.trouble().unwrap();
    assert!(why.contains("which listens, is not ready") && why.contains("address"), "{why}");
    proxy.pass().await.unwrap();
    common::in_time(async || bus.publish(topic(), "1".into()).await).await;
    assert_eq!(bus.trouble(), None);
    let held = pool.acquire().await.unwrap();
    assert!(timeout(short, bus.publish(topic(), "2".into())).await.is_err());
    let why = bus.trouble().unwrap();
    assert!(why.contains("all 1 connections of the pool are in use"), "{why}");
    drop(held);
}
