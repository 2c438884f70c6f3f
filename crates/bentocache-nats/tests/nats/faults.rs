//! Connections that break, and their reports.

use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, ErrorKind};
use bentocache_nats::NatsBus;
use bytes::Bytes;
use testservers::{FaultProxy, NatsServer};
use tokio::time::timeout;

use crate::common::{PATIENCE, hears_again, in_time, lost, next, restored, topic};

/// Notices a silent server soon, but not by mistake on a busy machine.
fn impatient(url: String) -> NatsBus {
    NatsBus::new(url)
        .ping_interval(Duration::from_millis(500))
        .timeout(Duration::from_secs(1))
        .connect_timeout(Duration::from_secs(1))
}

async fn proxied(server: &NatsServer) -> (FaultProxy, String) {
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let url = format!("nats://{}", proxy.addr());
    (proxy, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_reported() {
    let server = NatsServer::start();
    let bus = NatsBus::new(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..3 {
        server.kill();
        lost(&mut stream).await;
        let error = bus.publish(topic(), "1".into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        server.restart();
        restored(&mut stream).await;
        // Confirmed: what anybody publishes now arrives.
        let other = NatsBus::new(server.url());
        other.publish(topic(), "by another".into()).await.unwrap();
        assert_eq!(next(&mut stream).await, BusEvent::Message("by another".into()));
        assert_eq!(hears_again(&bus, &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_of_the_applications_client_is_reported() {
    let server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let bus = NatsBus::from_client(client);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..2 {
        server.kill();
        lost(&mut stream).await;
        server.restart();
        restored(&mut stream).await;
        assert_eq!(hears_again(&bus, &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_reported() {
    let server = NatsServer::start();
    let bus = impatient(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    server.freeze();
    // The connection is open, so only the missing answer tells.
    let error = bus.publish(topic(), "1".into()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    lost(&mut stream).await;
    let error = bus.publish(topic(), "2".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.thaw();
    restored(&mut stream).await;
    hears_again(&bus, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_reported() {
    let server = NatsServer::start();
    let (proxy, url) = proxied(&server).await;
    let [bus, other] = [NatsBus::new(url), NatsBus::new(server.url())];
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..5 {
        proxy.cut();
        lost(&mut stream).await;
        // This one may be missed; what comes after the report must not.
        other.publish(topic(), "in the gap, perhaps".into()).await.unwrap();
        let mut event = next(&mut stream).await;
        if event == BusEvent::Message("in the gap, perhaps".into()) {
            event = next(&mut stream).await;
        }
        assert_eq!(event, BusEvent::Restored);
        other.publish(topic(), "end".into()).await.unwrap();
        let mut event = next(&mut stream).await;
        if event == BusEvent::Message("in the gap, perhaps".into()) {
            event = next(&mut stream).await;
        }
        assert_eq!(event, BusEvent::Message("end".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cable_is_reported() {
    let server = NatsServer::start();
    let (proxy, url) = proxied(&server).await;
    let bus = impatient(url);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    proxy.freeze();
    lost(&mut stream).await;
    proxy.pass().await.unwrap();
    restored(&mut stream).await;
    proxy.refuse().await.unwrap();
    lost(&mut stream).await;
    proxy.pass().await.unwrap();
    restored(&mut stream).await;
    hears_again(&bus, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_server_has_not_is_an_error() {
    let server = NatsServer::start();
    let (proxy, url) = proxied(&server).await;
    // So that only the missing confirmation tells.
    let bus = NatsBus::new(url).timeout(Duration::from_secs(1));
    bus.publish(topic(), "1".into()).await.unwrap();
    proxy.freeze();
    let error = bus.publish(topic(), "2".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    proxy.pass().await.unwrap();
    in_time(async || bus.publish(topic(), "3".into()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_read_too_slowly_is_a_gap() {
    let server = NatsServer::start();
    // The library drops messages when this many wait.
    let bus = NatsBus::new(server.url()).options(|options| options.subscription_capacity(8));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let raw = async_nats::connect(server.url()).await.unwrap();
    let (start, mut events) = (Instant::now(), Vec::new());
    while !events.ends_with(&[BusEvent::Restored]) {
        // All of them come in one piece, faster than any task can be woken.
        for _ in 0..500 {
            raw.publish(topic().channel, Bytes::from_static(b"x")).await.unwrap();
        }
        raw.publish(topic().channel, Bytes::from_static(b"end")).await.unwrap();
        let quiet = Duration::from_millis(500);
        while let Ok(event) = tokio::time::timeout(quiet, next(&mut stream)).await {
            if !matches!(event, BusEvent::Message(_)) {
                events.push(event);
            }
        }
        assert!(start.elapsed() < PATIENCE, "no gap is reported");
    }
    assert_eq!(events[..2], [BusEvent::Lost, BusEvent::Restored]);
    hears_again(&bus, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_too_slow_for_the_server_is_a_gap() {
    let server = NatsServer::start_configured("max_pending: 1MB\nwrite_deadline: \"1s\"\n");
    let (proxy, url) = proxied(&server).await;
    let [bus, other] = [NatsBus::new(url), NatsBus::new(server.url())];
    let mut stream = bus.subscribe(topic()).await.unwrap();
    proxy.freeze();
    // More than the server, the system and the proxy hold together.
    let message = Bytes::from(vec![0; 512 << 10]);
    for _ in 0..64 {
        other.publish(topic(), message.clone()).await.unwrap();
    }
    proxy.pass().await.unwrap();
    while next(&mut stream).await != BusEvent::Lost {}
    while next(&mut stream).await != BusEvent::Restored {}
    hears_again(&other, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_noticed_within_about_three_seconds() {
    let server = NatsServer::start();
    let (proxy, url) = proxied(&server).await;
    let bus = NatsBus::new(url);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let start = Instant::now();
    proxy.freeze();
    lost(&mut stream).await;
    // With room for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_says_what_it_was_waiting_for() {
    let short = Duration::from_millis(300);
    let server = NatsServer::start();
    let (proxy, url) = proxied(&server).await;
    let bus = NatsBus::new(url);
    proxy.freeze();
    assert!(timeout(short, bus.subscribe(topic())).await.is_err());
    let why = bus.trouble().unwrap();
    assert!(why.contains("not connected yet") && why.contains("address"), "{why}");
    proxy.pass().await.unwrap();
    in_time(async || bus.publish(topic(), "1".into()).await).await;
    assert_eq!(bus.trouble(), None);
    // On a connection that has fallen silent.
    proxy.freeze();
    assert!(timeout(short, bus.publish(topic(), "2".into())).await.is_err());
    let why = bus.trouble().unwrap();
    assert!(why.contains("has not answered") && why.contains("right to publish"), "{why}");
}
