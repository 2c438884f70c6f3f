//! Whole caches, as the processes of a deployment have them.

use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Memory, Store};
use bentocache_file::File;
use bentocache_nats::NatsBus;
use testservers::NatsServer;

use crate::common::PATIENCE;

async fn cache(server: &NatsServer, directory: &Path) -> BentoCache {
    let bus = NatsBus::new(server.url());
    let store = Store::new().l1(Memory::new()).l2(File::new(directory)).bus(bus);
    BentoCache::builder().ttl("10m").store("main", store).build().await.expect("a cache")
}

async fn becomes(bento: &BentoCache, key: &str, wanted: Option<u32>) {
    let start = Instant::now();
    loop {
        let value = bento.get::<u32>(key).await.expect("an answer");
        if value == wanted {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{key} is {value:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Everything that one does is seen by the other, which has each value in its memory.
async fn hear_each_other(one: &BentoCache, two: &BentoCache) {
    for (from, to) in [(one, two), (two, one)] {
        from.set("k", 1_u32).await.unwrap();
        becomes(to, "k", Some(1)).await;
        from.set("k", 2_u32).await.unwrap();
        becomes(to, "k", Some(2)).await;
        from.delete("k").await.unwrap();
        becomes(to, "k", None).await;

        from.set("tagged", 3_u32).tags(["t"]).await.unwrap();
        becomes(to, "tagged", Some(3)).await;
        from.delete_by_tag(["t"]).await.unwrap();
        becomes(to, "tagged", None).await;

        from.set("a", 4_u32).await.unwrap();
        from.namespace("n").set("b", 5_u32).await.unwrap();
        becomes(to, "a", Some(4)).await;
        becomes(to, "n:b", Some(5)).await;
        from.namespace("n").clear().await.unwrap();
        becomes(to, "n:b", None).await;
        becomes(to, "a", Some(4)).await;
        from.clear().await.unwrap();
        becomes(to, "a", None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_hear_of_changes_also_after_a_restart_of_the_bus() {
    let server = NatsServer::start();
    let directory = tempfile::tempdir().unwrap();
    let [one, two] =
        [cache(&server, directory.path()).await, cache(&server, directory.path()).await];
    hear_each_other(&one, &two).await;

    // The gap: a change that no message tells of while the bus is away.
    one.set("gap", 1_u32).await.unwrap();
    becomes(&two, "gap", Some(1)).await;
    server.kill();
    one.set("gap", 2_u32).await.unwrap();
    assert_eq!(one.get::<u32>("gap").await.unwrap(), Some(2));
    server.restart();
    becomes(&two, "gap", Some(2)).await;
    hear_each_other(&one, &two).await;

    // A value that is on its way just when the link is back is taken back, as an invalidation may
    // have been missed. Once the link stands, none is.
    let (start, mut at) = (Instant::now(), 0);
    loop {
        let (key, factory) = (format!("made{at}"), |_| async { Ok::<_, Infallible>(7_u32) });
        assert_eq!(one.get_or_set(&key, factory).await.unwrap(), 7);
        if two.get::<u32>(&key).await.unwrap() == Some(7) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "what is made does not stay");
        at += 1;
    }
    for bento in [one, two] {
        bento.disconnect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_not_there_at_the_start_is_used_once_it_is() {
    let server = NatsServer::start();
    server.kill();
    let directory = tempfile::tempdir().unwrap();
    let [one, two] =
        [cache(&server, directory.path()).await, cache(&server, directory.path()).await];
    one.set("k", 1_u32).await.unwrap();
    becomes(&two, "k", Some(1)).await;
    server.restart();
    hear_each_other(&one, &two).await;
}
