//! Connections that break, and are reported.

use std::time::{Duration, Instant};

use crate::common::{PATIENCE, breakable, in_time, lost, next, restored, server};
use bentocache_driver::{BusDriver, BusEvent, BusStream, ErrorKind, Topic};
use bentocache_rabbitmq::RabbitMqBus;
use bentocache_testkit::unique;
use testservers::{FaultProxy, RabbitMqServer};
use tokio::time::timeout;

/// A bus behind a proxy, and one beside it, on a channel of their own.
struct Pair {
    proxy: FaultProxy,
    bus: RabbitMqBus,
    other: RabbitMqBus,
    channel: String,
}

impl Pair {
    async fn on(server: &RabbitMqServer) -> Self {
        let proxy = FaultProxy::start(server.addr()).await.unwrap();
        let bus = RabbitMqBus::new(format!("amqp://{}/%2f", proxy.addr()))
            .heartbeat(Duration::from_secs(1))
            .timeout(Duration::from_secs(2))
            .connect_timeout(Duration::from_secs(3));
        let other = RabbitMqBus::new(server.url());
        Self { proxy, bus, other, channel: unique("bentocache.notifications:") }
    }

    fn topic(&self) -> Topic<'_> {
        Topic::new(&self.channel, "app:")
    }

    /// Both publish, and both arrive after whatever came before.
    async fn works(&self, stream: &mut BusStream) {
        for bus in [&self.bus, &self.other] {
            let text = unique("works");
            in_time(async || bus.publish(self.topic(), text.clone().into()).await).await;
            while next(stream).await != BusEvent::Message(text.clone().into()) {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_closing_full_and_frozen_server() {
    // One after the other, because each start takes long.
    let server = breakable().await;
    let pair = Pair::on(&server).await;
    let mut stream = pair.bus.subscribe(pair.topic()).await.unwrap();
    pair.works(&mut stream).await;

    server.kill();
    lost(&mut stream).await;
    let error = pair.other.publish(pair.topic(), "1".into()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.restart();
    restored(&mut stream).await;
    pair.works(&mut stream).await;

    server.ctl(&["close_all_connections", "because a test says so"]);
    lost(&mut stream).await;
    restored(&mut stream).await;
    pair.works(&mut stream).await;

    // Out of memory: publishers are stopped, and what they have sent comes later.
    server.ctl(&["set_vm_memory_high_watermark", "0"]);
    let stopped = async || {
        let error = pair.bus.publish(pair.topic(), "3".into()).await.err();
        error.is_some_and(|error| error.kind() == ErrorKind::Timeout)
    };
    let start = Instant::now();
    while !stopped().await {
        assert!(start.elapsed() < PATIENCE, "the alarm stops nobody");
    }
    server.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    pair.works(&mut stream).await;

    server.freeze();
    while next(&mut stream).await != BusEvent::Lost {}
    let error = pair.bus.publish(pair.topic(), "2".into()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.thaw();
    restored(&mut stream).await;
    pair.works(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_reported() {
    let pair = Pair::on(server()).await;
    let mut stream = pair.bus.subscribe(pair.topic()).await.unwrap();
    for _ in 0..5 {
        pair.proxy.cut();
        lost(&mut stream).await;
        // This one may be missed; what comes after the report must not.
        let gap = BusEvent::Message("in the gap, perhaps".into());
        pair.other.publish(pair.topic(), "in the gap, perhaps".into()).await.unwrap();
        let mut event = next(&mut stream).await;
        if event == gap {
            event = next(&mut stream).await;
        }
        assert_eq!(event, BusEvent::Restored);
        pair.other.publish(pair.topic(), "end".into()).await.unwrap();
        let mut event = next(&mut stream).await;
        if event == gap {
            event = next(&mut stream).await;
        }
        assert_eq!(event, BusEvent::Message("end".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cable_is_reported() {
    let pair = Pair::on(server()).await;
    let mut stream = pair.bus.subscribe(pair.topic()).await.unwrap();
    pair.proxy.freeze();
    // Only the missing confirmation tells, until heartbeats are missed.
    let error = pair.bus.publish(pair.topic(), "1".into()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    lost(&mut stream).await;
    pair.proxy.pass().await.unwrap();
    restored(&mut stream).await;
    pair.proxy.refuse().await.unwrap();
    lost(&mut stream).await;
    let error = pair.bus.publish(pair.topic(), "2".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    pair.proxy.pass().await.unwrap();
    restored(&mut stream).await;
    pair.works(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_exchange_is_made_again() {
    let pair = Pair::on(server()).await;
    let mut stream = pair.bus.subscribe(pair.topic()).await.unwrap();
    pair.works(&mut stream).await;
    // The exchange ends with its last queue, and the publisher does not hear of it.
    drop(stream);
    let nobody = async || pair.other.publish(pair.topic(), "to nobody".into()).await;
    for _ in 0..20 {
        nobody().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut stream = pair.bus.subscribe(pair.topic()).await.unwrap();
    pair.works(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_a_gap() {
    let pair = Pair::on(server()).await;
    let mut stream = pair.bus.subscribe(pair.topic()).await.unwrap();
    let bindings = server().ctl(&["list_bindings", "source_name", "destination_name"]);
    let queue = bindings.lines().find_map(|line| {
        let (exchange, queue) = line.split_once('\t')?;
        (exchange == pair.channel).then(|| queue.to_owned())
    });
    // An administrator may; nobody else can, because it is exclusive.
    let queue = queue.expect("a queue");
    let delete = format!(
        "rabbit_amqqueue:with(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>), \
         fun(Q) -> rabbit_amqqueue:delete(Q, false, false, <<\"test\">>) end)."
    );
    server().ctl(&["eval", &delete]);
    lost(&mut stream).await;
    restored(&mut stream).await;
    pair.works(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_refuses_and_drops_nothing() {
    let pair = Pair::on(server()).await;
    let policy = unique("limit");
    server().ctl(&[
        "set_policy",
        &policy,
        "^amq.gen",
        r#"{"max-length": 3}"#,
        "--apply-to",
        "queues",
    ]);
    // Slow for long, and not lost.
    let slow = RabbitMqBus::new(format!("amqp://{}/%2f?heartbeat=60", pair.proxy.addr()));
    let mut stream = slow.subscribe(pair.topic()).await.unwrap();
    pair.proxy.freeze();
    let mut sent = 0_u32;
    let error = loop {
        let mut message = vec![0; 512 << 10];
        message[..4].copy_from_slice(&sent.to_be_bytes());
        match pair.other.publish(pair.topic(), message.into()).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 500, "no limit");
    };
    server().ctl(&["clear_policy", &policy]);
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("a subscriber may be too slow"), "{error}");
    pair.proxy.pass().await.unwrap();
    for expected in 0..sent {
        let BusEvent::Message(message) = next(&mut stream).await else { panic!("a gap") };
        assert_eq!(message[..4], expected.to_be_bytes(), "a message was dropped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_says_what_it_was_waiting_for() {
    let short = Duration::from_millis(300);
    let pair = Pair::on(server()).await;
    pair.proxy.freeze();
    assert!(timeout(short, pair.bus.subscribe(pair.topic())).await.is_err());
    let why = pair.bus.trouble().unwrap();
    assert!(why.contains("not connected yet") && why.contains("address"), "{why}");
    pair.proxy.pass().await.unwrap();
    in_time(async || pair.bus.publish(pair.topic(), "1".into()).await).await;
    assert_eq!(pair.bus.trouble(), None);
    // On a connection that has fallen silent.
    pair.proxy.freeze();
    assert!(timeout(short, pair.bus.publish(pair.topic(), "2".into())).await.is_err());
    let why = pair.bus.trouble().unwrap();
    assert!(why.contains("has not answered") && why.contains("memory"), "{why}");
}
