//! Synchronous code: the cache runs on a tokio runtime, the callers are plain threads.

#![allow(clippy::print_stdout)]

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use bentocache::{BentoCache, BoxError, Memory, Store};

static RUNS: AtomicU32 = AtomicU32::new(0);

/// A slow, blocking source.
fn load(key: &str) -> Result<String, std::io::Error> {
    RUNS.fetch_add(1, SeqCst);
    thread::sleep(Duration::from_millis(50));
    Ok(format!("the value of {key}"))
}

fn main() -> Result<(), BoxError> {
    // The runtime must live as long as the cache; it need not run `main`.
    let runtime = tokio::runtime::Runtime::new()?;
    let store = Store::new().l1(Memory::new());
    let cache = runtime.block_on(BentoCache::builder().store("main", store).build())?;
    let cache = cache.blocking();

    thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| cache.get_or_set("report", |cx| load(cx.key())));
        }
    });
    println!("8 threads asked at once; the factory ran {} time", RUNS.load(SeqCst));
    assert_eq!(RUNS.load(SeqCst), 1);

    println!("get:  {:?}", cache.get::<String>("report")?);

    // `wait` runs any request of the asynchronous handle, with its options.
    cache.wait(cache.inner().set("report", "by hand".to_owned()).ttl("5m"))?;
    println!("wait: {:?}", cache.get::<String>("report")?);

    cache.disconnect()?;
    Ok(())
}
