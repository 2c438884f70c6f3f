//! Encrypted values on a real server.

use bentocache::{BentoCache, KeyRing, Store};
use bentocache_redis::Redis;
use testservers::RedisServer;

async fn cache(server: &RedisServer, ring: KeyRing) -> BentoCache {
    let store = Store::new().l2(Redis::new(server.url())).grace("1h").encryption(ring);
    BentoCache::builder().store("main", store).build().await.expect("a cache")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_value_is_readable_and_every_change_works() {
    let server = RedisServer::start();
    let one = cache(&server, KeyRing::new(1, [1; 32])).await;
    let both = cache(&server, KeyRing::new(2, [2; 32]).with_old(1, [1; 32])).await;
    let two = cache(&server, KeyRing::new(2, [2; 32])).await;
    one.set("k", "a secret".to_owned()).tags(["hidden tag"]).await.unwrap();
    let stored = server.cli(&["get", "bentocache:k"]);
    assert!(!stored.contains("secret") && !stored.contains("hidden"), "{stored}");
    assert_eq!(both.get::<String>("k").await.unwrap().as_deref(), Some("a secret"));
    assert_eq!(two.get::<String>("k").await.unwrap(), None);
    // Compared and exchanged, with another key.
    both.expire("k").await.unwrap();
    assert!(!two.has("k").await.unwrap());
    assert_eq!(two.get::<String>("k").await.unwrap().as_deref(), Some("a secret"));
    // Moved by hand.
    server.cli(&["copy", "bentocache:k", "bentocache:moved"]);
    assert_eq!(two.get::<String>("moved").await.unwrap(), None);
    assert_eq!(two.pull::<String>("k").await.unwrap().as_deref(), Some("a secret"));
    assert_eq!(server.cli(&["get", "bentocache:k"]), "");
}
