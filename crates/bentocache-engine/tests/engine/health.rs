//! Health: a real round trip, bounded, through an open breaker; and what readiness follows from it.

use std::time::{Duration, SystemTime};

use crate::common::{World, get, ms, pass, secs, settle};
use bentocache::driver::ErrorKind;
use bentocache::{BentoCache, BreakerState, Memory, Store, StoreHealth, TimeSource};
use bentocache_testkit::{ChaosL2, MapL2, Ops};

/// The time of the world as tests compare it.
fn now(world: &World) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(world.clock.epoch_ms())
}

fn is_degraded_but_ready(health: &StoreHealth) -> bool {
    health.is_degraded() && health.is_ready() && health.is_open
}

#[tokio::test(start_paused = true)]
async fn a_store_of_one_tier_in_memory_is_ready_and_makes_no_call() {
    let node = World::only_l1().node().await;
    let health = node.health().await;
    assert!(health.is_live() && health.is_ready() && !health.is_degraded());
    let [store] = &*health.stores else { panic!("one store") };
    assert!(&*store.store == "s" && store.l2.is_none() && store.bus.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_round_trip_is_one_read_and_its_time_is_the_latency() {
    let world = World::new();
    let node = world.node().await;
    settle().await;
    node.l2.reset_calls();
    node.l2.on(Ops::GET).slow(ms(30));
    let health = node.health().await;
    let health = &health.stores[0];
    assert_eq!(node.l2.calls(), 1);
    let l2 = health.l2.as_ref().unwrap();
    assert!(l2.is_reachable() && l2.error.is_none());
    assert_eq!((l2.latency, l2.parts, l2.failed_parts), (ms(30), 1, 0));
    assert_eq!((l2.breaker, l2.recovery_length), (BreakerState::Closed, 0));
    assert!(health.bus.as_ref().unwrap().is_linked && !health.is_degraded());
    assert!(node.map.is_empty(), "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn a_failing_tier_is_told_with_its_error_and_since_when() {
    let world = World::new();
    let node = world.node_where(|s| s.l2_circuit_breaker("10m", 1).recovery(100, "1h")).await;
    pass(secs(10)).await;
    let began = now(&world);
    node.l2.fail();
    node.set("k", 1_u32).await.unwrap();
    pass(secs(60)).await;
    // The breaker is open, and the round trip is made nevertheless.
    node.l2.reset_calls();
    let health = node.cache.store("s").unwrap().health().await;
    assert_eq!(node.l2.calls(), 1);
    let l2 = health.l2.as_ref().unwrap();
    assert_eq!(l2.error.as_ref().unwrap().kind(), ErrorKind::Unavailable);
    assert_eq!((l2.failed_parts, l2.since, l2.breaker), (1, began, BreakerState::Open));
    assert_eq!(l2.recovery_length, 1);
    assert!(is_degraded_but_ready(&health));

    // It works again: the same round trip finds that out, and closes the breaker.
    node.l2.calm();
    let ended = now(&world);
    let health = node.cache.store("s").unwrap().health().await;
    let l2 = health.l2.as_ref().unwrap();
    assert!(l2.is_reachable());
    assert_eq!((l2.since, l2.breaker), (ended, BreakerState::Closed));
    pass(secs(30)).await;
    let health = node.cache.store("s").unwrap().health().await;
    assert_eq!(health.l2.as_ref().unwrap().since, ended, "it is still the same state");
    assert_eq!(health.l2.as_ref().unwrap().recovery_length, 0, "the breaker's end woke the replay");
    assert!(!health.is_degraded());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_needs_its_second_tier_is_not_ready_without_it() {
    let node = World::only_l2().node().await;
    node.l2.fail();
    let health = node.health().await;
    assert!(!health.is_ready() && health.is_live() && node.is_live());
    assert!(!health.stores[0].tolerates_l2_failures);
    let node = World::only_l2().node_where(|s| s.suppress_l2_errors(true)).await;
    node.l2.fail();
    assert!(is_degraded_but_ready(&node.health().await.stores[0]));
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_hangs_is_asked_for_as_long_as_its_hard_timeout() {
    for (timeout, expected) in [("300ms", ms(300)), ("none", secs(5))] {
        let node = World::new().node_where(|s| s.l2_timeout("none", timeout)).await;
        node.l2.hang();
        let start = tokio::time::Instant::now();
        let health = node.health().await;
        assert_eq!(start.elapsed(), expected);
        let l2 = health.stores[0].l2.as_ref().unwrap();
        assert_eq!(l2.error.as_ref().unwrap().kind(), ErrorKind::Timeout);
        assert_eq!(l2.latency, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn all_stores_are_asked_at_the_same_time() {
    let slow = || {
        let l2 = ChaosL2::new(MapL2::new());
        l2.chaos().on(Ops::GET).slow(ms(200));
        Store::new().l1(Memory::new()).l2(l2)
    };
    let builder = BentoCache::builder().store("a", slow()).store("b", slow()).store("c", slow());
    let cache = builder.default_store("a").build().await.unwrap();
    let start = tokio::time::Instant::now();
    let health = cache.health().await;
    assert_eq!(start.elapsed(), ms(200));
    let names: Vec<_> = health.stores.iter().map(|store| &*store.store).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_down_is_told_and_since_when() {
    let world = World::new();
    let node = world.node().await;
    pass(secs(10)).await;
    let down = now(&world);
    node.bus.cut();
    pass(secs(5)).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(2)).await;
    let health = node.health().await;
    let bus = health.stores[0].bus.as_ref().unwrap();
    assert!(!bus.is_linked && bus.since == down, "{bus:?}");
    assert_eq!((bus.outbox_length, bus.lag), (1, secs(2)));
    assert!(is_degraded_but_ready(&health.stores[0]));
    node.bus.restore();
    settle().await;
    let health = node.health().await;
    let bus = health.stores[0].bus.as_ref().unwrap();
    assert!(bus.is_linked && bus.since > down, "{bus:?}");
    assert!(!health.is_degraded());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_disconnected_is_not_live() {
    let node = World::new().node().await;
    node.disconnect().await.unwrap();
    node.l2.reset_calls();
    let health = node.health().await;
    assert!(!health.is_live() && !health.is_ready() && health.is_degraded());
    assert!(!node.is_live());
    assert_eq!(node.l2.calls(), 0, "its driver is closed");
}

#[tokio::test(start_paused = true)]
async fn a_disabled_store_is_ready_and_calls_no_driver() {
    let node = World::new().node_where(|s| s.enabled(false)).await;
    node.l2.fail();
    let health = node.health().await;
    assert!(health.is_ready() && !health.is_degraded());
    assert_eq!(node.l2.calls(), 0);
}

/// A round trip is no read of the application.
#[tokio::test(start_paused = true)]
async fn a_round_trip_counts_as_a_call_and_not_as_a_miss() {
    let node = World::only_l2().node().await;
    let before = node.stats();
    node.health().await;
    let after = node.stats();
    assert_eq!((after.reads(), after.l2.unwrap().calls), (0, before.l2.unwrap().calls + 1));
    assert_eq!(get(&node, "none").await, None);
}

#[test]
fn it_works_on_a_thread_without_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Store::new().l1(Memory::new()).l2(MapL2::new());
    let cache = runtime.block_on(BentoCache::builder().store("m", store).build()).unwrap();
    let health = cache.blocking().health().unwrap();
    assert!(health.is_ready() && health.l2.unwrap().is_reachable());
    drop(runtime);
    let health = cache.blocking().health().unwrap();
    assert!(!health.is_open && health.l2.is_none());
}
