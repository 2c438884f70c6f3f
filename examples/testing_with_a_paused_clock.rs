//! Test code that depends on hours without waiting for them: pause tokio's clock, and give the cache
//! a clock that follows it.
//!
//! In a test, write `#[tokio::test(start_paused = true)]` in place of the attribute of `main`.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Memory, Store, TokioTime};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), bentocache::Error> {
    let began = Instant::now();
    let store = Store::new().l1(Memory::new()).ttl("1h").grace("12h").timeout("none");
    let cache = BentoCache::builder()
        .clock(TokioTime::new()) // the only line that a test adds
        .store("news", store)
        .build()
        .await?;

    let runs = Arc::new(AtomicU32::new(0));
    let read = || {
        let runs = runs.clone();
        cache.get_or_set("news", move |_| async move {
            match runs.fetch_add(1, SeqCst) + 1 {
                3.. => Err("the source is down"),
                run => Ok(format!("edition {run}")),
            }
        })
    };

    println!("at  0:00: {}", read().await?);
    tokio::time::advance(HOUR / 2).await;
    println!("at  0:30: {} (fresh)", read().await?);
    assert_eq!(runs.load(SeqCst), 1);

    tokio::time::advance(HOUR).await;
    println!("at  1:30: {} (the ttl of 1 h has ended)", read().await?);
    assert_eq!(runs.load(SeqCst), 2);

    tokio::time::advance(HOUR * 12).await;
    println!("at 13:30: {} (stale: the source is down)", read().await?);

    tokio::time::advance(HOUR * 2).await;
    let error = read().await.expect_err("no value is left");
    println!("at 15:30: {error}");
    assert_eq!(runs.load(SeqCst), 4);
    println!("that took {} ms", began.elapsed().as_millis());
    cache.disconnect_all().await
}
