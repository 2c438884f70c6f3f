//! Helpers of all tests.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, Topic};
use testservers::NatsServer;

/// A server that the tests share; tests that break their server start their own.
pub(crate) fn server() -> &'static NatsServer {
    static SERVER: LazyLock<NatsServer> =
        LazyLock::new(|| testservers::shared("nats", NatsServer::start));
    &SERVER
}

/// The time limit for everything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A topic with a channel of this process: others may use the same server.
pub(crate) fn topic() -> Topic<'static> {
    static CHANNEL: LazyLock<String> =
        LazyLock::new(|| bentocache_testkit::unique("bentocache.notifications:test"));
    Topic::new(&CHANNEL, "app:")
}

pub(crate) async fn next(stream: &mut BusStream) -> BusEvent {
    let event = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
    let event = tokio::time::timeout(PATIENCE, event).await.expect("nothing comes");
    event.expect("the stream has ended")
}

pub(crate) async fn lost(stream: &mut BusStream) {
    assert_eq!(next(stream).await, BusEvent::Lost);
}

pub(crate) async fn restored(stream: &mut BusStream) {
    assert_eq!(next(stream).await, BusEvent::Restored);
}

/// Repeats a call until it succeeds.
pub(crate) async fn in_time<T>(mut call: impl AsyncFnMut() -> Result<T, DriverError>) -> T {
    let start = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < PATIENCE, "still after {PATIENCE:?}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes until one message arrives, and returns what came before.
pub(crate) async fn hears_again<B: BusDriver>(bus: &B, stream: &mut BusStream) -> Vec<BusEvent> {
    let mut before = Vec::new();
    in_time(async || bus.publish(topic(), "again".into()).await).await;
    loop {
        match next(stream).await {
            BusEvent::Message(message) if message == "again" => return before,
            event => before.push(event),
        }
    }
}
