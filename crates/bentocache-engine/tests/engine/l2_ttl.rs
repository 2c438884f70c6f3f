//! `l2_ttl`: how long L2 keeps a value, fresh and stale together.

use crate::common::{World, fill, get, get_stale, leap, pass, secs, settle};
use bentocache::Error;
use bentocache_testkit::Ops;

const MINUTE: u64 = 60_000;

fn minutes(fresh: u64, end: u64) -> (Option<u64>, Option<u64>) {
    (Some(fresh * MINUTE), Some(end * MINUTE))
}

#[tokio::test(start_paused = true)]
async fn it_limits_the_times_in_the_document_and_its_expiry() {
    let node = World::new().node().await;
    node.set("fresh", 1_u32).ttl("1h").grace("2h").l2_ttl("10m").await.unwrap();
    assert_eq!(node.life("fresh"), minutes(10, 10));
    assert_eq!(node.remaining("fresh"), Some(secs(600)));
    node.set("stale", 1_u32).ttl("10m").grace("2h").l2_ttl("30m").await.unwrap();
    assert_eq!(node.life("stale"), minutes(10, 30));
    assert_eq!(node.remaining("stale"), Some(secs(1_800)));
    node.set("longer", 1_u32).ttl("10m").grace("20m").l2_ttl("1h").await.unwrap();
    assert_eq!(node.life("longer"), minutes(10, 30));
    node.set_forever("forever", 1_u32).l2_ttl("10m").await.unwrap();
    assert_eq!(node.life("forever"), minutes(10, 10));
    assert_eq!(node.remaining("forever"), Some(secs(600)));
    node.set_forever("none", 1_u32).l2_ttl("none").await.unwrap();
    assert_eq!(node.life("none"), (None, None));
    node.set("jitter", 1_u32).ttl("9m").jitter("1d").l2_ttl("10m").await.unwrap();
    assert!(node.remaining("jitter").unwrap() <= secs(600));
    node.set("tags", 1_u32).ttl("1h").tags(["t"]).l2_ttl("10m").await.unwrap();
    assert_eq!(node.life("tags"), minutes(10, 10));
}

#[tokio::test(start_paused = true)]
async fn every_level_and_every_operation_that_stores_has_it() {
    let world = World::new();
    let all = world.node_with(|all| all.l2_ttl("10m"), |store| store).await;
    all.set("k", 1_u32).await.unwrap();
    assert_eq!(all.life("k"), minutes(10, 10));
    let own = world.node_with(|all| all.l2_ttl("10m"), |store| store.l2_ttl("5m")).await;
    own.set("k", 1_u32).await.unwrap();
    assert_eq!(own.life("k"), minutes(5, 5));
    own.set_many([("a", 1_u32)]).l2_ttl("4m").await.unwrap();
    assert_eq!(own.life("a"), minutes(4, 4));
    assert!(own.add("added", 1_u32).l2_ttl("4m").await.unwrap());
    assert_eq!(own.life("added"), minutes(4, 4));
    fill(&own, "filled", 1).await;
    assert_eq!(own.life("filled"), minutes(5, 5));
    let one = |_| async { Ok::<_, Error>(1_u32) };
    own.get_or_set("b", one).l2_ttl("3m").await.unwrap();
    assert_eq!(own.life("b"), minutes(3, 3));
    own.get_or_set_scoped("c", one).l2_ttl("3m").await.unwrap();
    assert_eq!(own.life("c"), minutes(3, 3));
    let many = |_| async { Ok::<_, Error>([("d", 1_u32)]) };
    own.get_or_set_many(["d"], many).l2_ttl("3m").await.unwrap();
    assert_eq!(own.life("d"), minutes(3, 3));
    let decides = own.get_or_set("e", |cx| async move {
        cx.l2_ttl("2m");
        Ok::<_, Error>(1_u32)
    });
    decides.l2_ttl("3m").await.unwrap();
    assert_eq!(own.life("e"), minutes(2, 2));
}

#[tokio::test(start_paused = true)]
async fn other_processes_keep_the_value_no_longer() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).ttl("1h").grace("1h").l2_ttl("10m").await.unwrap();
    pass(secs(599)).await;
    assert_eq!(get(&b, "k").await, Some(1));
    pass(secs(1)).await;
    assert_eq!(get_stale(&b, "k").await, None, "neither fresh nor stale");
    assert_eq!(a.document("k"), None);
}

#[tokio::test(start_paused = true)]
async fn the_l1_of_the_writer_keeps_its_own_ttl_until_it_is_compared() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set_many([("k", 1_u32), ("gap", 1)]).ttl("1h").grace("1h").l2_ttl("10m").await.unwrap();
    leap(secs(300)).await;
    a.bus.cut();
    a.bus.restore();
    settle().await;
    // Compared with L2, it has the rest of the time there.
    assert_eq!(get(&a, "gap").await, Some(1));
    leap(secs(301)).await;
    assert_eq!(get(&a, "gap").await, None);
    assert_eq!(get(&b, "k").await, None);
    a.set("k", 2_u32).ttl("1h").grace("1h").l2_ttl("10m").await.unwrap();
    leap(secs(3_000)).await;
    assert_eq!(get(&a, "k").await, Some(2));
    leap(secs(601)).await;
    assert_eq!((get(&a, "k").await, get_stale(&a, "k").await), (None, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_replayed_ends_as_if_it_had_been_in_time() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 2_u32).ttl("1h").l2_ttl("10m").await.unwrap();
    pass(secs(60)).await;
    node.l2.calm();
    pass(secs(10)).await;
    assert_eq!(node.document("k").unwrap()["value"], 2);
    assert_eq!(node.life("k"), minutes(10, 10));
    assert!(node.remaining("k").unwrap() <= secs(540));
}

#[tokio::test(start_paused = true)]
async fn an_expired_value_keeps_no_more_than_the_rest_of_it() {
    let node = World::new().node().await;
    node.set("k", 1_u32).ttl("10m").grace("2h").l2_ttl("30m").await.unwrap();
    pass(secs(60)).await;
    node.expire("k").await.unwrap();
    assert_eq!(node.remaining("k"), Some(secs(1_740)));
}

#[tokio::test(start_paused = true)]
async fn a_store_without_l2_ignores_it() {
    let node = World::only_l1().node().await;
    node.set("k", 1_u32).ttl("1h").l2_ttl("10m").await.unwrap();
    pass(secs(3_599)).await;
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn zero_is_rejected() {
    let node = World::new().node().await;
    let error = node.set("k", 1_u32).l2_ttl("0s").await.unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "l2_ttl", .. }), "{error}");
    assert_eq!(node.document("k"), None);
}
