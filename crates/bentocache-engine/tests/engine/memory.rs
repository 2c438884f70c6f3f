//! The memory tier: its limits, its sweep of what has expired, and the suite of every L1.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::common::{Seen, SharedTime, get, pass, secs};
use bentocache::driver::{L1Driver, NEVER};
use bentocache::{BentoCache, Error, EventKind, Memory, Store};
use bentocache_testkit::{Blob, MapL2, entry};

bentocache_testkit::l1_suite! {
    mod plain;
    open = async || Memory::new(),
    without = [weight],
}

bentocache_testkit::l1_suite! {
    mod limited;
    open = async || Memory::new().max_size("64mb").max_entry_size("1mb"),
}

bentocache_testkit::l1_suite! {
    mod crowded;
    open = async || Memory::new().max_items(100_000).max_size("1gb"),
}

async fn cache_on(memory: Memory) -> (BentoCache, Arc<Memory>, Seen) {
    let (memory, seen) = (Arc::new(memory), Seen::default());
    let cache = BentoCache::builder()
        .clock(SharedTime::default())
        .observer(seen.clone())
        .store("m", Store::new().l1(memory.clone()))
        .build()
        .await
        .unwrap();
    (cache, memory, seen)
}

#[tokio::test(start_paused = true)]
async fn it_never_holds_more_than_max_items() {
    for max in [1, 2, 10, 100, 2_000] {
        let (cache, memory, _) = cache_on(Memory::new().max_items(max)).await;
        for i in 0..3 * max {
            cache.set(i.to_string(), i).await.unwrap();
            assert!(memory.len() <= max, "{} of {max}", memory.len());
        }
        assert!(memory.len() * 10 >= max * 9, "{} of {max}: it holds what it may", memory.len());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_evicted_is_told_once_and_is_gone() {
    let (cache, memory, seen) = cache_on(Memory::new().max_items(10)).await;
    let users = cache.namespace("users");
    for i in 0..100_u32 {
        users.set(i.to_string(), i).await.unwrap();
    }
    let mut evicted: Vec<String> = seen.texts();
    evicted.retain(|text| text.starts_with("evicted "));
    assert_eq!(evicted.len() + memory.len(), 100);
    let unique: BTreeSet<_> = evicted.iter().collect();
    assert_eq!(unique.len(), evicted.len());
    for text in evicted {
        let key = text.strip_prefix("evicted users:").expect("with its namespace");
        assert_eq!(get(&users, key).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn replacing_expiring_and_deleting_are_no_evictions() {
    let (cache, _, seen) = cache_on(Memory::new().max_items(10)).await;
    for i in 0..100_u32 {
        cache.set("k", i).ttl("1s").await.unwrap();
    }
    cache.delete("k").await.unwrap();
    cache.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(120)).await;
    assert!(!seen.texts().iter().any(|text| text.starts_with("evicted")));
}

#[tokio::test(start_paused = true)]
async fn what_is_used_often_outlives_what_is_used_once() {
    let (cache, _, _) = cache_on(Memory::new().max_items(100)).await;
    for i in 0..50_u32 {
        cache.set(format!("hot{i}"), i).await.unwrap();
    }
    for round in 0..1_000_u32 {
        for i in 0..50 {
            get(&cache, &format!("hot{i}")).await;
        }
        cache.set(format!("once{round}"), round).await.unwrap();
    }
    let mut hot = 0;
    for i in 0..50 {
        hot += usize::from(get(&cache, &format!("hot{i}")).await.is_some());
    }
    assert!(hot >= 45, "{hot} of 50 survived a scan");
}

/// The least that the memory holds, as `max_size` counts it: keys and values as JSON.
fn size_of(memory: &Memory) -> u64 {
    let mut total = 0;
    memory.for_each(&mut |entry| {
        let mut bytes = Vec::new();
        entry.value().encode(1, &mut bytes).unwrap();
        total += bytes.len() as u64 + entry.key().len() as u64;
    });
    total
}

#[tokio::test(start_paused = true)]
async fn it_never_holds_more_than_max_size() {
    for (max, bytes) in [("10kb", 10_240), ("1mb", 1 << 20)] {
        let (cache, memory, _) = cache_on(Memory::new().max_size(max)).await;
        for i in 0..300_usize {
            cache.set(i.to_string(), "x".repeat(i * 37 % 9_000)).await.unwrap();
            assert!(size_of(&memory) <= bytes, "{} of {max}", size_of(&memory));
        }
        assert!(size_of(&memory) * 2 > bytes, "{} of {max}", size_of(&memory));
    }
}

#[tokio::test(start_paused = true)]
async fn both_limits_hold_together() {
    let (cache, memory, _) = cache_on(Memory::new().max_items(20).max_size("10kb")).await;
    for i in 0..100 {
        cache.set(i.to_string(), 1_u32).await.unwrap();
        assert!(memory.len() <= 20);
    }
    for i in 0..100 {
        cache.set(i.to_string(), "x".repeat(2_000)).await.unwrap();
        assert!(size_of(&memory) <= 10_240);
    }
    let reversed = Memory::new().max_size("10kb").max_items(20);
    let (cache, memory, _) = cache_on(reversed).await;
    for i in 0..100 {
        cache.set(i.to_string(), 1_u32).await.unwrap();
        assert!(memory.len() <= 20, "in any order");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_above_max_entry_size_is_not_kept_and_takes_the_old_one_along() {
    let (cache, memory, seen) = cache_on(Memory::new().max_entry_size("1kb")).await;
    cache.set("k", "small".to_owned()).await.unwrap();
    cache.set("other", "small".to_owned()).await.unwrap();
    cache.set("k", "x".repeat(2_000)).await.unwrap_err();
    assert_eq!(cache.get::<String>("k").await.unwrap(), None, "neither the new nor the old");
    assert_eq!(memory.len(), 1, "and nothing else had to go");
    assert!(!seen.texts().iter().any(|text| text.starts_with("evicted")));
    let produce = |_| async { Ok::<_, bentocache::Error>("x".repeat(2_000)) };
    assert_eq!(cache.get_or_set("l", produce).await.unwrap().len(), 2_000);
}

/// With its size as the memory counts it.
fn refusals(seen: &Seen) -> Vec<(String, u64, Option<u64>)> {
    let refusal = |event: bentocache::Event<'static>| match event.kind {
        EventKind::Refused { key, size, limit, .. } => Some((key.into_owned(), size, limit)),
        _ => None,
    };
    seen.take().into_iter().filter_map(refusal).collect()
}

#[tokio::test(start_paused = true)]
async fn a_set_that_stores_nothing_anywhere_is_an_error_that_names_limit_and_option() {
    for (memory, option, limit) in [
        (Memory::new().max_entry_size("1kb"), "max_entry_size", 1_024),
        (Memory::new().max_size("2kb"), "max_size", 2_048),
    ] {
        let (cache, _, seen) = cache_on(memory).await;
        let users = cache.namespace("users");
        let error = users.set("k", "x".repeat(3_000)).await.unwrap_err();
        let Error::TooLarge { key, size, limit: told, option: by } = &error else {
            panic!("{error:?}")
        };
        // The value in quotes, the key, and what an entry costs.
        assert_eq!((&**key, *size, *told), ("users:k", 3_002 + 7 + 100, Some(limit)));
        assert_eq!((*by, error.key()), (Some(option), Some("users:k")));
        let text = error.to_string();
        assert!(text.contains(option) && text.contains(&limit.to_string()), "{text}");
        assert!(!text.contains("users:k") && !text.contains("xxx"), "{text}");
        assert_eq!(refusals(&seen), [("users:k".into(), 3_109, Some(limit))]);

        // The others of a batch are stored, and told.
        let batch = [("a", "x".to_owned()), ("k", "x".repeat(3_000)), ("b", "x".to_owned())];
        let error = users.set_many(batch).await.unwrap_err();
        assert_eq!(error.key(), Some("users:k"));
        let texts = seen.texts();
        let written: Vec<_> = texts.iter().filter(|text| text.starts_with("written")).collect();
        assert_eq!(written, ["written users:a", "written users:b"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_factorys_value_that_is_refused_is_returned_and_told() {
    let (cache, _, seen) = cache_on(Memory::new().max_entry_size("1kb")).await;
    for _ in 0..2 {
        let produce = |_| async { Ok::<_, Error>("x".repeat(2_000)) };
        assert_eq!(cache.get_or_set("k", produce).await.unwrap().len(), 2_000);
        assert_eq!(refusals(&seen).len(), 1);
    }
    let produce = |_| async { Ok::<_, Error>("x".repeat(2_000)) };
    cache.get_or_set("k", produce).await.unwrap();
    assert!(!seen.texts().contains(&"written k".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn with_a_second_tier_a_value_that_the_first_refuses_is_stored_there() {
    let seen = Seen::default();
    let store = Store::new().l1(Memory::new().max_entry_size("1kb")).l2(MapL2::new());
    let bento = BentoCache::builder().clock(SharedTime::default()).observer(seen.clone());
    let cache = bento.store("s", store).build().await.unwrap();
    cache.set("k", "x".repeat(2_000)).await.unwrap();
    assert_eq!(refusals(&seen).len(), 1);
    assert_eq!(cache.get::<String>("k").await.unwrap().map(|value| value.len()), Some(2_000));
    // It was stored nowhere then.
    let error = cache.set("l", "x".repeat(2_000)).skip_l2_write(true).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
}

/// There is no limit for one entry by default.
#[tokio::test(start_paused = true)]
async fn a_value_of_2_mb_is_kept_in_a_memory_of_10_mb() {
    let (cache, _, seen) = cache_on(Memory::new().max_size("10mb")).await;
    cache.set("k", "x".repeat(2 << 20)).await.unwrap();
    assert_eq!(cache.get::<String>("k").await.unwrap().map(|value| value.len()), Some(2 << 20));
    assert!(refusals(&seen).is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_huge_entry_does_not_empty_the_cache() {
    let (cache, memory, _) = cache_on(Memory::new().max_size("1mb")).await;
    for i in 0..1_000_u32 {
        cache.set(i.to_string(), i).await.unwrap();
    }
    cache.set("huge", "x".repeat(2 << 20)).await.unwrap_err();
    assert_eq!(memory.len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn expired_entries_are_reclaimed_without_anybody_asking() {
    let (cache, memory, _) = cache_on(Memory::new()).await;
    cache.set_many((0..5_000_u32).map(|i| (i.to_string(), i))).ttl("10s").await.unwrap();
    cache.set("stale", 1_u32).ttl("10s").grace("1h").await.unwrap();
    cache.set("fresh", 1_u32).ttl("1h").await.unwrap();
    cache.set_forever("forever", 1_u32).await.unwrap();
    assert_eq!(memory.len(), 5_003);
    pass(secs(90)).await;
    assert_eq!(memory.len(), 3);
    pass(secs(3_600)).await;
    assert_eq!(memory.len(), 1);
}

/// A value is dropped when it is reclaimed, not when the cache is.
#[tokio::test(start_paused = true)]
async fn reclaimed_values_are_dropped() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Counted;
    impl Clone for Counted {
        fn clone(&self) -> Self {
            ALIVE.fetch_add(1, SeqCst);
            Self
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, SeqCst);
        }
    }
    let (cache, _, _) = cache_on(Memory::new()).await;
    for i in 0..100 {
        ALIVE.fetch_add(1, SeqCst);
        cache.set(i.to_string(), Counted).ttl("1s").await.unwrap();
    }
    assert_eq!(ALIVE.load(SeqCst), 100);
    pass(secs(90)).await;
    assert_eq!(ALIVE.load(SeqCst), 0);
}

/// A dead entry is never served, swept or not.
#[tokio::test(start_paused = true)]
async fn an_entry_past_its_end_is_not_served_before_it_is_swept() {
    let (cache, memory, _) = cache_on(Memory::new()).await;
    cache.set("k", 1_u32).ttl("100ms").await.unwrap();
    pass(Duration::from_millis(101)).await;
    assert_eq!(memory.len(), 1, "not swept yet");
    assert_eq!(cache.get::<u32>("k").grace("1h").await.unwrap(), None);
}

#[test]
fn a_weight_of_any_size_does_not_overflow() {
    let memory = Memory::new().max_size(u64::MAX).max_entry_size(u64::MAX);
    memory.open().unwrap();
    for weight in [0, 1, u64::MAX / 2, u64::MAX] {
        memory.insert(entry("k", "v", NEVER), weight);
    }
    let small = Memory::new().max_size(1_u64);
    small.open().unwrap();
    assert!(small.insert(entry("k", "v", NEVER), 1).refused);
    assert!(Memory::new().max_items(usize::MAX).open().is_ok());
}

#[test]
fn every_place_is_used_however_many_there_are() {
    for max in [1, 511, 1_025, 2_001, 50_003] {
        let memory = Memory::new().max_items(max);
        for i in 0..max * 4 {
            memory.insert(entry(&i.to_string(), "v", NEVER), 0);
        }
        assert_eq!(memory.len(), max);
    }
}

#[test]
fn what_is_larger_than_the_whole_store_or_than_8_gib_is_refused() {
    let small = Memory::new().max_size(10_000_u64).max_entry_size("1mb");
    assert!(!small.insert(entry("k", "v", NEVER), 9_000).refused);
    assert!(small.insert(entry("l", "v", NEVER), 11_000).refused);
    // The key and 100 bytes count as well.
    assert!(small.insert(entry("k", "v", NEVER), 9_900).refused);
    assert!(!small.insert(entry("k", "v", NEVER), 9_899).refused);
    assert!(small.get("k").is_some() && small.get("l").is_none());
    let large = Memory::new().max_size("1tb").max_entry_size("100gb");
    assert!(!large.insert(entry("k", "v", NEVER), 7 << 30).refused);
    assert!(large.insert(entry("l", "v", NEVER), 9 << 30).refused);
    assert_eq!(large.len(), 1);
}

/// Each key once, so that chance fills some shards more than others.
#[test]
fn as_many_as_there_is_room_for_are_kept_to_half_a_percent() {
    for max in [200, 512, 1_000, 1_024, 2_048, 5_000, 20_000, 100_000] {
        for round in 0..3 {
            let memory = Memory::new().max_items(max);
            for i in 0..max {
                memory.insert(entry(&format!("{round}:{i}"), "v", NEVER), 0);
            }
            let (len, least) = (memory.len(), max - max.div_ceil(200));
            assert!(least <= len && len <= max, "{len} of {max}");
            // When half of them have gone, there is room for as many others.
            (0..max / 2).for_each(|i| drop(memory.remove(&format!("{round}:{i}"))));
            for i in 0..max / 2 {
                memory.insert(entry(&format!("other {round}:{i}"), "v", NEVER), 0);
            }
            let len = memory.len();
            assert!(least <= len && len <= max, "{len} of {max} after others");
        }
    }
}

#[test]
fn a_value_of_any_size_up_to_the_limit_is_kept_in_a_full_store_of_many_shards() {
    const MAX: u64 = 10 << 20;
    let memory = Memory::new().max_size("10mb");
    for i in 0..20_000 {
        memory.insert(entry(&format!("small {i}"), "v", NEVER), 900);
    }
    let small = memory.len();
    assert!(small * 1_000 > 8 << 20, "{small}");
    // Each entry takes space from the shared limit.
    for (key, size) in [("large", 2 << 20), ("larger", 5 << 20), ("largest", MAX - 1_000)] {
        let inserted = memory.insert(entry(key, "v", NEVER), size);
        assert!(!inserted.refused && memory.get(key).is_some(), "{key}");
        let left = memory.len() - usize::from(memory.get(key).is_some());
        assert!(left as u64 * 1_000 + size <= MAX, "{left} beside {key}");
    }
    let inserted = memory.insert(entry("large", "v", NEVER), 2 << 20);
    assert!(inserted.evicted.iter().any(|entry| entry.key() == "largest"));
    assert!(memory.insert(entry("too large", "v", NEVER), MAX).refused);
    // And it is back for all.
    memory.clear("");
    (0..20_000).for_each(|i| drop(memory.insert(entry(&i.to_string(), "v", NEVER), 900)));
    assert!(memory.len() * 1_005 >= MAX as usize * 99 / 100, "{}", memory.len());
}

#[test]
fn the_limits_hold_after_threads_have_stored_large_and_small_values_at_once() {
    const MAX: u64 = 4 << 20;
    let memory = Memory::new().max_size(MAX).max_items(3_000);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let memory = &memory;
            scope.spawn(move || {
                for i in 0..3_000_u64 {
                    let (key, size) = match i % 50 {
                        0 => (format!("large {thread}"), 1 << 20),
                        _ => (format!("{thread}:{i}"), 500),
                    };
                    assert!(!memory.insert(entry(&key, "v", NEVER), size).refused);
                    if i % 7 == 0 {
                        memory.remove(&format!("{thread}:{}", i / 2));
                    }
                }
            });
        }
    });
    let mut weight = 0;
    memory.for_each(&mut |entry| {
        weight += if entry.key().starts_with("large") { 1 << 20 } else { 500 };
    });
    assert!(weight <= MAX && memory.len() <= 3_000);
}

#[test]
fn what_it_is_given_is_what_it_gives_back() {
    let memory = Memory::new();
    memory.insert(entry("k", "v", NEVER), 0);
    let found = memory.get("k").unwrap();
    let value: &dyn Any = found.value();
    assert_eq!(value.downcast_ref::<Blob>(), Some(&Blob(b"v".to_vec())));
}
