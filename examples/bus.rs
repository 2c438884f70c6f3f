//! A bus: a change by one node invalidates the memory (L1) of the other nodes.
//!
//! Both nodes are in this process and use an `InProcessBus`. Processes use `RedisBus`, `NatsBus`,
//! `RabbitMqBus` or `PgNotifyBus` instead.

#![allow(clippy::print_stdout)]

use std::path::Path;

use bentocache::file::File;
use bentocache::{BentoCache, BoxError, EventKind, InProcessBus, Memory, Store};

async fn node(directory: &Path, bus: &InProcessBus) -> Result<BentoCache, bentocache::Error> {
    let store = Store::new().l1(Memory::new()).l2(File::new(directory)).bus(bus.clone());
    BentoCache::builder().ttl("10m").store("prices", store).build().await
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let directory = tempfile::tempdir()?;
    let bus = InProcessBus::new();
    let (a, b) = (node(directory.path(), &bus).await?, node(directory.path(), &bus).await?);

    a.set("price:tea", 3).await?;
    println!("node B reads {:?} and keeps it in its memory", b.get::<u32>("price:tea").await?);

    let mut events = b.events();
    a.set("price:tea", 4).await?;
    // Messages carry keys, never values: B marks its entry and reads L2 when it is next asked.
    while let Some(event) = events.next().await {
        if let EventKind::BusReceived { keys } = event.kind {
            println!("node A changes the price; node B receives a message with {keys} key");
            break;
        }
    }
    let price = b.get::<u32>("price:tea").await?;
    println!("node B reads {price:?}");
    assert_eq!(price, Some(4));

    a.disconnect_all().await?;
    b.disconnect_all().await?;
    Ok(())
}
