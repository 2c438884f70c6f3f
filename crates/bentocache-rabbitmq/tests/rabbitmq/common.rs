//! What the tests have in common.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use bentocache_driver::{BusEvent, BusStream, DriverError, Topic};
use testservers::{Certificates, RabbitMqServer};

/// The certificates of all servers.
pub(crate) fn certificates() -> &'static Certificates {
    static CERTIFICATES: LazyLock<Certificates> = LazyLock::new(|| server().certificates());
    &CERTIFICATES
}

/// A server that the tests share, because each takes ten seconds to start. It speaks TLS, too.
pub(crate) fn server() -> &'static RabbitMqServer {
    static SERVER: LazyLock<RabbitMqServer> = LazyLock::new(|| {
        let start = || RabbitMqServer::start_with_tls(&Certificates::make(), false);
        testservers::shared("rabbitmq", start)
    });
    &SERVER
}

/// A server to be broken, by one test at a time. Over TLS it wants to know its clients.
pub(crate) async fn breakable() -> MutexGuard<'static, RabbitMqServer> {
    static SERVER: LazyLock<Mutex<RabbitMqServer>> =
        LazyLock::new(|| Mutex::new(RabbitMqServer::start_with_tls(certificates(), true)));
    SERVER.lock().await
}

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// With a channel of this process: others may use the same server.
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
