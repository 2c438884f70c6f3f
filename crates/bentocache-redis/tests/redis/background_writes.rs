//! `l2_write_in_background` on a real server that is frozen, killed and full.

use std::time::{Duration, Instant};

use bentocache::{BentoCache, Error, Memory, Store};
use bentocache_redis::{Redis, RedisBus};
use testservers::RedisServer;

async fn node(url: &str) -> BentoCache {
    let store = Store::new()
        .l1(Memory::new())
        .l2(Redis::new(url))
        .bus(RedisBus::new(url))
        .recovery(10_000, "100ms")
        .l2_write_in_background(true);
    BentoCache::builder().store("main", store).build().await.expect("a cache")
}

/// Waits until the node reads this value.
async fn until(node: &BentoCache, key: &str, value: Option<u32>) {
    let start = Instant::now();
    loop {
        let found = node.get::<u32>(key).await.expect("an answer");
        if found == value {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{key}: {found:?}, not {value:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Frozen,
    Killed,
    Full,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_during_a_fault_reaches_the_other_node_in_the_end() {
    for fault in [Fault::Frozen, Fault::Killed, Fault::Full] {
        let server = RedisServer::start_with(&["--appendonly", "yes"]);
        let (a, b) = (node(&server.url()).await, node(&server.url()).await);
        for key in ["over", "deleted"] {
            a.set(key, 1_u32).await.expect("a set");
        }
        a.flush().await.expect("a server that works");
        until(&b, "over", Some(1)).await;

        match fault {
            Fault::Frozen => server.freeze(),
            Fault::Killed => server.kill(),
            Fault::Full => server.config("maxmemory", "1"),
        }
        let start = Instant::now();
        a.set("over", 2_u32).await.expect("L1 has it");
        a.set("over", 3_u32).await.expect("L1 has it");
        // The calls did not wait; the machine of the tests is busy.
        assert!(start.elapsed() < Duration::from_millis(900), "{fault:?}: {:?}", start.elapsed());
        let filled = a.get_or_set("fill", |_| async { Ok::<_, Error>(4_u32) }).await;
        assert_eq!(filled.expect("the factory's"), 4);
        a.set("deleted", 5_u32).await.expect("L1 has it");
        a.delete("deleted").await.expect("queued, at least");
        assert_eq!(a.get::<u32>("over").await.expect("L1"), Some(3), "{fault:?}");
        assert_eq!(a.get::<u32>("deleted").await.expect("L1"), None, "{fault:?}");

        match fault {
            Fault::Frozen => server.thaw(),
            Fault::Killed => server.restart(),
            Fault::Full => server.config("maxmemory", "0"),
        }
        until(&b, "over", Some(3)).await;
        until(&b, "deleted", None).await;
        assert_eq!(a.get::<u32>("over").await.expect("an answer"), Some(3), "{fault:?}");
        a.flush().await.expect("nothing waits");
        let new = node(&server.url()).await;
        assert_eq!(new.get::<u32>("over").await.expect("an answer"), Some(3), "{fault:?}");
        assert_eq!(new.get::<u32>("deleted").await.expect("an answer"), None, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_that_set_one_key_end_with_the_last_value() {
    let server = RedisServer::start();
    let (a, b) = (node(&server.url()).await, node(&server.url()).await);
    let mut last = 0;
    for value in 1..=2_000_u32 {
        a.set("k", value).await.expect("a set");
        last = value;
    }
    a.flush().await.expect("a server that works");
    let stored = server.cli(&["GET", "bentocache:k"]);
    assert!(stored.contains(&format!("\"value\":{last}")), "{stored}");
    until(&b, "k", Some(last)).await;
}
