//! Memory (L1) in front of a directory (L2): the values survive a restart of the process.
//!
//! With Redis or a database as L2 the code is the same, and other processes find the values too.

#![allow(clippy::print_stdout)]

use std::path::Path;

use bentocache::file::File;
use bentocache::{BentoCache, BoxError, EventKind, Memory, Store};

/// What a process does when it starts.
async fn start(directory: &Path) -> Result<BentoCache, bentocache::Error> {
    let store = Store::new().l1(Memory::new()).l2(File::new(directory)).ttl("1h");
    BentoCache::builder().store("capitals", store).build().await
}

/// Reads through the cache and says where the value was found.
async fn capital(cache: &BentoCache) -> Result<String, bentocache::Error> {
    let mut events = cache.events();
    let load = |_| async { Ok::<_, std::io::Error>("Paris".to_owned()) };
    let capital = cache.get_or_set("capital:fr", load).await?;
    let mut found = "the source";
    while let Some(event) = events.try_next() {
        if let EventKind::Hit { tier, .. } = event.kind {
            found = tier.as_str();
        }
    }
    println!("  {capital}, from {found}");
    Ok(found.to_owned())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let directory = tempfile::tempdir()?;

    println!("the first process");
    let cache = start(directory.path()).await?;
    assert_eq!(capital(&cache).await?, "the source");
    assert_eq!(capital(&cache).await?, "l1");
    cache.disconnect_all().await?;

    println!("the second process: its memory is empty, the directory is not");
    let cache = start(directory.path()).await?;
    assert_eq!(capital(&cache).await?, "l2");
    assert_eq!(capital(&cache).await?, "l1");
    cache.disconnect_all().await?;
    Ok(())
}
