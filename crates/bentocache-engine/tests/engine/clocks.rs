//! Wrong wall clocks: steps of this process's clock, and differences to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use crate::common::{Node, World, fill, get, get_stale, pass, secs};
use crate::races::Skewed;
use bentocache::{Context, Error, TimeSource, TokioTime};

const DAY: i64 = 24 * 3_600_000;

/// A wall clock that steps by this many milliseconds on demand.
#[derive(Clone)]
struct Stepping(TokioTime, Arc<AtomicI64>);

impl Stepping {
    fn new() -> Self {
        Self(TokioTime::new(), Arc::default())
    }

    fn step(&self, by: i64) {
        self.1.fetch_add(by, SeqCst);
    }
}

impl TimeSource for Stepping {
    fn monotonic_ms(&self) -> u64 {
        self.0.monotonic_ms()
    }

    fn epoch_ms(&self) -> u64 {
        self.0.epoch_ms().saturating_add_signed(self.1.load(SeqCst))
    }
}

fn worlds() -> [World; 3] {
    [World::only_l1(), World::only_l2(), World::new()]
}

async fn stepping(world: &World) -> (Node, Stepping) {
    let clock = Stepping::new();
    let own = clock.clone();
    (world.node_with(|builder| builder.clock(own), |store| store.grace("1h")).await, clock)
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_ahead_expires_nothing() {
    for world in worlds() {
        let (node, clock) = stepping(&world).await;
        node.set("k", 1_u32).ttl("10m").await.unwrap();
        clock.step(DAY);
        assert!(node.has("k").await.unwrap());
        assert_eq!(fill(&node, "k", 2).await, 1, "it is fresh");
        pass(secs(8 * 60)).await;
        assert_eq!(fill(&node, "k", 2).await, 1, "a tenth less at most");
        pass(secs(3 * 60)).await;
        assert!(!node.has("k").await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_back_keeps_nothing_beyond_its_ttl() {
    for world in worlds() {
        let (node, clock) = stepping(&world).await;
        node.set("k", 1_u32).ttl("10m").await.unwrap();
        clock.step(-DAY);
        // A value written after the step, too.
        node.set("l", 1_u32).ttl("10m").await.unwrap();
        pass(secs(8 * 60)).await;
        assert!(node.has("k").await.unwrap() && node.has("l").await.unwrap());
        // At most a tenth more.
        pass(secs(3 * 60 + 10)).await;
        assert!(!node.has("k").await.unwrap() && !node.has("l").await.unwrap());
    }
}

/// A process whose clock is a day ahead of all others.
async fn ahead(world: &World) -> Node {
    ahead_by(world, DAY).await
}

async fn ahead_by(world: &World, ms: i64) -> Node {
    let clock = |builder: bentocache::Builder| builder.clock(Skewed(TokioTime::new(), ms));
    world.node_with(clock, |store| store.grace("1h")).await
}

#[tokio::test(start_paused = true)]
async fn an_entry_from_the_future_is_fresh_for_its_ttl_and_no_longer() {
    let world = World::new();
    let (node, wrong) = (world.node_where(|s| s.grace("1h")).await, ahead(&world).await);
    wrong.set("k", 1_u32).ttl("10s").await.unwrap();
    pass(secs(1)).await;
    assert_eq!(get(&node, "k").await, Some(1));
    pass(secs(11)).await;
    assert!(!node.has("k").await.unwrap());
    assert_eq!(crate::races::fresh(&node, "k").await, None);
    fill(&node, "k", 2).await;
    pass(secs(1)).await;
    assert_eq!(get(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_entry_from_the_future_does_not_win_over_a_newer_write() {
    let world = World::without_bus();
    let (node, wrong) = (world.node_where(|s| s.grace("1h")).await, ahead(&world).await);
    wrong.set("k", 1_u32).ttl("2s").await.unwrap();
    assert_eq!(get(&node, "k").await, Some(1));
    // Another process with the right time; both become stale.
    let third = world.node_where(|s| s.grace("1h")).await;
    third.set("k", 2_u32).ttl("2s").await.unwrap();
    pass(secs(5)).await;
    assert_eq!(get_stale(&node, "k").await, Some(2));
}

/// In the form of the Node library: with tags, and without the markers that it saw.
#[tokio::test(start_paused = true)]
async fn an_entry_from_the_future_does_not_outlive_the_invalidation_of_its_tag() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        let now = world.clock.epoch_ms();
        let put = |created_at: u64| {
            let json = serde_json::json!({
                "value": 1, "createdAt": created_at, "tags": ["t"],
                "logicalExpiration": created_at + 3_600_000,
            });
            node.map.put("bentocache:k", json.to_string().into_bytes(), None);
        };
        put(now + DAY as u64);
        assert_eq!(get(&node, "k").await, Some(1), "no invalidation at all");
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(get(&node, "k").await, None);
        // Nor does a reader that has never seen it.
        assert_eq!(get(&world.node().await.cache, "k").await, None);
        // Clocks may differ by a little.
        put(now + 30_000);
        assert_eq!(get(&world.node().await.cache, "k").await, Some(1));
    }
}

/// The marker comes from a process whose clock is ahead, so that it seems to be younger than the
/// call.
#[tokio::test(start_paused = true)]
async fn an_invalidation_by_a_clock_that_is_ahead_counts_for_who_calls_after_it() {
    let worlds = || [World::new(), World::without_bus()];
    for (world, by) in
        worlds().into_iter().zip([5_000, 5_000]).chain(worlds().into_iter().zip([DAY, DAY]))
    {
        let (node, wrong) = (world.node().await, ahead_by(&world, by).await);
        let held = crate::races::Source::held();
        let first = crate::races::go(node.get_or_set("k", held.gives(1_u32)).tags(["t"]));
        held.begun(1).await;
        wrong.delete_by_tag(["t"]).await.unwrap();
        crate::common::settle().await;
        // The marker is known here before the call begins.
        pass(secs(1)).await;
        node.set("other", 0_u32).tags(["t"]).await.unwrap();
        let second = node.get_or_set("k", crate::races::Source::new().gives(2_u32)).tags(["t"]);
        let second = crate::races::go(second);
        crate::races::calm().await;
        held.release();
        assert_eq!(first.await.unwrap().unwrap(), 1);
        let second = second.await.unwrap().map_err(|error: Error| error.to_string());
        assert_eq!(second, Ok(2), "{by} ms ahead");
    }
}

/// A flight cannot know a tag that its factory will add.
#[tokio::test(start_paused = true)]
async fn an_invalidation_by_a_clock_that_is_ahead_counts_for_a_tag_that_a_factory_adds() {
    for by in [5_000, DAY] {
        let world = World::new();
        let (node, wrong) = (world.node().await, ahead_by(&world, by).await);
        let held = crate::races::Source::held();
        let run = held.clone();
        let first = crate::races::go(node.get_or_set("k", move |cx: Context<u32>| async move {
            run.run().await;
            cx.tags(["t"]);
            Ok::<_, Error>(1)
        }));
        held.begun(1).await;
        wrong.delete_by_tag(["t"]).await.unwrap();
        pass(secs(1)).await;
        let second =
            crate::races::go(node.get_or_set("k", crate::races::Source::new().gives(2_u32)));
        crate::races::calm().await;
        held.release();
        assert_eq!(first.await.unwrap().unwrap(), 1);
        assert_eq!(second.await.unwrap().unwrap(), 2, "{by} ms ahead");
    }
}
