//! Logins, limits, beginnings and ends.

use std::time::Duration;

use async_nats::RequestErrorKind;
use bentocache::{BentoCache, Memory, Store};
use bentocache_driver::{BusDriver, BusEvent, DriverError, ErrorKind, Topic};
use bentocache_nats::NatsBus;
use bytes::Bytes;
use testservers::NatsServer;

use crate::common::{self, PATIENCE, hears_again, server, topic};

async fn refused(bus: &NatsBus) -> DriverError {
    match bus.subscribe(topic()).await {
        Ok(_) => panic!("subscribed"),
        Err(error) => error,
    }
}

/// The reason why a cache with this bus cannot be built.
async fn build(bus: NatsBus) -> String {
    let store = Store::new().l1(Memory::new()).bus(bus);
    let built = BentoCache::builder().store("main", store).build().await;
    built.expect_err("a setting that an operator has to repair").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_say_so() {
    for bus in [NatsBus::new("http://nonsense"), NatsBus::cluster(Vec::<String>::new())] {
        assert_eq!(refused(&bus).await.kind(), ErrorKind::Config);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_in_urls() {
    let server = NatsServer::start_with(&["--user", "us er", "--pass", "s3:cr@t"]);
    let with = |login: &str| format!("nats://{login}@{}", server.addr());
    let bus = NatsBus::new(with("us%20er:s3%3Acr%40t"));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    assert_eq!(hears_again(&bus, &mut stream).await, []);
    assert!(!format!("{bus:?}").contains("s3"), "{bus:?}");
    for url in [server.url(), with("us%20er:wr0ng"), with("t0ken")] {
        let bus = NatsBus::new(&url);
        let error = refused(&bus).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let built = build(bus).await;
        assert!(built.contains("refuses the login; correct user"), "{built}");
        let shown = format!("{error:?} {error} {built} {:?}", NatsBus::new(&url));
        assert!(!shown.contains("wr0ng") && !shown.contains("t0ken"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_urls_and_in_options() {
    let server = NatsServer::start_with(&["--auth", "t0ken"]);
    let url = format!("nats://t0ken@{}", server.addr());
    let plain = NatsBus::new(server.url()).options(|options| options.token("t0ken".into()));
    for bus in [NatsBus::new(url), plain] {
        let mut stream = bus.subscribe(topic()).await.unwrap();
        assert_eq!(hears_again(&bus, &mut stream).await, []);
    }
}

/// A server whose user may publish and subscribe to these subjects, and to the inboxes.
fn permitting(publish: &str, subscribe: &str) -> String {
    format!(
        "authorization: {{ users: [ {{ user: u, password: p, permissions: {{ \
         publish: [{publish}], subscribe: [{subscribe}] }} }} ] }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_to_the_inbox_are_named() {
    for (publish, subscribe) in [("\"bentocache.>\"", "\">\""), ("\">\"", "\"bentocache.>\"")] {
        let server = NatsServer::start_configured(&permitting(publish, subscribe));
        let bus = NatsBus::new(format!("nats://u:p@{}", server.addr()));
        let error = refused(&bus).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("_INBOX.>"), "{error}");
        let built = build(bus).await;
        assert!(built.contains("_INBOX.>") && built.contains("administrator"), "{built}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_publication_fails_and_a_refused_subscription_is_lost() {
    let (all, inbox) = ("\">\"", "\"_INBOX.>\"");
    let server = NatsServer::start_configured(&permitting(inbox, all));
    let bus = NatsBus::new(format!("nats://u:p@{}", server.addr()));
    // Every one of them, also when they come at once.
    let calls: Vec<_> = (0..50).map(|_| bus.publish(topic(), "1".into())).collect();
    for call in calls {
        let error = call.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("right to publish"), "{error}");
    }
    let other = NatsServer::start_configured(&permitting(all, inbox));
    let deaf = NatsBus::new(format!("nats://u:p@{}", other.addr()));
    let error = refused(&deaf).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("right to subscribe"), "{error}");
    deaf.publish(topic(), "1".into()).await.unwrap();

    // Granted, taken, and granted again while it is there.
    other.configure(&permitting(all, all));
    let mut stream = common::in_time(async || deaf.subscribe(topic()).await).await;
    hears_again(&deaf, &mut stream).await;
    other.configure(&permitting(all, inbox));
    while common::next(&mut stream).await != BusEvent::Lost {}
    other.configure(&permitting(all, all));
    while common::next(&mut stream).await != BusEvent::Restored {}
    hears_again(&deaf, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_server_are_named() {
    let server = NatsServer::start_configured("max_payload: 65536");
    let bus = NatsBus::new(server.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    bus.publish(topic(), Bytes::from(vec![0; 65_536])).await.unwrap();
    common::next(&mut stream).await;
    let error = bus.publish(topic(), Bytes::from(vec![0; 65_537])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(error.to_string().contains("65536"), "{error}");
    let long = "a".repeat(5_000);
    let error = bus.publish(Topic::new(&long, ""), Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    // The connection has borne it.
    assert_eq!(hears_again(&bus, &mut stream).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_subjects() {
    let bus = NatsBus::new(server().url());
    let raw = async_nats::connect(server().url()).await.unwrap();
    let channel = bentocache_testkit::unique("bentocache.notifications:");
    let topic = Topic::new(&channel, "");
    let mut stream = bus.subscribe(topic).await.unwrap();
    raw.publish(channel.clone(), "raw".into()).await.unwrap();
    assert_eq!(common::next(&mut stream).await, bentocache_driver::BusEvent::Message("raw".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_streams_and_drivers_leave_nothing() {
    let server = NatsServer::start();
    let raw = async_nats::connect(server.url()).await.unwrap();
    // The server says so when nobody is subscribed.
    let nobody = async || {
        let start = std::time::Instant::now();
        loop {
            let asked = tokio::time::timeout(
                Duration::from_millis(200),
                raw.request(topic().channel, Bytes::new()),
            );
            if let Ok(Err(error)) = asked.await
                && error.kind() == RequestErrorKind::NoResponders
            {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "somebody is subscribed");
        }
    };
    nobody().await;
    let bus = NatsBus::new(server.url());
    let stream = bus.subscribe(topic()).await.unwrap();
    drop(stream);
    nobody().await;
    let mut stream = bus.subscribe(topic()).await.unwrap();
    drop(bus);
    nobody().await;
    let end = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
    assert_eq!(tokio::time::timeout(PATIENCE, end).await.expect("an end"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_after_disconnect_say_so() {
    let bus = NatsBus::new(server().url());
    bus.publish(topic(), "1".into()).await.unwrap();
    bus.disconnect().await.unwrap();
    assert_eq!(bus.publish(topic(), "1".into()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(refused(&bus).await.kind(), ErrorKind::Closed);
}
