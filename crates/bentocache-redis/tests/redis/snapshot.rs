//! A snapshot of L1 with Redis as L2: what was invalidated while the process was down is never
//! served.

use bentocache::{BentoCache, Memory, Store};
use bentocache_redis::{Redis, RedisBus};

use crate::common::server;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_meanwhile_is_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let (path, prefix) = (directory.path().join("l1"), bentocache_testkit::unique("snapshot-"));
    let node = async |memory: Memory| {
        let url = server().url();
        let store = Store::new().l1(memory).l2(Redis::new(&url)).bus(RedisBus::new(url));
        let builder = BentoCache::builder().ttl("10m").grace("1h").prefix(&prefix);
        builder.store("s", store).build().await.unwrap()
    };
    let with_snapshot = || Memory::new().snapshot(&path);
    let (first, other) = (node(with_snapshot()).await, node(Memory::new()).await);
    let keys = ["kept", "set", "deleted", "expired", "n:cleared", "tagged"];
    for key in keys {
        first.set(key, 1_u32).tags([key]).await.unwrap();
    }
    first.disconnect().await.unwrap();

    other.set("set", 2_u32).await.unwrap();
    other.delete("deleted").await.unwrap();
    other.expire("expired").await.unwrap();
    other.namespace("n").clear().await.unwrap();
    other.delete_by_tag(["tagged"]).await.unwrap();

    let again = node(with_snapshot()).await;
    assert_eq!(again.stats().l1.unwrap().entries, keys.len(), "all were loaded");
    let fresh = async |key| again.get::<u32>(key).grace("off").await.unwrap();
    assert_eq!((fresh("kept").await, fresh("set").await), (Some(1), Some(2)));
    for key in ["deleted", "expired", "n:cleared", "tagged"] {
        assert_eq!(fresh(key).await, None, "{key}");
        let factory = |_| async { Ok::<_, bentocache::Error>(3_u32) };
        assert_eq!(again.get_or_set(key, factory).timeout("none").await.unwrap(), 3, "{key}");
    }
}
