//! Whole caches on one table, as the processes of a deployment have them.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Memory, Store};
use bentocache_testkit::MapBus;
use testservers::{Dynalite, FaultProxy};

use crate::common::{PATIENCE, driver, installed, server, table};

async fn cache(url: &str, table: &str, bus: &MapBus) -> BentoCache {
    let store = Store::new().l1(Memory::new()).l2(driver(url, table)).bus(bus.clone());
    let builder = BentoCache::builder().ttl("10m").l2_timeout("none", "30s");
    builder.store("main", store.recovery(1_000, "100ms")).build().await.expect("a cache")
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

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_a_table() {
    let (table, bus) = (table().await, MapBus::new());
    let url = server().url();
    let [one, two] = [cache(&url, &table, &bus).await, cache(&url, &table, &bus).await];
    for (from, to) in [(&one, &two), (&two, &one)] {
        from.set("k", 1_u32).await.unwrap();
        becomes(to, "k", Some(1)).await;
        from.set("k", 2_u32).await.unwrap();
        becomes(to, "k", Some(2)).await;
        assert!(from.delete("k").await.unwrap());
        becomes(to, "k", None).await;
        assert!(!from.delete("k").await.unwrap());
        from.set("tagged", 3_u32).tags(["t"]).await.unwrap();
        becomes(to, "tagged", Some(3)).await;
        from.delete_by_tag(["t"]).await.unwrap();
        becomes(to, "tagged", None).await;
        from.set("a", 4_u32).await.unwrap();
        from.namespace("n").set("b", 5_u32).await.unwrap();
        from.namespace("n").clear().await.unwrap();
        becomes(to, "n:b", None).await;
        becomes(to, "a", Some(4)).await;
        from.clear().await.unwrap();
        becomes(to, "a", None).await;
        let made = |_| async { Ok::<_, Infallible>(6_u32) };
        assert_eq!(from.get_or_set("made", made).await.unwrap(), 6);
        becomes(to, "made", Some(6)).await;
        from.delete("made").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_during_an_absence_are_repeated() {
    let server = Dynalite::start(installed());
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let url = format!("http://{}", proxy.addr());
    let (table, bus) = ("cache", MapBus::new());
    driver(&url, table).create_table().await.unwrap();
    let bento = cache(&url, table, &bus).await;
    server.kill();
    proxy.refuse().await.unwrap();
    bento.set("k", 1_u32).await.unwrap();
    assert_eq!(bento.get::<u32>("k").await.unwrap(), Some(1));
    // It comes back empty, and a write that found no table would be given up.
    server.restart();
    driver(&server.url(), table).create_table().await.unwrap();
    proxy.pass().await.unwrap();
    let other = cache(&url, table, &bus).await;
    becomes(&other, "k", Some(1)).await;
}
