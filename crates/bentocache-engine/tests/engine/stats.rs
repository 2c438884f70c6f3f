//! Statistics: every sum is exact, agrees with the events, and is of one store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::common::{SharedTime, World, fail, fill, get, get_stale, ms, pass, secs, settle};
use bentocache::driver::L1Driver;
use bentocache::{BentoCache, BreakerState, Context, Error, EventKind, Memory, Stats, Store};
use bentocache_testkit::{MapL2, Ops};

/// What one task has done, as its own results say.
#[derive(Default)]
struct Done {
    reads: AtomicU64,
    misses: AtomicU64,
    writes: AtomicU64,
    deletes: AtomicU64,
    runs: Arc<AtomicU64>,
}

/// 8 tasks of 125,000 operations on 1,000 keys. Keys with a tag, so that tags are looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sums_are_exact_after_a_million_operations_of_eight_tasks() {
    const TASKS: u64 = 8;
    const OPERATIONS: u64 = 125_000;
    let store = Store::new().l1(Memory::new().max_items(10_000));
    let cache = BentoCache::builder().store("m", store).build().await.unwrap();
    let done = Arc::new(Done::default());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (cache, done) = (cache.clone(), done.clone());
        tasks.spawn(async move {
            let mut random = task + 1;
            for _ in 0..OPERATIONS {
                // xorshift
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let key = (random % 1_000).to_string();
                match random >> 32 & 63 {
                    0 => {
                        cache.set(&key, 1_u64).await.unwrap();
                        done.writes.fetch_add(1, Relaxed);
                    }
                    1 => {
                        cache.delete(&key).await.unwrap();
                        done.deletes.fetch_add(1, Relaxed);
                    }
                    2 => {
                        let values: Vec<Option<u64>> =
                            cache.get_many([&*key, "never"]).await.unwrap();
                        let missed = values.iter().filter(|value| value.is_none()).count();
                        done.reads.fetch_add(2, Relaxed);
                        done.misses.fetch_add(missed as u64, Relaxed);
                    }
                    3..=8 => {
                        let runs = done.runs.clone();
                        let produce = move |_: Context<u64>| async move {
                            runs.fetch_add(1, Relaxed);
                            Ok::<_, Error>(2)
                        };
                        cache.get_or_set(&*key, produce).tags(["t"]).await.unwrap();
                        done.reads.fetch_add(1, Relaxed);
                    }
                    _ => {
                        let value: Option<u64> = cache.get(&*key).await.unwrap();
                        done.reads.fetch_add(1, Relaxed);
                        done.misses.fetch_add(u64::from(value.is_none()), Relaxed);
                    }
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let (stats, of) = (cache.stats(), |count: &AtomicU64| count.load(Relaxed));
    assert_eq!(stats.reads(), of(&done.reads));
    assert_eq!((stats.deletes, stats.factory_runs), (of(&done.deletes), of(&done.runs)));
    // A `get_or_set` is a miss if its factory ran, or if it joined a flight whose factory ran.
    assert!(stats.misses >= of(&done.misses) + of(&done.runs), "{stats:?}");
    assert!(stats.misses <= of(&done.misses) + of(&done.runs) + stats.coalesced, "{stats:?}");
    // A factory whose key was changed meanwhile does not store its value.
    assert!(stats.writes >= of(&done.writes), "{stats:?}");
    assert!(stats.writes <= of(&done.writes) + of(&done.runs), "{stats:?}");
    assert_eq!((stats.l2_hits, stats.graced_hits, stats.flights), (0, 0, 0));
}

/// Hits alone, which are counted by every thread in its own cells.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hits_of_many_tasks_are_counted_exactly_and_for_their_own_store() {
    let store = || Store::new().l1(Memory::new());
    let cache = BentoCache::builder()
        .store("a", store())
        .store("b", store())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let other = cache.store("b").unwrap().namespace("users");
    cache.set("k", 1_u32).await.unwrap();
    other.set("k", 1_u32).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (cache, other) = (cache.clone(), other.clone());
        tasks.spawn(async move {
            for i in 0..10_000 {
                assert_eq!(get(&cache, "k").await, Some(1));
                if i % 4 == 0 {
                    assert_eq!(get(&other, "k").await, Some(1));
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    tasks.join_all().await;
    let of = |stats: &Stats| (stats.store.to_string(), stats.l1_hits, stats.misses, stats.writes);
    let all: Vec<_> = cache.stats_all().iter().map(of).collect();
    assert_eq!(all, [("a".into(), 80_000, 0, 1), ("b".into(), 20_000, 0, 1)]);
    assert_eq!(of(&other.stats()), all[1]);
    assert_eq!(of(&other.typed::<u32>().stats()), all[1]);
    assert_eq!(of(&cache.blocking().stats()), all[0]);
}

/// Every counter is the number of its events.
fn assert_agrees(stats: &Stats, events: &[bentocache::Event<'static>]) {
    let mut counts = std::collections::BTreeMap::<&str, u64>::new();
    for event in events {
        let name = match &event.kind {
            EventKind::Hit { graced: true, .. } => "graced",
            EventKind::Hit { tier, .. } => tier.as_str(),
            EventKind::Miss { .. } => "miss",
            EventKind::Written { .. } => "written",
            EventKind::Deleted { .. } => "deleted",
            EventKind::Expired { .. } => "expired",
            EventKind::Touched { .. } => "touched",
            EventKind::Cleared { .. } => "cleared",
            EventKind::TagInvalidated { .. } => "tag",
            EventKind::FactorySucceeded { .. } => "succeeded",
            EventKind::FactoryFailed { .. } => "failed",
            EventKind::FactoryTimeout { hard: true, .. } => "hard",
            EventKind::FactoryTimeout { .. } => "soft",
            EventKind::LockTimeout { .. } => "lock",
            EventKind::DecodeFailed { .. } => "decode",
            EventKind::L2Failed { .. } => "l2 failed",
            EventKind::L2Skipped { .. } => "l2 skipped",
            EventKind::BreakerOpened => "opened",
            EventKind::BusPublished { .. } => "published",
            EventKind::BusReceived { .. } => "received",
            EventKind::BusRejected => "rejected",
            EventKind::BusLost => "lost",
            EventKind::RecoveryQueued { .. } => "queued",
            EventKind::RecoveryDone { .. } => "done",
            EventKind::RecoveryDropped { .. } => "dropped",
            EventKind::Refused { .. } => "refused",
            EventKind::Evicted { .. } => "evicted",
            _ => continue,
        };
        *counts.entry(name).or_default() += 1;
    }
    let (l1, l2) = (stats.l1.as_ref().unwrap(), stats.l2.as_ref().unwrap());
    let bus = stats.bus.as_ref().unwrap();
    for (name, counted) in [
        ("graced", stats.graced_hits),
        ("l1", stats.l1_hits),
        ("l2", stats.l2_hits),
        ("miss", stats.misses),
        ("written", stats.writes),
        ("deleted", stats.deletes),
        ("expired", stats.expirations),
        ("touched", stats.touches),
        ("cleared", stats.clears),
        ("tag", stats.tag_invalidations),
        ("failed", stats.factory_failures),
        ("hard", stats.hard_timeouts),
        ("soft", stats.soft_timeouts),
        ("lock", stats.lock_timeouts),
        ("decode", stats.decode_failures),
        ("l2 failed", l2.failures),
        ("l2 skipped", l2.skipped),
        ("opened", l2.breaker_openings),
        ("queued", l2.recovery_queued),
        ("done", l2.recovery_done),
        ("dropped", l2.recovery_dropped),
        ("refused", l1.refusals),
        ("evicted", l1.evictions),
        ("published", bus.published),
        ("received", bus.received),
        ("rejected", bus.rejected),
        ("lost", bus.losses),
    ] {
        let expected = counts.get(name).copied().unwrap_or(0);
        assert!(expected > 0, "nothing of {name} happened");
        assert_eq!(counted, expected, "{name}");
    }
    let ended = counts["succeeded"] + counts["failed"];
    assert_eq!(stats.factory_runs, ended);
}

#[tokio::test(start_paused = true)]
async fn every_counter_agrees_with_the_events() {
    let world = World::new();
    let limits = |s: Store| {
        let s = s.l1(Memory::new().max_items(8).max_entry_size("1kb"));
        s.l2_circuit_breaker("10s", 2).recovery(2, "10s")
    };
    let node = world.node_where(limits).await;
    let other = world.node().await;
    let before = node.stats();
    assert_eq!((before.reads(), before.writes), (0, 0));

    // Reads of all kinds.
    node.set("k", 1_u32).ttl("1s").grace("1h").tags(["t"]).await.unwrap();
    get(&node, "k").await;
    get(&node, "none").await;
    pass(secs(2)).await;
    get_stale(&node, "k").await;
    fill(&node, "filled", 1).await;
    fail(&node, "none").await.unwrap_err();
    node.set("text", "x".to_owned()).await.unwrap();
    get(&node, "text").await;
    other.set("there", 1_u32).await.unwrap();
    settle().await;
    get(&node, "there").await;
    // Timeouts: one flight, with a follower that gives up on it.
    let slow = |_: Context<u32>| async {
        pass(secs(2)).await;
        Ok::<_, Error>(2)
    };
    node.get_or_set("k", slow).grace("1h").timeout("500ms").await.unwrap();
    node.get_or_set("slow", slow).hard_timeout("500ms").await.unwrap_err();
    node.get_or_set("slow", slow).lock_timeout("100ms").await.unwrap();
    pass(secs(5)).await;
    // Changes.
    node.set("large", "x".repeat(2_000)).await.unwrap();
    for i in 0..20_u32 {
        node.set(i.to_string(), i).await.unwrap();
    }
    assert!(node.touch("19").ttl("1h").await.unwrap());
    node.expire("1").await.unwrap();
    node.pull::<u32>("2").await.unwrap();
    node.delete("3").await.unwrap();
    node.delete_by_tag(["t", "u"]).await.unwrap();
    node.namespace("n").clear().await.unwrap();
    // An outage.
    node.l2.fail();
    for i in 0..4_u32 {
        node.set(i.to_string(), i).await.unwrap();
    }
    let stats = node.stats();
    let l2 = stats.l2.as_ref().unwrap();
    assert_eq!((l2.breaker, l2.recovery_length), (BreakerState::Open, 2));
    node.l2.calm();
    pass(secs(60)).await;
    // The bus.
    use bentocache::driver::{BusDriver, Topic};
    let topic = Topic::new("bentocache.notifications:s", "");
    world.bus.publish(topic, bytes::Bytes::from_static(b"?")).await.unwrap();
    settle().await;
    node.bus.cut();
    settle().await;
    assert!(!node.stats().bus.unwrap().is_linked);
    node.bus.restore();
    settle().await;
    let stats = node.stats();
    assert!(stats.bus.as_ref().unwrap().is_linked);
    assert_agrees(&stats, &node.seen.take());
    assert_eq!(stats.coalesced, 1);
    assert_eq!(stats.factory_time, secs(2) + secs(2) + secs(2));
}

#[tokio::test(start_paused = true)]
async fn calls_of_the_second_tier_are_counted_with_their_time() {
    let node = World::only_l2().node().await;
    let calls = |stats: &Stats| {
        let l2 = stats.l2.as_ref().unwrap();
        (l2.calls, l2.failures, l2.time)
    };
    node.set("k", 1_u32).await.unwrap();
    get(&node, "k").await;
    let made = node.l2.calls() as u64;
    assert_eq!(calls(&node.stats()), (made, 0, Duration::ZERO));
    node.l2.on(Ops::ALL).slow(ms(40));
    get(&node, "k").await;
    assert_eq!(calls(&node.stats()), (made + 1, 0, ms(40)));
    assert_eq!(node.stats().l2.unwrap().mean_time(), Some(ms(40) / (made as u32 + 1)));
    node.l2.calm();
    node.l2.fail();
    node.get::<u32>("k").await.unwrap_err();
    assert_eq!(calls(&node.stats()), (made + 2, 1, ms(40)));
    let stats = node.stats();
    assert!(stats.l1.is_none() && stats.bus.is_none());
    assert_eq!(stats.l2.unwrap().breaker, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_is_half_open_when_its_time_is_over() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("10s", 1)).await;
    let state = || node.stats().l2.unwrap().breaker;
    node.l2.fail();
    node.get::<u32>("k").await.unwrap_err();
    assert_eq!(state(), BreakerState::Open);
    pass(secs(11)).await;
    assert_eq!(state(), BreakerState::HalfOpen);
    node.l2.calm();
    get(&node, "k").await;
    assert_eq!(state(), BreakerState::Closed);
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("off", 1)).await;
    assert_eq!(node.stats().l2.unwrap().breaker, BreakerState::Off);
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_running_flight_are_coalesced() {
    let node = World::only_l1().node().await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let cache = node.cache.clone();
        let slow = |_: Context<u32>| async {
            pass(secs(1)).await;
            Ok::<_, Error>(1)
        };
        callers.spawn(async move { cache.get_or_set("k", slow).await.unwrap() });
    }
    settle().await;
    assert_eq!((node.stats().flights, node.stats().coalesced), (1, 9));
    callers.join_all().await;
    let stats = node.stats();
    assert_eq!((stats.flights, stats.factory_runs, stats.misses), (0, 1, 10));
    assert_eq!(stats.factory_time, secs(1));
}

/// One run for many keys is one run, and each of its keys is one miss.
#[tokio::test(start_paused = true)]
async fn a_factory_for_many_keys_is_one_run() {
    let node = World::only_l1().node().await;
    let all = |cx: bentocache::ManyContext| async move {
        Ok::<_, Error>(cx.keys().iter().map(|key| (key.clone(), 1_u32)).collect::<Vec<_>>())
    };
    node.get_or_set_many(["a", "b", "c"], all).await.unwrap();
    let fails = |_: bentocache::ManyContext| async { Err::<Vec<(String, u32)>, _>("down") };
    node.get_or_set_many(["d", "e"], fails).await.unwrap_err();
    let skip = |cx: Context<u32>| async move { cx.skip() };
    node.get_or_set("f", skip).optional().await.unwrap();
    let stats = node.stats();
    assert_eq!((stats.factory_runs, stats.factory_failures), (3, 1));
    assert_eq!((stats.misses, stats.writes), (6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_cache_counts_its_misses_and_runs() {
    let node = World::new().node_where(|s| s.enabled(false)).await;
    fill(&node, "k", 1).await;
    fail(&node, "k").await.unwrap_err();
    get(&node, "k").await;
    let stats = node.stats();
    assert_eq!((stats.misses, stats.factory_runs, stats.factory_failures), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_first_tier_tells_its_entries_its_bytes_and_its_limits() {
    let memory = Arc::new(Memory::new().max_items(1_000).max_size("1mb"));
    let store = Store::new().l1(memory.clone());
    let cache = BentoCache::builder().clock(SharedTime::default()).store("m", store);
    let cache = cache.build().await.unwrap();
    for i in 0..10 {
        cache.set(format!("key{i}"), "x".repeat(994)).await.unwrap();
    }
    let l1 = cache.stats().l1.unwrap();
    assert_eq!((l1.entries, l1.max_entries), (10, Some(1_000)));
    // 996 bytes of JSON, 4 of the key, 100 of the entry, rounded down to 16.
    assert_eq!((l1.bytes, l1.max_bytes), (Some(10 * 1_088), Some(1 << 20)));
    assert_eq!(memory.bytes(), l1.bytes);
    cache.clear().await.unwrap();
    let l1 = cache.stats().l1.unwrap();
    assert_eq!((l1.entries, l1.bytes), (0, Some(0)));
    let cache = BentoCache::builder().store("m", Store::new().l1(Memory::new()).l2(MapL2::new()));
    let l1 = cache.build().await.unwrap().stats().l1.unwrap();
    assert_eq!((l1.max_entries, l1.bytes, l1.max_bytes), (Some(100_000), None, None));
}

/// What cannot be published waits, and the lag is its age.
#[tokio::test(start_paused = true)]
async fn the_outbox_and_its_lag_are_told_while_the_bus_cannot_be_reached() {
    let node = World::new().node().await;
    let waiting = || {
        let bus = node.stats().bus.unwrap();
        (bus.outbox_length, bus.lag)
    };
    assert_eq!(waiting(), (0, Duration::ZERO));
    node.bus.fail();
    node.set("a", 1_u32).await.unwrap();
    pass(secs(3)).await;
    // A message of its own, which is younger.
    node.delete("b").await.unwrap();
    pass(secs(1)).await;
    assert_eq!(waiting(), (2, secs(4)));
    node.bus.calm();
    pass(secs(10)).await;
    assert_eq!(waiting(), (0, Duration::ZERO));
}
