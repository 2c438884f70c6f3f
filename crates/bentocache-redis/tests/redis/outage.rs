//! One node of three loses its link to a real server. What another node invalidates meanwhile does not
//! come back.

use std::time::{Duration, Instant};

use bentocache::{BentoCache, Error, Memory, Store};
use bentocache_redis::{Redis, RedisBus};
use testservers::{FaultProxy, RedisServer};

async fn node(url: &str) -> BentoCache {
    let store = Store::new().l1(Memory::new()).l2(Redis::new(url)).bus(RedisBus::new(url));
    BentoCache::builder().store("main", store).build().await.expect("a cache")
}

/// Only those that are invalidated by it: a tag that cannot be read makes a value stale by itself.
fn tag_of(key: &str) -> Option<&'static str> {
    key.ends_with(":tag").then_some("t")
}

async fn set(node: &BentoCache, key: &str, value: u32) {
    node.set(key, value).tags(tag_of(key)).await.expect("kept, at least");
}

/// Writes in the ways that could bring a value back. Each has its own key for each invalidation.
const WRITES: [&str; 3] = ["fill", "set", "over"];
const INVALIDATIONS: [&str; 5] = ["delete", "delete_many", "expire", "pull", "tag"];

fn keys() -> impl Iterator<Item = (&'static str, &'static str, String)> {
    let of = |write| INVALIDATIONS.map(|how| (write, how, format!("{write}:{how}")));
    WRITES.into_iter().flat_map(of)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_while_a_link_was_cut_does_not_come_back() {
    for is_half_open in [false, true] {
        let server = RedisServer::start();
        let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
        let a = node(&format!("redis://{}", proxy.addr())).await;
        let (b, c) = (node(&server.url()).await, node(&server.url()).await);
        for (_, _, key) in keys().filter(|(write, ..)| *write == "over") {
            set(&b, &key, 1).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        if is_half_open {
            proxy.freeze();
        } else {
            proxy.refuse().await.expect("no link");
        }

        for (write, _, key) in keys() {
            match write {
                "fill" => {
                    let fill =
                        a.get_or_set(&key, |_| async { Ok::<_, Error>(2_u32) }).tags(tag_of(&key));
                    assert_eq!(fill.await.expect("its own value"), 2);
                }
                _ => set(&a, &key, 2).await,
            }
        }
        // What comes later is of a later millisecond.
        tokio::time::sleep(Duration::from_millis(5)).await;
        for (_, how, key) in keys() {
            match how {
                "delete" => {
                    let _ = b.delete(&key).await.expect("done");
                }
                "delete_many" => {
                    let _ = b.delete_many([&key]).await.expect("done");
                }
                "expire" => b.expire(&key).await.expect("done"),
                "pull" => {
                    let _ = b.pull::<u32>(&key).await.expect("done");
                }
                _ => b.delete_by_tag(["t"]).await.expect("done"),
            }
        }
        proxy.pass().await.expect("a link");

        let by = Instant::now() + Duration::from_secs(5);
        loop {
            let mut left = Vec::new();
            for (_, _, key) in keys() {
                for (name, node) in [("a", &a), ("b", &b), ("c", &c)] {
                    if node.get::<u32>(&key).await.expect("an answer").is_some() {
                        left.push(format!("{name} has {key}"));
                    }
                }
            }
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < by, "half-open: {is_half_open}: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // And nothing comes later.
        tokio::time::sleep(Duration::from_secs(4)).await;
        for (_, _, key) in keys() {
            let stored = server.cli(&["get", &format!("bentocache:{key}")]);
            let is_fresh = c.get::<u32>(&key).await.expect("an answer").is_some();
            assert!(!is_fresh, "half-open: {is_half_open}: {key} is {stored}");
        }
    }
}
