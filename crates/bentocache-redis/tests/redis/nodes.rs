//! Nodes must learn of each other's changes over the bus, the bus on a cluster, and client
//! tracking: the same cases for each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Memory, Store};
use bentocache_redis::{Redis, RedisBus};
use bentocache_testkit::suite::HOSTILE;
use tokio::sync::Notify;

use crate::common::{cluster, server};

/// Runs every case with nodes that are opened by that, each case with a prefix of its own.
macro_rules! nodes {
    (@cases $open:expr; $($case:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            let prefix = bentocache_testkit::unique("nodes-");
            super::$case(async || super::node($open, &prefix).await).await;
        })*
    };
    ($name:ident, $open:expr) => {
        mod $name {
            use super::*;

            nodes! { @cases $open;
                a_set_replaces_what_others_have
                removals_reach_others
                an_expiry_leaves_a_stale_value
                a_namespace_is_cleared_and_no_other
                tags_invalidate_everywhere
                hostile_keys_are_kept_apart
                batches_arrive_whole
                a_writer_keeps_its_own_values
                an_invalidation_during_a_factory_reaches_what_it_produces
            }
        }
    };
}

nodes!(by_bus, || {
    let url = server().url();
    Store::new().l2(Redis::new(&url)).bus(RedisBus::new(url))
});
nodes!(by_tracking, || {
    let redis = Redis::new(server().url());
    let tracking = redis.tracking();
    Store::new().l2(redis).bus(tracking)
});
nodes!(by_bus_on_a_cluster, || {
    let urls = cluster().urls();
    Store::new().l2(Redis::cluster(urls.clone())).bus(RedisBus::cluster(urls))
});

async fn node(open: impl Fn() -> Store, prefix: &str) -> BentoCache {
    let builder = BentoCache::builder().ttl("10m").grace("1h").timeout("1m").prefix(prefix);
    builder.store(prefix, open().l1(Memory::new())).build().await.expect("a node")
}

/// The node's value, or `fresh` if the factory had to run.
async fn read(node: &BentoCache, key: &str, fresh: u32) -> u32 {
    let factory = move |_| async move { Ok::<_, Infallible>(fresh) };
    node.get_or_set(key, factory).tags(["numbers"]).await.expect("a value")
}

/// Waits until the node has that under the key, if anything, and fresh.
async fn becomes(node: &BentoCache, key: &str, wanted: Option<u32>) {
    let start = Instant::now();
    loop {
        let found: Option<u32> = node.get(key).grace("off").await.expect("an answer");
        if found == wanted {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{key:?} is {found:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Two nodes that have the keys in their L1.
async fn pair(open: impl AsyncFn() -> BentoCache, keys: &[&str]) -> [BentoCache; 2] {
    let nodes = [open().await, open().await];
    for key in keys {
        assert_eq!(read(&nodes[0], key, 1).await, 1);
        becomes(&nodes[1], key, Some(1)).await;
        becomes(&nodes[0], key, Some(1)).await;
    }
    nodes
}

async fn a_set_replaces_what_others_have(open: impl AsyncFn() -> BentoCache) {
    let [one, two] = pair(open, &["a"]).await;
    one.set("a", 2_u32).await.expect("set");
    becomes(&two, "a", Some(2)).await;
    two.set("a", 3_u32).await.expect("set");
    becomes(&one, "a", Some(3)).await;
}

async fn removals_reach_others(open: impl AsyncFn() -> BentoCache) {
    let [one, two] = pair(open, &["a", "b", "c", "d", "e"]).await;
    assert!(one.delete("a").await.expect("delete"));
    assert_eq!(one.delete_many(["b", "c"]).await.expect("delete_many"), 2);
    assert_eq!(one.pull::<u32>("d").await.expect("pull"), Some(1));
    for key in ["a", "b", "c", "d"] {
        becomes(&two, key, None).await;
    }
    becomes(&two, "e", Some(1)).await;
}

async fn an_expiry_leaves_a_stale_value(open: impl AsyncFn() -> BentoCache) {
    let [one, two] = pair(open, &["a"]).await;
    one.expire("a").await.expect("expire");
    becomes(&two, "a", None).await;
    assert_eq!(two.get::<u32>("a").await.expect("an answer"), Some(1), "under grace");
    assert_eq!(read(&two, "a", 2).await, 2);
    becomes(&one, "a", Some(2)).await;
}

async fn a_namespace_is_cleared_and_no_other(open: impl AsyncFn() -> BentoCache) {
    let [one, two] = pair(open, &["a:x", "ab:x", "a*:x"]).await;
    one.namespace("a").clear().await.expect("clear");
    becomes(&two, "a:x", None).await;
    becomes(&two, "ab:x", Some(1)).await;
    becomes(&two, "a*:x", Some(1)).await;
    one.clear().await.expect("clear");
    becomes(&two, "ab:x", None).await;
}

async fn tags_invalidate_everywhere(open: impl AsyncFn() -> BentoCache) {
    let [one, two] = pair(open, &["a", "b"]).await;
    one.set("c", 1_u32).await.expect("set");
    one.delete_by_tag(["numbers"]).await.expect("delete_by_tag");
    becomes(&two, "a", None).await;
    becomes(&two, "b", None).await;
    becomes(&two, "c", Some(1)).await;
    assert_eq!(read(&two, "a", 2).await, 2);
    becomes(&one, "a", Some(2)).await;
}

async fn hostile_keys_are_kept_apart(open: impl AsyncFn() -> BentoCache) {
    let keys: Vec<&str> = HOSTILE.iter().copied().filter(|key| !key.is_empty()).collect();
    let [one, two] = pair(open, &keys).await;
    for (at, key) in keys.iter().enumerate() {
        one.set(*key, 100 + at as u32).await.expect("set");
        becomes(&two, key, Some(100 + at as u32)).await;
    }
    for (at, key) in keys.iter().enumerate() {
        becomes(&two, key, Some(100 + at as u32)).await;
    }
}

async fn batches_arrive_whole(open: impl AsyncFn() -> BentoCache) {
    let keys: Vec<String> = (0..500).map(|at| format!("k{at}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let [one, two] = pair(open, &keys[..50]).await;
    one.set_many(keys.iter().map(|key| (key, 2_u32))).await.expect("set_many");
    for key in &keys {
        becomes(&two, key, Some(2)).await;
    }
    assert_eq!(one.delete_many(&keys).await.expect("delete_many"), 500);
    for key in &keys {
        becomes(&two, key, None).await;
    }
}

async fn a_writer_keeps_its_own_values(open: impl AsyncFn() -> BentoCache) {
    let [one, two] = pair(open, &["last"]).await;
    for at in 0..50 {
        one.set(format!("k{at}"), at).await.expect("set");
    }
    // The others receive our last write after all earlier ones.
    one.set("last", 2_u32).await.expect("set");
    becomes(&two, "last", Some(2)).await;
    for at in 0..50 {
        assert_eq!(read(&one, &format!("k{at}"), 999).await, at, "taken back");
        assert_eq!(read(&two, &format!("k{at}"), 999).await, at, "taken back from the others");
    }
}

/// Nothing is stored under the key when it is invalidated, so that the server has nothing to report.
async fn an_invalidation_during_a_factory_reaches_what_it_produces(
    open: impl AsyncFn() -> BentoCache,
) {
    let [one, two] = [open().await, open().await];
    for operation in ["delete", "delete_many", "expire", "pull", "clear"] {
        let [started, go_on] = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let producing = tokio::spawn({
            let (one, started, go_on) = (one.clone(), started.clone(), go_on.clone());
            async move {
                let factory = |_| async move {
                    started.notify_one();
                    go_on.notified().await;
                    Ok::<_, Infallible>(1)
                };
                one.get_or_set(operation, factory).await.expect("a value")
            }
        });
        started.notified().await;
        match operation {
            "delete" => drop(two.delete(operation).await.expect("delete")),
            "delete_many" => drop(two.delete_many([operation]).await.expect("delete_many")),
            "pull" => drop(two.pull::<u32>(operation).await.expect("pull")),
            "expire" => two.expire(operation).await.expect("expire"),
            _ => two.clear().await.expect("clear"),
        }
        go_on.notify_one();
        assert_eq!(producing.await.expect("no panic"), 1);
        becomes(&one, operation, None).await;
        becomes(&two, operation, None).await;
    }
}
