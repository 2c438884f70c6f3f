//! An L2 of your own in four methods and a name. `ledger.rs` is a complete driver with tests.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bentocache::driver::{Capabilities, DriverError, L2Driver};
use bentocache::{BentoCache, Memory, Store};
use bytes::Bytes;

/// A value, and when it expires.
type Row = (Bytes, Option<Instant>);

/// Clones share their rows, as clients of one server do.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<String, Row>>>);

impl L2Driver for Shelf {
    fn name(&self) -> &'static str {
        "shelf"
    }

    /// Not a server: only this process uses it.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_local()
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let rows = self.0.lock().unwrap();
        let row = rows.get(key).filter(|(_, end)| end.is_none_or(|end| Instant::now() < end));
        Ok(row.map(|(value, _)| value.clone()))
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        let end = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        self.0.lock().unwrap().insert(key.to_owned(), (value, end));
        Ok(())
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let mut rows = self.0.lock().unwrap();
        Ok(keys.iter().filter(|key| rows.remove(**key).is_some()).count() as u64)
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        // The prefix is literal, never a pattern.
        self.0.lock().unwrap().retain(|key, _| !key.starts_with(prefix));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), bentocache::Error> {
    let shelf = Shelf::default();
    let store = Store::new().l1(Memory::new()).l2(shelf.clone());
    let cache = BentoCache::builder().store("main", store).build().await?;
    cache.set("answer", 42).await?;
    for (key, (value, _)) in shelf.0.lock().unwrap().iter() {
        println!("{key} = {}", String::from_utf8_lossy(value));
    }
    assert!(shelf.0.lock().unwrap().contains_key("bentocache:answer"));
    cache.disconnect_all().await
}
