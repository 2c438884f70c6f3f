//! Servers that the tests share; tests that break their server start their own.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, Topic};
use futures_core::Stream;
use testservers::{RedisCluster, RedisServer};

/// The largest value in the suites: enough for their cases, and not the half gigabyte that a
/// server takes.
pub(crate) const MOST: usize = 65 << 20;

pub(crate) fn server() -> &'static RedisServer {
    static SERVER: LazyLock<RedisServer> =
        LazyLock::new(|| testservers::shared("redis", RedisServer::start));
    &SERVER
}

pub(crate) fn cluster() -> &'static RedisCluster {
    static CLUSTER: LazyLock<RedisCluster> =
        LazyLock::new(|| testservers::shared("redis-cluster", || RedisCluster::start(3)));
    &CLUSTER
}

/// The time limit for everything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    let item = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx));
    let item = tokio::time::timeout(PATIENCE, item).await.expect("nothing comes");
    item.expect("the stream has ended")
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
pub(crate) async fn hears_again<B: BusDriver>(
    bus: &B,
    topic: Topic<'_>,
    stream: &mut BusStream,
) -> Vec<BusEvent> {
    let (mut before, start) = (Vec::new(), Instant::now());
    loop {
        in_time(async || bus.publish(topic, "again".into()).await).await;
        // A subscription that is being restored misses messages published before.
        let heard = async {
            loop {
                match next(stream).await {
                    BusEvent::Message(message) if message == "again" => break,
                    event => before.push(event),
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(2), heard).await {
            Ok(()) => return before,
            Err(_) => assert!(start.elapsed() < PATIENCE, "nothing comes"),
        }
    }
}
