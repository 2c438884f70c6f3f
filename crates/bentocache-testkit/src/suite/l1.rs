//! The cases for an L1, [`L1Driver`]. Run them all with [`l1_suite!`](crate::l1_suite).
//!
//! The store needs room for 5,000 small entries, or must return evicted ones.
//!
//! Names for `without`:
//!
//! - `weight`: the store limits the size of values ([`L1Driver::is_weighted`]).
//!
//! Each case takes the closure that opens drivers, and panics if the driver violates the rule.
//! Every opened driver is a tier of its own.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use bentocache_driver::{Entry, L1Driver, NEVER, Value};

use super::{HOSTILE, compare_declared};
use crate::map::{Blob, entry, life_until, lock};

/// Runs the suite for an L1; see [`suite`](crate::suite) for how to call it.
#[macro_export]
macro_rules! l1_suite {
    ($($input:tt)*) => {
        $crate::__suite! {
            l1
            [
                insert_and_get,
                missing_key,
                read_shows_what_get_returns,
                insert_returns_the_old,
                remove_returns_the_entry,
                stale_entries_are_returned,
                hostile_keys,
                long_keys,
                clear_takes_the_prefix_literally,
                clear_of_everything,
                prune_removes_the_dead_only,
                len_counts,
                for_each_shows_all,
                for_each_may_call_back,
                every_entry_is_accounted_for,
                nothing_leaks,
                values_are_dropped_outside_of_locks,
                many_threads,
                extreme_weights,
                a_refused_entry_removes_the_old: weight,
            ]
            []
            $($input)*
        }
    };
}

fn bytes_of(entry: &Entry) -> &[u8] {
    let value: &dyn Any = entry.value();
    let blob = value.downcast_ref::<Blob>();
    &blob.expect("the value of the case").0
}

fn is(found: Option<&Arc<Entry>>, wanted: &Arc<Entry>) -> bool {
    found.is_some_and(|found| Arc::ptr_eq(found, wanted))
}

/// Inserts a small entry without an end; returns it.
fn put<D: L1Driver>(tier: &D, key: &str) -> Arc<Entry> {
    let entry = entry(key, key, NEVER);
    let inserted = tier.insert(entry.clone(), key.len() as u64);
    assert!(!inserted.refused, "a small entry was refused: {key:?}");
    entry
}

/// The list of missing abilities equals what the driver declares.
pub async fn declares_what_it_lacks<D: L1Driver>(open: impl AsyncFn() -> D, declared: &[&str]) {
    let tier = open().await;
    assert!(!tier.name().is_empty(), "a driver has a name");
    compare_declared(tier.name(), declared, &[("weight", tier.is_weighted())]);
}

/// `get` returns the same entry that was inserted.
pub async fn insert_and_get<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let [a, b] = [put(&tier, "a"), put(&tier, "b")];
    assert!(is(tier.get("a").as_ref(), &a));
    assert!(is(tier.get("b").as_ref(), &b));
    assert!(is(tier.get("a").as_ref(), &a), "a get takes nothing away");
}

/// A key that was never inserted has no entry.
pub async fn missing_key<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    assert!(tier.get("a").is_none());
    assert!(tier.remove("a").is_none());
    put(&tier, "a");
    assert!(tier.get("b").is_none());
    assert!(tier.get("").is_none());
    assert!(tier.get("A").is_none());
}

/// A read shows the same entry that a `get` returns, once, and nothing if there is none.
pub async fn read_shows_what_get_returns<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    put(&tier, "a");
    let b = put(&tier, "b");
    let shown = Mutex::new(Vec::new());
    for key in ["b", "c", ""] {
        tier.read(key, &|entry| lock(&shown).push(entry.clone()));
    }
    let shown = lock(&shown);
    assert!(shown.len() == 1 && is(shown.first(), &b), "one entry, shown once");
}

/// `insert` returns the entry that it replaces, and none for a new key.
pub async fn insert_returns_the_old<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let [one, two] = [entry("a", "1", NEVER), entry("a", "2", NEVER)];
    let inserted = tier.insert(one.clone(), 1);
    assert!(inserted.replaced.is_none() && !inserted.refused);
    let inserted = tier.insert(two.clone(), 1);
    assert!(is(inserted.replaced.as_ref(), &one), "insert hands back the old entry");
    let evicted = inserted.evicted.iter().any(|entry| Arc::ptr_eq(entry, &one));
    assert!(!evicted, "a replaced entry is not evicted as well");
    assert!(is(tier.get("a").as_ref(), &two));
    assert_eq!(tier.len(), 1);
}

/// `remove` returns the entry.
pub async fn remove_returns_the_entry<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let [a, b] = [put(&tier, "a"), put(&tier, "b")];
    assert!(is(tier.remove("a").as_ref(), &a));
    assert!(tier.remove("a").is_none());
    assert!(tier.get("a").is_none());
    assert!(is(tier.get("b").as_ref(), &b));
}

/// The engine judges freshness, so an expired entry that is not dead is returned.
pub async fn stale_entries_are_returned<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let a = put(&tier, "a");
    a.expire();
    a.mark_unverified();
    assert!(is(tier.get("a").as_ref(), &a), "an expired entry is the engine's to judge");
    tier.prune(1_000_000);
    assert!(is(tier.get("a").as_ref(), &a), "an expired entry that is not dead stays");
}

/// Keys that look like patterns, or like each other, have their own entries.
pub async fn hostile_keys<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let keys: Vec<&str> = HOSTILE.iter().copied().chain(["", "\0", "a\0", "a\0b"]).collect();
    let entries: Vec<_> = keys.iter().map(|key| put(&tier, key)).collect();
    for (key, entry) in keys.iter().zip(&entries) {
        assert!(is(tier.get(key).as_ref(), entry), "get of {key:?}");
    }
    for (at, key) in keys.iter().enumerate() {
        assert!(is(tier.remove(key).as_ref(), &entries[at]), "remove of {key:?}");
        assert!(tier.get(key).is_none(), "get of {key:?}, removed");
        if let Some(other) = keys.get(at + 1) {
            let found = tier.get(other);
            assert!(is(found.as_ref(), &entries[at + 1]), "{other:?} went with {key:?}");
        }
    }
}

/// Keys of 10 kB work, and their last byte counts.
pub async fn long_keys<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let long = "é".repeat(5_000);
    let [one, two] = [format!("{long}1"), format!("{long}2")];
    let first = put(&tier, &one);
    assert!(tier.get(&two).is_none());
    put(&tier, &two);
    assert!(is(tier.get(&one).as_ref(), &first));
    tier.clear(&one);
    assert!(tier.get(&one).is_none());
    assert!(tier.get(&two).is_some());
}

/// `clear` removes the keys that start with the prefix, and no key that only looks like it.
pub async fn clear_takes_the_prefix_literally<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    for prefix in
        ["app", "app*", "app_1", "app?", "app[1]", "app%", "app\\", "app:", "é", "A", "users"]
    {
        let own = ["", "a", ":a:b", "*", "é"].map(|end| format!("{prefix}{end}"));
        let others = ["ap", "App", "bapp", "ape", "e", "e\u{301}", "a", "user", "Users", "z"]
            .map(String::from);
        let others: Vec<&String> = others.iter().filter(|key| !key.starts_with(prefix)).collect();
        for key in own.iter().chain(others.iter().copied()) {
            put(&tier, key);
        }
        tier.clear(prefix);
        for key in &own {
            assert!(tier.get(key).is_none(), "clear of {prefix:?} left {key:?}");
        }
        for key in others {
            assert!(tier.get(key).is_some(), "clear of {prefix:?} removed {key:?}");
        }
    }
}

/// `clear` with an empty prefix empties the tier, which can be used again.
pub async fn clear_of_everything<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    tier.clear("");
    for at in 0..200 {
        put(&tier, &format!("k{at}"));
    }
    put(&tier, "");
    tier.clear("");
    assert_eq!(tier.len(), 0);
    assert!(tier.is_empty());
    assert!(tier.get("").is_none() && tier.get("k1").is_none());
    let a = put(&tier, "a");
    assert!(is(tier.get("a").as_ref(), &a));
}

/// `prune` removes the entries that are dead at the given time, counts them and keeps the others.
pub async fn prune_removes_the_dead_only<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let ends = [1, 999, 1_000, 1_001, u64::MAX - 1, NEVER];
    for end in ends {
        tier.insert(entry(&format!("k{end}"), "1", end), 1);
    }
    assert_eq!(tier.prune(0), 0, "nothing is dead at 0");
    assert_eq!(tier.prune(1_000), 3, "dead are those whose end is not after now");
    assert_eq!(tier.prune(1_000), 0, "what was removed is not counted again");
    for end in ends {
        assert_eq!(tier.get(&format!("k{end}")).is_some(), end > 1_000, "an end at {end}");
    }
    assert_eq!(tier.len(), 3);
}

/// `len` counts every entry once, including dead ones.
pub async fn len_counts<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    assert!(tier.is_empty());
    put(&tier, "a");
    put(&tier, "b");
    put(&tier, "a");
    tier.insert(entry("dead", "1", 1), 1);
    assert_eq!(tier.len(), 3);
    assert!(!tier.is_empty());
    tier.remove("a");
    tier.remove("missing");
    assert_eq!(tier.len(), 2);
}

/// `for_each` shows each key once, with its entry.
pub async fn for_each_shows_all<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    tier.for_each(&mut |entry| panic!("an empty tier shows {:?}", entry.key()));
    let mut wanted = BTreeMap::new();
    for at in 0..500 {
        let key = format!("k{at}");
        wanted.insert(key.clone(), put(&tier, &key));
    }
    wanted.insert(String::new(), put(&tier, ""));
    tier.for_each(&mut |entry| {
        let key = entry.key();
        let own = wanted.remove(key);
        assert!(own.is_some(), "{key:?} is shown twice, or was never inserted");
        assert!(is(own.as_ref(), entry), "{key:?} is shown with another entry");
    });
    assert!(wanted.is_empty(), "not shown: {:?}", wanted.keys().next());
}

/// The visitor may use the tier: it is called without a lock.
pub async fn for_each_may_call_back<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = Arc::new(open().await);
    for at in 0..100 {
        put(&*tier, &format!("k{at}"));
    }
    within_five_seconds("for_each that calls back", move || {
        let mut seen = 0;
        tier.for_each(&mut |shown| {
            seen += 1;
            let _ = tier.get(shown.key());
            let _ = tier.remove(shown.key());
            let _ = tier.insert(entry("new", "1", NEVER), 1);
            tier.clear("nothing has this prefix");
        });
        assert!(seen >= 100, "what was there at the start is shown: {seen}");
        assert_eq!(tier.len(), 1);
    })
    .await;
}

/// Runs blocking code that might deadlock; the thread is then abandoned.
async fn within_five_seconds(what: &str, work: impl FnOnce() + Send + 'static) {
    let work = tokio::task::spawn_blocking(work);
    match tokio::time::timeout(Duration::from_secs(5), work).await {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        Err(_) => panic!("{what} locks up"),
    }
}

/// Each inserted entry is in the tier, or was returned as evicted or refused.
pub async fn every_entry_is_accounted_for<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let mut evicted = BTreeSet::new();
    for at in 0..5_000 {
        let key = format!("k{at}");
        let inserted = tier.insert(entry(&key, key.as_str(), NEVER), key.len() as u64);
        if inserted.refused {
            assert!(tier.get(&key).is_none(), "{key:?} was refused but is there");
            assert!(evicted.insert(key.clone()));
        }
        for entry in inserted.evicted {
            assert!(evicted.insert(entry.key().to_owned()), "evicted twice");
        }
    }
    let mut there = 0;
    for key in (0..5_000).map(|at| format!("k{at}")) {
        match tier.get(&key) {
            Some(entry) => {
                assert_eq!(bytes_of(&entry), key.as_bytes());
                assert!(!evicted.contains(&key), "{key:?} was reported as gone but is there");
                there += 1;
            }
            None => assert!(evicted.contains(&key), "{key:?} is gone without a report"),
        }
    }
    assert_eq!(tier.len(), there);
}

/// A value that counts itself, and may call back into its tier when it is dropped.
struct Counted {
    alive: Arc<AtomicUsize>,
    on_drop: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Value for Counted {
    fn encode(&self, _codec: u8, _out: &mut Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
        if let Some(on_drop) = &self.on_drop {
            on_drop();
        }
    }
}

fn counted(
    key: &str,
    alive: &Arc<AtomicUsize>,
    on_drop: Option<Arc<dyn Fn() + Send + Sync>>,
    dead_at: u64,
) -> Arc<Entry> {
    alive.fetch_add(1, SeqCst);
    Arc::new(Entry::new(key, Counted { alive: alive.clone(), on_drop }, life_until(dead_at), None))
}

/// Replaced, removed, cleared, pruned and evicted entries are dropped.
pub async fn nothing_leaks<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let alive = Arc::new(AtomicUsize::new(0));
    for round in 0..3 {
        for at in 0..300 {
            let dead_at = if at % 3 == 0 { 10 } else { NEVER };
            tier.insert(counted(&format!("k{at}"), &alive, None, dead_at), 1);
        }
        let stored = tier.len();
        assert_eq!(alive.load(SeqCst), stored, "replaced values are kept, round {round}");
    }
    tier.remove("k1");
    tier.prune(10);
    assert_eq!(alive.load(SeqCst), tier.len(), "removed or pruned values are kept");
    tier.clear("k2");
    assert_eq!(alive.load(SeqCst), tier.len(), "cleared values are kept");
    tier.clear("");
    assert_eq!(alive.load(SeqCst), 0, "cleared values are kept");
    tier.insert(counted("a", &alive, None, NEVER), 1);
    drop(tier);
    assert_eq!(alive.load(SeqCst), 0, "a dropped tier keeps its values");
}

/// Dropping a value runs its owner's code, so it must not happen while the tier holds a lock.
pub async fn values_are_dropped_outside_of_locks<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = Arc::new(open().await);
    within_five_seconds("a value that uses the tier when it is dropped", move || {
        let alive = Arc::new(AtomicUsize::new(0));
        let own: Arc<OnceLock<Weak<D>>> = Arc::new(OnceLock::new());
        let _ = own.set(Arc::downgrade(&tier));
        let on_drop: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let Some(tier) = own.get().and_then(Weak::upgrade) {
                let _ = tier.get("a");
                let _ = tier.len();
                let _ = tier.insert(entry("by drop", "1", NEVER), 1);
                let _ = tier.remove("by drop");
            }
        });
        let insert = |key: &str, dead_at| {
            tier.insert(counted(key, &alive, Some(on_drop.clone()), dead_at), 1);
        };
        insert("a", NEVER);
        insert("a", NEVER);
        tier.remove("a");
        insert("a", 10);
        tier.prune(10);
        insert("a", NEVER);
        tier.clear("a");
        insert("a", NEVER);
        tier.clear("");
        assert_eq!(alive.load(SeqCst), 0);
        assert_eq!(tier.len(), 0);
    })
    .await;
}

/// Eight threads on 64 keys: no deadlock, no foreign entry, and the counts agree at the end.
pub async fn many_threads<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = Arc::new(open().await);
    let threads: Vec<_> = (0..8_u64)
        .map(|thread| {
            let tier = tier.clone();
            tokio::task::spawn_blocking(move || hammer(&*tier, thread))
        })
        .collect();
    for thread in threads {
        let ended = tokio::time::timeout(Duration::from_secs(60), thread).await;
        ended.expect("the threads lock each other up").expect("no panic");
    }
    let seen = Mutex::new(BTreeSet::new());
    tier.for_each(&mut |entry| {
        let key = entry.key();
        assert!(lock(&seen).insert(key.to_owned()), "{key:?} is there twice");
    });
    assert_eq!(lock(&seen).len(), tier.len(), "len and for_each agree");
    for key in lock(&seen).iter() {
        assert!(tier.remove(key).is_some(), "{key:?} is shown but not there");
    }
    assert_eq!(tier.len(), 0);
}

fn hammer<D: L1Driver>(tier: &D, thread: u64) {
    let mut random = thread;
    for _ in 0..4_000 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("k{}", (random >> 33) % 64);
        match (random >> 50) % 16 {
            0..5 => {
                let inserted = tier.insert(entry(&key, key.as_str(), NEVER), key.len() as u64);
                let replaced = inserted.replaced.iter();
                assert!(replaced.clone().all(|entry| bytes_of(entry) == key.as_bytes()));
            }
            5..7 => drop(tier.remove(&key)),
            7 => drop(tier.prune(random % 100)),
            8 if random.is_multiple_of(64) => tier.clear(&key),
            9 if random.is_multiple_of(64) => tier.for_each(&mut |entry| {
                assert_eq!(bytes_of(entry), entry.key().as_bytes());
            }),
            _ => {
                let found = tier.get(&key);
                let is_own = found.is_none_or(|entry| bytes_of(&entry) == key.as_bytes());
                assert!(is_own, "a get of {key:?} gave the entry of another key");
            }
        }
    }
}

/// Sums of weights do not overflow, and 0 is a weight.
pub async fn extreme_weights<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    for (at, weight) in
        [0, u64::MAX / 2, u64::MAX / 2, u64::MAX, u64::MAX - 1, 0, 1].into_iter().enumerate()
    {
        let key = format!("k{}", at % 3);
        let one = entry(&key, key.as_str(), NEVER);
        let inserted = tier.insert(one.clone(), weight);
        match tier.get(&key) {
            Some(found) => {
                assert!(Arc::ptr_eq(&found, &one), "the old entry is left, weight {weight}");
                assert!(!inserted.refused, "refused but there, weight {weight}");
            }
            None => {
                let evicted = inserted.evicted.iter().any(|entry| Arc::ptr_eq(entry, &one));
                assert!(inserted.refused || evicted, "gone without a report, weight {weight}");
            }
        }
    }
    tier.clear("");
    put(&tier, "a");
    assert!(tier.get("a").is_some(), "the tier is usable after extreme weights");
}

/// A value larger than the whole store is refused, and the entry that it would replace is removed.
pub async fn a_refused_entry_removes_the_old<D: L1Driver>(open: impl AsyncFn() -> D) {
    let tier = open().await;
    let old = put(&tier, "a");
    let other = put(&tier, "b");
    let huge = entry("a", "huge", NEVER);
    let inserted = tier.insert(huge, u64::MAX);
    assert!(inserted.refused, "a weighted store has a limit, which this is over");
    assert!(is(inserted.replaced.as_ref(), &old), "the old entry is handed back");
    assert!(tier.get("a").is_none(), "the old entry must not outlive a newer one");
    assert!(is(tier.get("b").as_ref(), &other), "a refused entry makes no room for itself");
    assert_eq!(tier.len(), 1);
    let inserted = tier.insert(entry("new", "huge", NEVER), u64::MAX);
    assert!(inserted.refused && inserted.replaced.is_none());
}
