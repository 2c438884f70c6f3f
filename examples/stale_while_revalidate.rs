//! Stale-while-revalidate: with a grace, nobody waits for a refresh.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bentocache::{BentoCache, EventKind, Memory, Store};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), bentocache::Error> {
    // The soft timeout is 0 by default: a stale value is served at once.
    let store = Store::new().l1(Memory::new()).ttl("200ms").grace("1h");
    let cache = BentoCache::builder().store("rates", store).build().await?;

    let version = Arc::new(AtomicU32::new(0));
    let rate = || {
        let version = version.clone();
        cache.get_or_set("eur", move |_| async move {
            sleep(Duration::from_millis(100)).await; // a slow source
            Ok::<_, std::io::Error>(version.fetch_add(1, SeqCst) + 1)
        })
    };

    let start = Instant::now();
    println!("version {} after {:3} ms: the first caller waits", rate().await?, ms(start));

    sleep(Duration::from_millis(250)).await; // the ttl ends
    let mut events = cache.events();
    let start = Instant::now();
    let stale = rate().await?;
    println!("version {stale} after {:3} ms: stale, and a refresh begins", ms(start));
    assert_eq!(stale, 1);

    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::FactorySucceeded { background, took, .. } => {
                println!("a factory ran for {took:.0?}; in the background: {background}");
            }
            EventKind::Written { .. } => break, // its value is stored
            _ => {}
        }
    }
    let start = Instant::now();
    let fresh = rate().await?;
    println!("version {fresh} after {:3} ms: the new value", ms(start));
    assert_eq!(fresh, 2);
    cache.disconnect_all().await
}

fn ms(start: Instant) -> u128 {
    start.elapsed().as_millis()
}
