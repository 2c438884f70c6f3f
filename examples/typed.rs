//! A typed handle: one value type and one namespace for a part of the program.

#![allow(clippy::print_stdout)]

use std::io;

use bentocache::{BentoCache, Memory, Store, Typed};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    age: u8,
}

/// The rest of the program needs no type annotations and no key prefixes.
struct Users {
    cached: Typed<User>,
}

impl Users {
    fn new(cache: &BentoCache) -> Self {
        Self { cached: cache.namespace("users").typed() }
    }

    async fn find(&self, name: &str) -> Result<User, bentocache::Error> {
        let row = User { name: name.to_owned(), age: 36 }; // from a database
        self.cached.get_or_set(name, |_| async { Ok::<_, io::Error>(row) }).ttl("10m").await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), bentocache::Error> {
        if let Some(user) = self.cached.pull(from).await? {
            self.cached.set(to, User { name: to.to_owned(), ..user }).await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), bentocache::Error> {
    let store = Store::new().l1(Memory::new());
    let cache = BentoCache::builder().store("main", store).build().await?;
    let users = Users::new(&cache);

    println!("find:   {:?}", users.find("Ada").await?);
    users.rename("Ada", "Grace").await?;
    println!("rename: {:?}", users.cached.get_many(["Ada", "Grace"]).await?);

    // Operations without values are on the handle inside. Other handles see the same keys.
    assert!(users.cached.cache().has("Grace").await?);
    let grace: Option<User> = cache.get("users:Grace").await?;
    println!("users:Grace through the whole store: {grace:?}");
    assert_eq!(grace, Some(User { name: "Grace".to_owned(), age: 36 }));
    cache.disconnect_all().await
}
