//! Grace, soft timeout and hard timeout: what callers get when the source fails or is slow.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use bentocache::{BentoCache, Context, Error, EventKind, Memory, Store};
use tokio::time::sleep;

/// A source that answers after a while.
async fn slow(_: Context<String>) -> Result<String, std::io::Error> {
    sleep(Duration::from_secs(1)).await;
    Ok("a new report".to_owned())
}

/// A source that is down.
async fn down(_: Context<String>) -> Result<String, std::io::Error> {
    Err(std::io::Error::other("the source is down"))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let store = Store::new().l1(Memory::new()).grace_backoff("0s");
    let cache = BentoCache::builder().store("reports", store).build().await?;

    println!("no stale value, the source is down");
    let error = cache.get_or_set("none", down).grace("1h").await.expect_err("no value");
    println!("  {error}");

    println!("no stale value, the source is slow: the hard timeout");
    let error = cache.get_or_set("late", slow).hard_timeout("50ms").await.expect_err("late");
    println!("  {error}");
    assert!(matches!(error, Error::HardTimeout { .. }));

    // Fresh for a moment, then usable as a stale value for an hour.
    cache.set("report", "an old report".to_owned()).ttl("10ms").grace("1h").await?;
    sleep(Duration::from_millis(50)).await;

    println!("a stale value, the source is down: grace");
    let report = cache.get_or_set("report", down).grace("1h").timeout("none").await?;
    println!("  {report}");
    assert_eq!(report, "an old report");

    println!("a stale value, the source is slow: the soft timeout");
    let (start, mut events) = (Instant::now(), cache.events());
    let report = cache.get_or_set("report", slow).grace("1h").timeout("100ms").await?;
    println!("  {report}, after {} ms", start.elapsed().as_millis());
    assert_eq!(report, "an old report");

    while let Some(event) = events.next().await {
        if matches!(&event.kind, EventKind::Written { key } if key == "report") {
            break;
        }
    }
    let report: Option<String> = cache.get("report").await?;
    println!("  the factory went on in the background: {}", report.as_deref().unwrap_or("-"));
    assert_eq!(report.as_deref(), Some("a new report"));
    cache.disconnect_all().await
}
