//! Subscriptions that break, and their reports.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, BusStream, ErrorKind, Topic};
use bentocache_redis::RedisBus;
use testservers::{FaultProxy, RedisCluster, RedisServer, wait_for};

use crate::common::{hears_again, next};

const SHORT: Duration = Duration::from_millis(200);

/// A topic with a channel of this process: others may use the same server.
fn topic() -> Topic<'static> {
    static CHANNEL: LazyLock<String> =
        LazyLock::new(|| bentocache_testkit::unique("bentocache.notifications:test"));
    Topic::new(&CHANNEL, "app:")
}

fn impatient(url: String) -> RedisBus {
    RedisBus::new(url).ping_interval(SHORT).timeout(SHORT).connect_timeout(SHORT * 2)
}

async fn lost(stream: &mut BusStream) {
    assert_eq!(next(stream).await, BusEvent::Lost);
}

async fn restored(stream: &mut BusStream) {
    assert_eq!(next(stream).await, BusEvent::Restored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_reported_at_once() {
    let server = RedisServer::start();
    let bus = RedisBus::new(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..3 {
        server.kill();
        let start = Instant::now();
        lost(&mut stream).await;
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        let error = bus.publish(topic(), "1".into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        server.restart();
        restored(&mut stream).await;
        // Confirmed: messages arrive from now on.
        assert_eq!(server.cli(&["publish", topic().channel, "by hand"]), "1");
        assert_eq!(next(&mut stream).await, BusEvent::Message("by hand".into()));
        assert_eq!(hears_again(&bus, topic(), &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_subscription_is_reported_while_publishing_works() {
    let server = RedisServer::start();
    let bus = RedisBus::new(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(server.cli(&["client", "kill", "type", "pubsub"]), "1");
        lost(&mut stream).await;
        bus.publish(topic(), "in the gap, perhaps".into()).await.unwrap();
        let mut event = next(&mut stream).await;
        if event == BusEvent::Restored {
            bus.publish(topic(), "end".into()).await.unwrap();
            event = next(&mut stream).await;
            if event == BusEvent::Message("in the gap, perhaps".into()) {
                event = next(&mut stream).await;
            }
        }
        assert_eq!(event, BusEvent::Message("end".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_reported() {
    let server = RedisServer::start();
    let bus = impatient(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    server.freeze();
    lost(&mut stream).await;
    // The call's time limit ends before that of its first connection; but a machine that stands
    // still for longer than both sees both at once.
    let error = bus.publish(topic(), "1".into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    server.thaw();
    restored(&mut stream).await;
    hears_again(&bus, topic(), &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cable_is_reported() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let bus = impatient(format!("redis://{}", proxy.addr()));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    proxy.freeze();
    lost(&mut stream).await;
    proxy.pass().await.unwrap();
    restored(&mut stream).await;
    proxy.refuse().await.unwrap();
    lost(&mut stream).await;
    proxy.pass().await.unwrap();
    restored(&mut stream).await;
    hears_again(&bus, topic(), &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlasts_a_long_absence() {
    let server = RedisServer::start();
    let bus = RedisBus::new(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    server.kill();
    lost(&mut stream).await;
    // Longer than some attempts take, whose pauses grow to one second.
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.restart();
    let start = Instant::now();
    restored(&mut stream).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_url_is_an_error_of_subscribe() {
    let Err(error) = RedisBus::new("nonsense").subscribe(topic()).await else { panic!() };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_streams_close_their_connection() {
    let server = RedisServer::start();
    let bus = RedisBus::new(server.url());
    let [one, two] = [bus.subscribe(topic()).await.unwrap(), bus.subscribe(topic()).await.unwrap()];
    let subscribers = || {
        server
            .cli(&["client", "list", "type", "pubsub"])
            .lines()
            .filter(|line| !line.is_empty())
            .count()
    };
    assert_eq!(subscribers(), 2);
    drop(one);
    wait_for("one to be closed", || subscribers() == 1);
    drop(bus);
    wait_for("all to be closed", || subscribers() == 0);
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_moves_to_another_node_of_a_cluster() {
    let cluster = RedisCluster::start(3);
    // Only the first node is named.
    let bus = RedisBus::cluster([cluster.nodes()[0].url()]);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    assert_eq!(hears_again(&bus, topic(), &mut stream).await, []);
    cluster.nodes()[0].kill();
    lost(&mut stream).await;
    restored(&mut stream).await;
    // Through another node than the one with the subscription.
    hears_again(&bus, topic(), &mut stream).await;
    for node in &cluster.nodes()[1..] {
        node.cli(&["publish", topic().channel, "by hand"]);
        assert_eq!(next(&mut stream).await, BusEvent::Message("by hand".into()));
    }
}
