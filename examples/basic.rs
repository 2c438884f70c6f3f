//! One cache in memory: `get_or_set`, `get`, `set` and `delete`.

#![allow(clippy::print_stdout)]

use std::time::Duration;

use bentocache::{BentoCache, Memory, Store};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
}

/// A slow database.
async fn load_user(id: u32) -> Result<User, std::io::Error> {
    println!("  the database is asked for user {id}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(User { name: format!("user {id}") })
}

#[tokio::main]
async fn main() -> Result<(), bentocache::Error> {
    let cache = BentoCache::builder()
        .ttl("5m")
        .store("users", Store::new().l1(Memory::new().max_items(10_000)))
        .build()
        .await?;

    println!("get_or_set: a miss runs the factory and stores its value");
    let user = cache.get_or_set("user:42", |_| load_user(42)).await?;
    println!("  {user:?}");

    println!("get_or_set: a hit does not run the factory");
    let user = cache.get_or_set("user:42", |_| load_user(42)).ttl("1m").await?;
    println!("  {user:?}");

    println!("set: replaces the value");
    cache.set("user:42", User { name: "Ada".to_owned() }).await?;
    let user: Option<User> = cache.get("user:42").await?;
    println!("  get: {user:?}");
    assert_eq!(user, Some(User { name: "Ada".to_owned() }));

    println!("delete: removes it");
    assert!(cache.delete("user:42").await?);
    let user: Option<User> = cache.get("user:42").await?;
    println!("  get: {user:?}");
    assert_eq!(user, None);

    cache.disconnect_all().await
}
