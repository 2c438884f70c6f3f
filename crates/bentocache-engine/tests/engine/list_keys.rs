//! `keys`: the keys of a handle, for administration.

use crate::common::{World, ms, pass, secs};
use bentocache::driver::ErrorKind;
use bentocache::{Cache, Error};
use bentocache_testkit::Ops;

async fn sorted(cache: &Cache, start: &str) -> Vec<String> {
    let mut keys = cache.keys(start).all().await.unwrap();
    keys.sort();
    keys
}

#[tokio::test(start_paused = true)]
async fn it_lists_the_keys_of_the_handle_without_prefix_and_namespace() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        let other = world.node_where(|store| store.prefix("bento")).await;
        other.set("cachex", 1_u32).await.unwrap();
        let users = node.namespace("users");
        node.set_many([("a", 1_u32), ("userszzz", 1), ("é:*", 1), ("___bcx", 1)]).await.unwrap();
        users.set_many([("1", 1_u32), ("12", 1), ("2", 1)]).await.unwrap();
        users.namespace("deep").set("x", 1_u32).await.unwrap();
        assert_eq!(
            sorted(&node, "").await,
            ["___bcx", "a", "users:1", "users:12", "users:2", "users:deep:x", "userszzz", "é:*"]
        );
        assert_eq!(sorted(&users, "").await, ["1", "12", "2", "deep:x"]);
        assert_eq!(sorted(&users, "1").await, ["1", "12"]);
        assert_eq!(sorted(&node, "users:d").await, ["users:deep:x"]);
        assert_eq!(sorted(&node, "é:*").await, ["é:*"]);
        assert_eq!(sorted(&node, "A").await, [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_the_cache_itself_are_left_out() {
    for world in [World::new(), World::only_l1(), World::new().without_clear()] {
        let node = world.node().await;
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        node.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
        node.expire_by_tag(["t"]).await.unwrap();
        node.namespace("n").expire_by_tag(["t"]).await.unwrap();
        assert_eq!(sorted(&node, "").await, ["k", "n:k"]);
        assert_eq!(sorted(&node, "___bc").await, [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn stale_keys_are_listed_and_dead_ones_are_not() {
    for world in [World::new(), World::only_l1()] {
        let node = world.node().await;
        node.set("dead", 1_u32).ttl("10s").await.unwrap();
        node.set("stale", 1_u32).ttl("10s").grace("1h").await.unwrap();
        node.set("deleted", 1_u32).await.unwrap();
        node.delete("deleted").await.unwrap();
        pass(secs(11)).await;
        assert_eq!(sorted(&node, "").await, ["stale"]);
    }
}

#[tokio::test(start_paused = true)]
async fn with_an_l2_its_keys_are_listed() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("there", 1_u32).await.unwrap();
    b.set("here", 1_u32).skip_l2_write(true).await.unwrap();
    assert_eq!(sorted(&b, "").await, ["there"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_listed_while_others_write() {
    let node = World::only_l1().node().await;
    for at in 0..20_000 {
        node.set(format!("k{at}"), at).await.unwrap();
    }
    let (cache, stop) = (node.cache.clone(), tokio::sync::oneshot::channel::<()>());
    let (end, mut ended) = stop;
    let writer = tokio::spawn(async move {
        let mut at = 0;
        while ended.try_recv().is_err() {
            cache.set(format!("new{at}"), at).await.unwrap();
            cache.delete(format!("new{}", at / 2)).await.unwrap();
            at += 1;
            tokio::task::yield_now().await;
        }
    });
    let keys = sorted(&node, "k").await;
    end.send(()).unwrap();
    writer.await.unwrap();
    assert_eq!(keys.len(), 20_000);
    assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "none twice");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_l2_is_an_error_and_the_end() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.on(Ops::KEYS).fail();
    let mut keys = node.keys("");
    assert!(matches!(keys.next().await, Some(Err(Error::L2 { operation: "keys", .. }))));
    assert!(keys.next().await.is_none());
    let failures = node.stats().l2.unwrap().failures;
    assert_eq!((failures, node.seen.texts().last().unwrap().as_str()), (1, "l2 failed keys"));
    node.l2.calm();
    assert_eq!(sorted(&node, "").await, ["k"]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_hangs_is_left_after_a_minute() {
    let node = World::new().node().await;
    node.l2.on(Ops::KEYS).hang();
    let start = tokio::time::Instant::now();
    let Err(Error::L2 { source, .. }) = node.keys("").all().await else { panic!("no error") };
    assert_eq!((source.kind(), start.elapsed().as_secs()), (ErrorKind::Timeout, 60));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_cache_has_no_keys_and_a_closed_one_fails() {
    let off = World::new().node_where(|store| store.enabled(false)).await;
    assert_eq!(sorted(&off, "").await, [""; 0]);
    let node = World::new().node().await;
    node.disconnect_all().await.unwrap();
    let mut keys = node.keys("");
    assert!(matches!(keys.next().await, Some(Err(Error::Closed { .. }))));
    assert!(keys.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_handle_has_it() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(node.typed::<u32>().keys("k").all().await.unwrap(), ["k"]);
    let blocking = node.cache.blocking();
    let keys = tokio::task::spawn_blocking(move || {
        blocking.keys("").collect::<Result<Vec<_>, _>>().unwrap()
    });
    assert_eq!(keys.await.unwrap(), ["k"]);
    let blocking = node.cache.blocking();
    node.l2.on(Ops::KEYS).fail();
    let results = tokio::task::spawn_blocking(move || blocking.keys("").count());
    assert_eq!(results.await.unwrap(), 1, "one error, then the end");
    pass(ms(1)).await;
}
