//! The hit path: an L1 hit allocates nothing and calls no driver.

// Tests may unwrap: the panic shows the failed call.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

#[path = "engine/common/mod.rs"]
mod common;

use std::future::{Future, IntoFuture};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use bentocache::{BentoCache, Cache, Error, Memory, Store};
use common::{SharedTime, World, secs};

/// Polls once: a hit is there at once.
fn now<R: IntoFuture>(request: R) -> R::Output {
    let mut future = pin!(request.into_future());
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a hit that waits"),
    }
}

/// Runs it once to warm up what is allocated once per thread, then counts the allocations of many
/// runs.
#[track_caller]
fn allocates_nothing(mut run: impl FnMut()) {
    run();
    let info = measure(|| (0..100).for_each(|_| run()));
    assert_eq!(info.count_total, 0, "{info:?}");
}

async fn produce() -> Result<u64, Error> {
    panic!("no factory runs on a hit")
}

/// All ways to hit a `u64` under the key.
#[track_caller]
fn all_hits(cache: &Cache, key: &str) {
    allocates_nothing(|| assert_eq!(black_box(now(cache.get::<u64>(key))).unwrap(), Some(7)));
    allocates_nothing(|| assert_eq!(now(cache.get::<u64>(key).grace("1h")).unwrap(), Some(7)));
    allocates_nothing(|| assert_eq!(now(cache.get_or_set(key, |_| produce())).unwrap(), 7));
    allocates_nothing(|| {
        assert_eq!(now(cache.get_or_set(key, |_| produce()).ttl("5m")).unwrap(), 7);
    });
    allocates_nothing(|| {
        let value = now(cache.get_or_set(key, |_| produce()).ttl("5m").tags(["a", "b", "c"]));
        assert_eq!(value.unwrap(), 7);
    });
    allocates_nothing(|| {
        let value = now(cache.get_or_set(key, |_| produce()).ttl(secs(300)).grace("6h").optional());
        assert_eq!(value.unwrap(), Some(7));
    });
    allocates_nothing(|| {
        let value = now(cache.get_or_set(key, |_| produce()).early_refresh(0.1).grace("6h"));
        assert_eq!(value.unwrap(), 7);
    });
    allocates_nothing(|| {
        assert_eq!(now(cache.get_or_set_forever(key, |_| produce())).unwrap(), 7);
    });
}

#[tokio::test(start_paused = true)]
async fn a_hit_of_the_first_tier_allocates_nothing() {
    let store = Store::new().l1(Memory::new());
    let clock = SharedTime::default();
    let cache = BentoCache::builder().clock(clock).store("m", store).build().await.unwrap();
    cache.set("plain", 7_u64).await.unwrap();
    cache.set("tagged", 7_u64).tags(["a", "b", "c"]).await.unwrap();
    all_hits(&cache, "plain");
    all_hits(&cache, "tagged");
}

/// The built-in memory is called by its own type; any other driver, such as one that is shared, by
/// its trait.
#[tokio::test(start_paused = true)]
async fn a_hit_of_any_driver_allocates_nothing() {
    let store = Store::new().l1(Arc::new(Memory::new()));
    let clock = SharedTime::default();
    let cache = BentoCache::builder().clock(clock).store("m", store).build().await.unwrap();
    let users = cache.namespace("users");
    for cache in [&*cache, &users] {
        cache.set("tagged", 7_u64).tags(["a", "b", "c"]).await.unwrap();
        all_hits(cache, "tagged");
    }
}

/// The other tests prove nothing if nothing is counted.
#[tokio::test]
async fn what_allocates_is_counted() {
    let store = Store::new().l1(Memory::new());
    let cache = BentoCache::builder().store("m", store).build().await.unwrap();
    let miss = measure(|| assert_eq!(now(cache.get::<u64>("none")).unwrap(), None));
    assert!(miss.count_total > 0);
}

#[tokio::test]
async fn the_systems_clock_allocates_nothing_either() {
    let store = Store::new().l1(Memory::new().max_size("10mb"));
    let cache = BentoCache::builder().store("m", store).build().await.unwrap();
    let users = cache.namespace("users").namespace("eu");
    users.set("plain", 7_u64).await.unwrap();
    users.set("tagged", 7_u64).tags(["a", "b", "c"]).await.unwrap();
    all_hits(&users, "plain");
    all_hits(&users, "tagged");
    let long = "k".repeat(1_000);
    cache.set(&long, 7_u64).await.unwrap();
    all_hits(&cache, &long);
    let typed = users.typed::<u64>();
    allocates_nothing(|| assert_eq!(now(typed.get("plain")).unwrap(), Some(7)));
}

#[tokio::test(start_paused = true)]
async fn with_a_second_tier_and_a_bus_a_hit_calls_neither() {
    let world = World::new();
    let node = world.node().await;
    node.set("plain", 7_u64).await.unwrap();
    node.set("tagged", 7_u64).tags(["a", "b", "c"]).await.unwrap();
    common::settle().await;
    node.l2.reset_calls();
    node.bus.reset_calls();
    for key in ["plain", "tagged"] {
        for _ in 0..100 {
            assert_eq!(now(node.get::<u64>(key)).unwrap(), Some(7));
            assert_eq!(now(node.get_or_set(key, |_| produce()).tags(["a"])).unwrap(), 7);
        }
    }
    common::settle().await;
    assert_eq!((node.l2.calls(), node.bus.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_two_tier_hit_allocates_nothing() {
    let world = World::new();
    let store = Store::new().l1(Memory::new()).l2(world.l2.clone()).bus(world.bus.clone());
    let cache =
        BentoCache::builder().clock(world.clock.clone()).store("s", store).build().await.unwrap();
    cache.set("plain", 7_u64).await.unwrap();
    cache.set("tagged", 7_u64).tags(["a", "b", "c"]).await.unwrap();
    all_hits(&cache, "plain");
    all_hits(&cache, "tagged");
    // One that was read from L2, and one that has a marker.
    cache.delete_by_tag(["a"]).await.unwrap();
    cache.set("tagged", 7_u64).tags(["a", "b"]).skip_l1_write(true).await.unwrap();
    assert_eq!(cache.get::<u64>("tagged").await.unwrap(), Some(7));
    all_hits(&cache, "tagged");
}

/// Once the last listener is gone, hits are as cheap as before.
#[tokio::test(start_paused = true)]
async fn a_listener_that_left_costs_nothing() {
    let store = Store::new().l1(Memory::new());
    let cache = BentoCache::builder().store("m", store).build().await.unwrap();
    cache.set("plain", 7_u64).await.unwrap();
    let events = cache.events();
    assert_eq!(now(cache.get::<u64>("plain")).unwrap(), Some(7));
    drop(events);
    all_hits(&cache, "plain");
}
