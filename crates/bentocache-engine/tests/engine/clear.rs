//! `clear`, `clear_all` and `prune`.

use crate::common::{World, get, get_stale, ms, pass, secs, settle};
use bentocache::driver::L2Driver;
use bentocache::{BentoCache, Memory, Store, TokioTime};
use bentocache_testkit::{MapL2, Ops};

/// Worlds whose L2 can clear by prefix, and worlds whose L2 cannot.
fn worlds() -> [World; 5] {
    let (both, only_l2) = (World::new(), World::only_l2());
    [
        both,
        only_l2,
        World::only_l1(),
        World::new().without_clear(),
        World::only_l2().without_clear(),
    ]
}

#[tokio::test(start_paused = true)]
async fn everything_is_gone_in_every_tier_and_on_every_node() {
    everything_is_gone(World::new()).await;
}

#[tokio::test(start_paused = true)]
async fn everything_is_gone_on_every_node_also_where_the_second_tier_cannot_clear() {
    everything_is_gone(World::new().without_clear()).await;
}

async fn everything_is_gone(world: World) {
    let (a, b) = (world.node_where(|s| s.grace("1h")).await, world.node().await);
    for key in ["a", "b:c", "users:1"] {
        a.set(key, 1_u32).await.unwrap();
        assert_eq!(get(&b, key).await, Some(1));
    }
    a.clear().await.unwrap();
    settle().await;
    assert!(world.l2.is_empty() || !world.l2.capabilities().clear);
    for key in ["a", "b:c", "users:1"] {
        assert_eq!(get_stale(&a, key).await, None);
        assert_eq!(get_stale(&b, key).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_clears_only_itself_and_what_is_under_it() {
    for world in worlds() {
        let node = world.node().await;
        let keys = ["users:1", "users:eu:2", "usersAbc", "usersAbc:1", "user", "users", "k"];
        for key in keys {
            node.set(key, 1_u32).await.unwrap();
        }
        node.namespace("users").clear().await.unwrap();
        let mut left = Vec::new();
        for key in keys {
            if get(&node, key).await.is_some() {
                left.push(key);
            }
        }
        assert_eq!(left, ["usersAbc", "usersAbc:1", "user", "users", "k"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_cleared_on_other_nodes_too() {
    for world in [World::new(), World::new().without_clear()] {
        a_namespace_is_cleared_on_other_nodes(world).await;
    }
}

async fn a_namespace_is_cleared_on_other_nodes(world: World) {
    let (a, b) = (world.node().await, world.node().await);
    for key in ["users:1", "users:eu:2", "usersAbc:1", "k"] {
        a.set(key, 1_u32).await.unwrap();
        settle().await;
        get(&b, key).await;
    }
    a.namespace("users").clear().await.unwrap();
    settle().await;
    b.seen.take();
    for key in ["users:1", "users:eu:2", "usersAbc:1", "k"] {
        get(&b, key).await;
    }
    assert_eq!(
        b.seen.reads(),
        ["miss users:1", "miss users:eu:2", "hit l1 usersAbc:1", "hit l1 k"]
    );
}

/// `app*` cleared other applications' keys, `app_1` too, `app[1]` cleared nothing.
#[tokio::test(start_paused = true)]
async fn a_prefix_is_never_a_pattern() {
    let prefixes = ["app*", "app_1", "app[1]", "app%", "app?", "app.", "app\\", "app"];
    let others = ["appx", "app11", "appX1", "app1", "app1:x", "appy:x", "ap:x", "APP:x", "app"];
    for prefix in prefixes {
        let world = World::new();
        let node = world.node_where(|s| s.prefix(prefix)).await;
        for other in others.iter().filter(|other| **other != prefix) {
            world.l2.put(&format!("{other}:k"), "foreign", None);
        }
        let foreign = world.l2.len();
        node.set("k", 1_u32).await.unwrap();
        node.namespace("n_*").set("k", 1_u32).await.unwrap();
        node.clear().await.unwrap();
        assert_eq!(world.l2.len(), foreign, "{prefix}");
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(get(&node, "n_*:k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn other_prefixes_in_the_same_store_are_untouched() {
    let world = World::new();
    let one = world.node_where(|s| s.prefix("app")).await;
    let other = world.node_where(|s| s.prefix("app2")).await;
    one.set("k", 1_u32).await.unwrap();
    other.set("k", 2_u32).await.unwrap();
    one.clear().await.unwrap();
    settle().await;
    other.seen.take();
    assert_eq!(get(&other, "k").await, Some(2));
    assert_eq!(other.seen.reads(), ["hit l1 k"]);
    assert_eq!(world.l2.all_keys(), ["app2:k"]);
}

/// In Node an empty prefix cleared nothing in memory.
#[tokio::test(start_paused = true)]
async fn an_empty_prefix_clears_the_memory() {
    let node = World::only_l1().node_where(|s| s.prefix("")).await;
    node.set("k", 1_u32).await.unwrap();
    node.namespace("n").set("k", 1_u32).await.unwrap();
    node.clear().await.unwrap();
    assert_eq!(get(&node, "k").await, None);
    assert_eq!(get(&node, "n:k").await, None);
}

/// Peers that receive the message before L2 is empty load entries that are about to be cleared.
#[tokio::test(start_paused = true)]
async fn the_second_tier_comes_first_then_the_announcement() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    node.bus.reset_calls();
    node.l2.on(Ops::CLEAR).hold();
    let clear = tokio::spawn({
        let cache = node.cache.clone();
        async move { cache.clear().await }
    });
    node.l2.held(1).await;
    pass(secs(10)).await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
    node.l2.release();
    clear.await.unwrap().unwrap();
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 1);
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_began_before_does_not_bring_back_what_was_cleared() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    node.l2.on(Ops::GET).hold_after();
    let reader = tokio::spawn({
        let cache = node.cache.clone();
        async move { cache.get::<u32>("k").await.unwrap() }
    });
    node.l2.held(1).await;
    node.clear().await.unwrap();
    node.l2.release();
    assert_eq!(reader.await.unwrap(), Some(1), "it still gets its value");
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_clear_that_failed_is_announced_queued_and_repeated() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    get(&b, "k").await;
    settle().await;
    a.bus.reset_calls();
    a.l2.on(Ops::CLEAR).fail();
    a.clear().await.unwrap();
    assert_eq!(get(&a, "k").await, None, "as it will be");
    a.set("later", 2_u32).await.unwrap();
    a.l2.calm();
    pass(secs(5)).await;
    assert_eq!(world.l2.all_keys(), ["bentocache:later"]);
    assert_eq!(get(&b, "k").await, None);
    assert_eq!(get(&b, "later").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_l2_failure_that_is_not_suppressed_is_an_error_and_the_first_tier_is_empty() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.on(Ops::CLEAR).fail();
    assert!(node.clear().suppress_l2_errors(false).await.is_err());
    node.l2.fail();
    assert_eq!(get_stale(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn clear_can_go_unannounced() {
    let node = World::new().node().await;
    node.clear().skip_bus_notify(true).await.unwrap();
    settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn tags_work_after_a_clear() {
    for world in worlds() {
        let node = world.node().await;
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        node.delete_by_tag(["t"]).await.unwrap();
        node.clear().await.unwrap();
        node.set("k", 2_u32).tags(["t"]).await.unwrap();
        assert_eq!(get(&node, "k").await, Some(2));
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(get(&node, "k").await, None);
    }
}

/// Many entries, because a scan of many entries runs on another thread.
#[tokio::test(start_paused = true)]
async fn a_large_memory_is_cleared_by_namespace_too() {
    let node = World::only_l1().node().await;
    node.set_many(
        (0..6_000_u32).map(|i| (format!("{}:{i}", if i % 2 == 0 { "even" } else { "odd" }), i)),
    )
    .await
    .unwrap();
    node.namespace("even").clear().await.unwrap();
    assert_eq!(get(&node, "even:10").await, None);
    assert_eq!(get(&node, "odd:11").await, Some(11));
    node.clear().await.unwrap();
    assert_eq!(get(&node, "odd:11").await, None);
}

#[tokio::test(start_paused = true)]
async fn clear_all_clears_every_store() {
    let maps = [MapL2::new(), MapL2::new()];
    let store = |i: usize| Store::new().l1(Memory::new()).l2(maps[i].clone());
    let cache = BentoCache::builder()
        .clock(TokioTime::new())
        .store("a", store(0))
        .store("b", store(1))
        .store("c", Store::new().l1(Memory::new()))
        .default_store("a")
        .build()
        .await
        .unwrap();
    for name in ["a", "b", "c"] {
        cache.store(name).unwrap().set("k", 1_u32).await.unwrap();
    }
    cache.clear().await.unwrap();
    assert!(maps[0].is_empty() && !maps[1].is_empty(), "`clear` is one store's");
    cache.set("k", 1_u32).await.unwrap();
    cache.clear_all().await.unwrap();
    assert!(maps[0].is_empty() && maps[1].is_empty());
    for name in ["a", "b", "c"] {
        assert_eq!(get(&cache.store(name).unwrap(), "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn prune_removes_what_is_past_its_end_and_nothing_else() {
    let world = World::only_l2();
    let node = world.node().await;
    node.set("short", 1_u32).ttl("1s").await.unwrap();
    node.set("stale", 1_u32).ttl("1s").grace("1h").await.unwrap();
    node.set("long", 1_u32).await.unwrap();
    node.set_forever("forever", 1_u32).await.unwrap();
    assert_eq!(node.prune().await.unwrap(), 0);
    pass(ms(1_100)).await;
    assert_eq!(world.l2.stored(), 4);
    assert_eq!(node.prune().await.unwrap(), 1);
    assert_eq!(world.l2.stored(), 3);
    let memory = World::only_l1().node().await;
    memory.set_many([("a", 1_u32), ("b", 2_u32)]).ttl("500ms").await.unwrap();
    memory.set("c", 3_u32).await.unwrap();
    pass(ms(600)).await;
    assert_eq!(memory.prune().await.unwrap(), 2);
    assert_eq!(get(&memory, "c").await, Some(3));
}
