//! The cases for an L2, [`L2Driver`]. Run them all with [`l2_suite!`](crate::l2_suite).
//!
//! The file is long because every rule of a driver has its own case.
//!
//! Names for `without`:
//!
//! - `atomic_pull` and `atomic_compare`: as in [`Capabilities`](bentocache_driver::Capabilities);
//! - `keys`: the driver can list its keys;
//! - `clear`: the store can remove all keys with a prefix, as in
//!   [`Capabilities`](bentocache_driver::Capabilities);
//! - `prune`: expired values are removed, by the store itself or by `prune`;
//! - `fine_ttl`: expiry is exact to 10 ms or finer;
//! - `long_keys`: keys of 10 kB work;
//! - `large_values`: values of 64 MiB work;
//! - `link`: the driver has a server that can become unreachable;
//! - `runtimes`: the driver works on another Tokio runtime after the runtime of its first call has
//!   ended.
//!
//! Each case takes the closure that opens drivers, and panics if the driver violates the rule. The
//! file is long because it is a list of cases, in the order of the macro, which need not be read at
//! once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bentocache_driver::{DriverError, ErrorKind, L2Driver, Write};
use bytes::Bytes;

mod touch;

pub use self::touch::{
    touch_against_delete, touch_against_set, touch_extends, touch_keeps_the_value,
    touch_of_nothing, touch_of_the_expired, touch_of_tiny_and_huge_ttls, touch_shortens,
    touch_without_an_end,
};

use super::{Fault, FaultyLink, HOSTILE, all_fail_for_now, all_work_again, compare_declared, next};
use crate::runtimes::{Calls, outlives};
use crate::unique;

/// Runs the suite for an L2; see [`suite`](crate::suite) for how to call it.
#[macro_export]
macro_rules! l2_suite {
    ($($input:tt)*) => {
        $crate::__suite! {
            l2
            [
                round_trip,
                missing_key,
                overwriting,
                empty_value,
                empty_key,
                hostile_keys,
                nul_in_keys,
                keys_never_meet,
                key_of_10_kb: long_keys,
                limits_are_named,
                too_long_keys_are_refused_for_good,
                value_of_1_mib,
                value_of_64_mib: large_values,
                expiry,
                expiry_to_the_millisecond: fine_ttl,
                no_ttl,
                huge_ttl,
                tiny_ttl,
                zero_ttl,
                overwriting_replaces_the_expiry,
                expired_values_are_nowhere,
                delete_counts,
                delete_of_nothing,
                delete_of_duplicates,
                get_many_keeps_order,
                get_many_of_nothing,
                set_many_with_mixed_ttls,
                set_many_of_nothing,
                set_many_of_duplicates,
                a_thousand_keys,
                clear_takes_the_prefix_literally: clear,
                clear_of_many_keys: clear,
                clear_of_everything: clear,
                pull_takes,
                pull_of_nothing,
                concurrent_pulls: atomic_pull,
                update_replaces,
                update_keeps_the_expiry,
                update_compares,
                update_creates_nothing,
                concurrent_updates: atomic_compare,
                update_against_set: atomic_compare,
                touch_extends,
                touch_shortens,
                touch_without_an_end,
                touch_keeps_the_value,
                touch_of_nothing,
                touch_of_the_expired,
                touch_of_tiny_and_huge_ttls,
                touch_against_delete: atomic_compare,
                touch_against_set: atomic_compare,
                insert_spares_what_is_there,
                insert_keeps_its_ttl,
                insert_replaces_what_has_expired,
                concurrent_inserts: atomic_compare,
                delete_if_compares,
                concurrent_delete_ifs: atomic_compare,
                delete_if_against_set: atomic_compare,
                keys_are_exact: keys,
                prune_removes_the_dead: prune,
                concurrent_writers,
                concurrent_readers,
                abandoned_calls,
                two_instances,
                calls_after_disconnect,
                errors_after_disconnect_are_closed,
            ]
            [
                a_server_that_is_gone_is_a_transient_failure,
            ]
            $($input)*
        }
    };
}

/// How long after the declared precision a value may still be visible.
const LATE: Duration = Duration::from_millis(100);
/// Clocks with whole milliseconds lose up to one at either end.
const EARLY: Duration = Duration::from_millis(5);

/// A driver, and a key prefix that only this case uses. Names are keys without the prefix.
struct Shelf<D> {
    driver: Arc<D>,
    space: String,
}

impl<D: L2Driver> Shelf<D> {
    async fn open(open: &impl AsyncFn() -> D) -> Self {
        Self::open_in(open, unique("kit:") + ":").await
    }

    /// Another instance on the same backend.
    async fn join(&self, open: &impl AsyncFn() -> D) -> Self {
        Self::open_in(open, self.space.clone()).await
    }

    async fn open_in(open: &impl AsyncFn() -> D, space: String) -> Self {
        let driver = open().await;
        driver.connect().await.expect("connect");
        Self { driver: Arc::new(driver), space }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.space)
    }

    fn full(&self, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| self.key(name)).collect()
    }

    async fn try_set(
        &self,
        name: &str,
        value: impl Into<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<(), DriverError> {
        self.driver.set(&self.key(name), value.into(), ttl).await
    }

    async fn set(&self, name: &str, value: impl Into<Bytes>, ttl: Option<Duration>) {
        let result = self.try_set(name, value, ttl).await;
        result.unwrap_or_else(|error| panic!("set of {name:?}: {error}"));
    }

    async fn get(&self, name: &str) -> Option<Bytes> {
        let result = self.driver.get(&self.key(name)).await;
        result.unwrap_or_else(|error| panic!("get of {name:?}: {error}"))
    }

    async fn get_many(&self, names: &[&str]) -> Vec<Option<Bytes>> {
        let keys = self.full(names);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let values = self.driver.get_many(&keys).await.expect("get_many");
        assert_eq!(values.len(), names.len(), "get_many answers every key");
        values
    }

    async fn delete(&self, names: &[&str]) -> u64 {
        let keys = self.full(names);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.driver.delete(&keys).await.expect("delete")
    }

    async fn clear(&self, name: &str) {
        let result = self.driver.clear(&self.key(name)).await;
        result.unwrap_or_else(|error| panic!("clear of {name:?}: {error}"));
    }

    async fn pull(&self, name: &str) -> Option<Bytes> {
        self.driver.pull(&self.key(name)).await.expect("pull")
    }

    async fn update(&self, name: &str, from: &[u8], to: &[u8], left: Option<Duration>) -> bool {
        let to = Bytes::copy_from_slice(to);
        self.driver.update(&self.key(name), from, to, left).await.expect("update")
    }

    async fn touch(&self, name: &str, ttl: Option<Duration>) -> bool {
        self.driver.touch(&self.key(name), ttl).await.expect("touch")
    }

    async fn delete_if(&self, name: &str, value: &[u8]) -> bool {
        self.driver.delete_if(&self.key(name), value).await.expect("delete_if")
    }

    /// The names that `keys` lists; each must come once.
    async fn list(&self, name: &str) -> BTreeSet<String> {
        let mut stream = self.driver.keys(&self.key(name));
        let mut names = BTreeSet::new();
        while let Some(key) = next(&mut stream).await {
            let key = key.expect("keys");
            let name = key.strip_prefix(&self.space).expect("keys lists the prefix only");
            assert!(names.insert(name.to_owned()), "keys lists {name:?} twice");
        }
        names
    }

    async fn has(&self, name: &str, value: &[u8]) {
        let found = self.get(name).await;
        assert_eq!(found.as_deref(), Some(value), "get of {name:?}");
    }

    async fn has_no(&self, name: &str) {
        assert_eq!(self.get(name).await, None, "get of {name:?}");
    }

    fn precision(&self) -> Duration {
        self.driver.capabilities().ttl_precision
    }

    /// A short ttl, which a store of this precision must round.
    fn short_ttl(&self) -> Duration {
        (self.precision() * 3 / 2).max(Duration::from_millis(250))
    }

    /// Waits for the end of a key that was written after `start` with this ttl, and checks that it
    /// comes neither early nor late.
    async fn ends(&self, name: &str, start: Instant, ttl: Duration) {
        self.ends_within(name, start, ttl, Duration::ZERO).await;
    }

    async fn ends_within(&self, name: &str, start: Instant, ttl: Duration, more: Duration) {
        let written = Instant::now();
        loop {
            let asked = written.elapsed();
            let found = self.get(name).await;
            if found.is_none() {
                let lived = start.elapsed();
                assert!(lived + EARLY >= ttl, "{name:?} died after {lived:?} of its {ttl:?}");
                return;
            }
            let latest = ttl + self.precision() + more + LATE;
            assert!(asked <= latest, "{name:?} lives after {asked:?}, with a ttl of {ttl:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a key that was just written with this ttl has certainly expired, without reading
    /// it: a read may remove it.
    async fn sleep_past(&self, ttl: Duration) {
        tokio::time::sleep(ttl + self.precision() + LATE).await;
    }
}

const TTL: Option<Duration> = Some(Duration::from_secs(600));

/// The list of missing abilities equals what the driver declares.
pub async fn declares_what_it_lacks<D: L2Driver>(open: impl AsyncFn() -> D, declared: &[&str]) {
    let shelf = Shelf::open(&open).await;
    let name = shelf.driver.name();
    assert!(!name.is_empty(), "a driver has a name");
    let can = shelf.driver.capabilities();
    shelf.set("a", "1", TTL).await;
    let first = next(&mut shelf.driver.keys(&shelf.space)).await;
    if !can.clear {
        let cleared = shelf.driver.clear(&shelf.space).await;
        let error = cleared.expect_err("a driver without clear says so when it is asked to");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        shelf.has("a", b"1").await;
    }
    let lists_keys = !matches!(&first, Some(Err(error)) if error.kind() == ErrorKind::Unsupported);
    shelf.set("dead", "1", Some(shelf.short_ttl())).await;
    shelf.sleep_past(shelf.short_ttl()).await;
    let pruned = shelf.driver.prune().await.expect("prune");
    compare_declared(
        name,
        declared,
        &[
            ("atomic_pull", can.atomic_pull),
            ("atomic_compare", can.atomic_compare),
            ("keys", lists_keys),
            ("clear", can.clear),
            ("prune", can.native_expiry || pruned > 0),
            ("fine_ttl", can.ttl_precision <= Duration::from_millis(10)),
            ("long_keys", can.max_key.is_none_or(|limit| limit >= 10_300)),
            ("large_values", can.max_value.is_none_or(|limit| limit >= 64 << 20)),
            // The driver does not declare these.
            ("link", !declared.contains(&"link")),
            ("runtimes", !declared.contains(&"runtimes")),
        ],
    );
}

/// Any bytes are returned unchanged, under several keys at once.
pub async fn round_trip<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(1000).collect();
    shelf.set("json", r#"{"value":"é\u0000","createdAt":1}"#, TTL).await;
    shelf.set("bytes", every_byte.clone(), TTL).await;
    shelf.set("nul", &b"\0"[..], None).await;
    shelf.set("space", " a \r\n", None).await;
    shelf.has("json", r#"{"value":"é\u0000","createdAt":1}"#.as_bytes()).await;
    shelf.has("bytes", &every_byte).await;
    shelf.has("nul", b"\0").await;
    shelf.has("space", b" a \r\n").await;
    shelf.has("bytes", &every_byte).await;
}

/// A key that was never written has no value, and that is no error.
pub async fn missing_key<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.has_no("a").await;
    shelf.set("a", "1", TTL).await;
    shelf.has_no("b").await;
    shelf.has_no("a:").await;
    shelf.has_no("").await;
}

/// The last write wins, also if it is shorter or longer.
pub async fn overwriting<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let long = vec![b'x'; 10_000];
    for value in [&b"1"[..], &long, b"", b"22", &long[..9_999], b"3"] {
        shelf.set("a", value.to_vec(), TTL).await;
        shelf.has("a", value).await;
    }
}

/// An empty value is a value, not a miss.
pub async fn empty_value<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", Bytes::new(), TTL).await;
    shelf.has("a", b"").await;
    assert_eq!(shelf.get_many(&["a", "b"]).await, [Some(Bytes::new()), None]);
    assert!(shelf.update("a", b"", b"1", TTL).await, "update of an empty value");
    assert!(shelf.update("a", b"1", b"", TTL).await, "update to an empty value");
    assert!(!shelf.delete_if("b", b"").await, "a missing key is not an empty value");
    assert!(!shelf.update("b", b"", b"1", TTL).await, "a missing key is not an empty value");
    assert_eq!(shelf.pull("a").await, Some(Bytes::new()));
    shelf.has_no("a").await;
    shelf.set("a", Bytes::new(), TTL).await;
    assert_eq!(shelf.delete(&["a"]).await, 1);
    shelf.set("a", Bytes::new(), TTL).await;
    assert!(shelf.delete_if("a", b"").await, "delete_if of an empty value");
}

/// The empty key works like any other, or is refused.
pub async fn empty_key<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    works_or_is_refused(&*shelf.driver, "").await;
}

/// Keys that look like patterns, paths, quotes, or each other: each works and has its own value.
pub async fn hostile_keys<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    // At the end of a key, and at its start.
    let own = unique("kit");
    let starts = HOSTILE.iter().map(|hostile| format!("{hostile}{own}"));
    let ends = HOSTILE.iter().map(|hostile| shelf.key(hostile));
    let keys: Vec<String> = starts.chain(ends).collect();
    let value = |key: &str| Bytes::from(format!("value of {key}"));
    for key in &keys {
        let result = shelf.driver.set(key, value(key), TTL).await;
        result.unwrap_or_else(|error| panic!("set of {key:?}: {error}"));
    }
    for key in &keys {
        let found = shelf.driver.get(key).await;
        let found = found.unwrap_or_else(|error| panic!("get of {key:?}: {error}"));
        assert_eq!(found, Some(value(key)), "get of {key:?}");
    }
    let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = shelf.driver.get_many(&asked).await.expect("get_many");
    for (key, found) in keys.iter().zip(found) {
        assert_eq!(found, Some(value(key)), "get_many of {key:?}");
    }
    for (at, key) in keys.iter().enumerate() {
        let deleted = shelf.driver.delete(&[key]).await.expect("delete");
        assert_eq!(deleted, 1, "delete of {key:?}");
        assert_eq!(shelf.driver.get(key).await.expect("get"), None, "get of {key:?}, deleted");
        if let Some(other) = keys.get(at + 1) {
            let found = shelf.driver.get(other).await.expect("get");
            assert_eq!(found, Some(value(other)), "get of {other:?} after delete of {key:?}");
        }
    }
}

/// A key with a NUL works like any other, or is refused; it is never cut at the NUL.
pub async fn nul_in_keys<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "other", TTL).await;
    works_or_is_refused(&*shelf.driver, &shelf.key("a\0b")).await;
    works_or_is_refused(&*shelf.driver, &shelf.key("a\0")).await;
    works_or_is_refused(&*shelf.driver, &shelf.key("\0a")).await;
    shelf.has("a", b"other").await;
}

async fn works_or_is_refused<D: L2Driver>(driver: &D, key: &str) {
    match driver.set(key, Bytes::from_static(b"1"), TTL).await {
        Ok(()) => {
            let found = driver.get(key).await.expect("get");
            assert_eq!(found.as_deref(), Some(&b"1"[..]), "get of {key:?}");
            assert_eq!(driver.delete(&[key]).await.expect("delete"), 1, "delete of {key:?}");
        }
        Err(error) => {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::TooLarge | ErrorKind::Refused | ErrorKind::Unsupported),
                "the key {key:?} is refused as {kind:?}; that is no reason: {error}",
            );
            assert!(error.to_string().len() > 10, "why is {key:?} refused? {error}");
        }
    }
    left_nothing(driver, key).await;
}

/// After a refusal or a delete.
async fn left_nothing<D: L2Driver>(driver: &D, key: &str) {
    match driver.get(key).await {
        Ok(found) => assert!(found.is_none(), "something is under {:?}", start_of(key)),
        Err(error) => assert!(
            !error.is_transient(),
            "get of {:?} should say that such a key is refused, or nothing: {error}",
            start_of(key),
        ),
    }
}

fn start_of(key: &str) -> String {
    key.chars().take(60).collect()
}

/// Writing or deleting one key never affects a similar key.
pub async fn keys_never_meet<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    for (one, other) in [
        ("a", "a:b"),
        ("a:b", "a/b"),
        ("a:b", "a.b"),
        ("a:b", "a_b"),
        ("a:b", "a%3Ab"),
        ("a", "A"),
        ("é", "É"),
        ("a", "a "),
        ("a", " a"),
        ("a", "a\n"),
        ("a", "a."),
        ("a", "./a"),
        ("a", "b/../a"),
        ("a/b", "a//b"),
        ("\u{e9}", "e\u{301}"),
        ("\u{e9}", "e"),
        ("ß", "ss"),
        ("ı", "i"),
        ("\u{2126}", "\u{3a9}"),
        ("a", "\u{ff41}"),
        ("a", "a\u{200b}"),
        ("1", "01"),
        ("1", "1.0"),
        ("%41", "A"),
        ("a+b", "a b"),
        ("a*", "ab"),
        ("a_", "ab"),
        ("a?", "ab"),
    ] {
        shelf.set(one, "one", TTL).await;
        shelf.has_no(other).await;
        shelf.set(other, "other", TTL).await;
        shelf.has(one, b"one").await;
        shelf.has(other, b"other").await;
        let both = shelf.get_many(&[other, one]).await;
        assert_eq!(both, [Some("other".into()), Some("one".into())], "{other:?}, {one:?}");
        assert_eq!(shelf.delete(&[one]).await, 1, "delete of {one:?} beside {other:?}");
        shelf.has_no(one).await;
        shelf.has(other, b"other").await;
        assert_eq!(shelf.delete(&[one, other]).await, 1, "delete of {other:?}");
    }
}

/// Keys of 10 kB work, and their last byte counts.
pub async fn key_of_10_kb<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    for filler in ["x", "é", "%", "/", "."] {
        let long = filler.repeat(10_000 / filler.len());
        let [one, other] = [format!("{long}1"), format!("{long}2")];
        shelf.set(&one, "1", TTL).await;
        shelf.has_no(&other).await;
        shelf.set(&other, "2", TTL).await;
        shelf.has(&one, b"1").await;
        assert_eq!(shelf.delete(&[&one]).await, 1);
        shelf.has(&other, b"2").await;
    }
}

/// A key or value above a declared limit is refused with an error that names the limit, and nothing
/// is stored; one at the limit works.
pub async fn limits_are_named<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let can = shelf.driver.capabilities();
    if let Some(limit) = can.max_key {
        let key_of = |size: usize| shelf.key(&"k".repeat(size - shelf.space.len()));
        let [fits, over] = [key_of(limit), key_of(limit + 1)];
        let value = || Bytes::from_static(b"1");
        shelf.driver.set(&fits, value(), TTL).await.expect("a key of just the limit");
        let found = shelf.driver.get(&fits).await.expect("get");
        assert_eq!(found, Some(value()), "a key of just the limit");
        shelf.driver.delete(&[&fits]).await.expect("delete");
        for over in [over, key_of(limit * 2 + 1), key_of(limit + 10_000)] {
            is_too_large(shelf.driver.set(&over, value(), TTL).await, limit);
            let write = Write { key: &over, value: value(), ttl: TTL };
            is_too_large(shelf.driver.set_many(&[write]).await, limit);
            left_nothing(&*shelf.driver, &over).await;
            left_nothing(&*shelf.driver, &fits).await;
        }
    }
    if let Some(limit) = can.max_value {
        shelf.set("fits", vec![b'v'; limit], TTL).await;
        let found = shelf.get("fits").await.expect("a value of just the limit");
        assert!(found == vec![b'v'; limit], "a value of just the limit comes back whole");
        shelf.delete(&["fits"]).await;
        is_too_large(shelf.try_set("over", vec![b'v'; limit + 1], TTL).await, limit);
        shelf.has_no("over").await;
        let key = shelf.key("over");
        let write = Write { key: &key, value: vec![b'v'; limit + 1].into(), ttl: TTL };
        is_too_large(shelf.driver.set_many(&[write]).await, limit);
        shelf.has_no("over").await;
        // Over an older value: the old value or none, but no part of the new one.
        shelf.set("over", "old", TTL).await;
        is_too_large(shelf.try_set("over", vec![b'v'; limit + 1], TTL).await, limit);
        let left = shelf.get("over").await;
        assert!(left.is_none_or(|left| left == "old"), "a refused write left a piece of itself");
    }
}

/// A key that the store can never contain is no reason for a retry in any call: it is refused, or
/// counts as missing.
pub async fn too_long_keys_are_refused_for_good<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let driver = &shelf.driver;
    let Some(limit) = driver.capabilities().max_key else { return };
    for size in [limit + 1, limit * 2, limit + 10_000] {
        let key = shelf.key(&"k".repeat(size - shelf.space.len()));
        let value = || Bytes::from_static(b"1");
        is_too_large(driver.set(&key, value(), TTL).await, limit);
        is_too_large(driver.insert(&key, value(), TTL).await, limit);
        is_final_or(&false, "update", driver.update(&key, b"0", value(), TTL).await);
        is_final_or(&false, "delete_if", driver.delete_if(&key, b"1").await);
        is_final_or(&0, "delete", driver.delete(&[&key]).await);
        is_final_or(&None, "pull", driver.pull(&key).await);
        is_final_or(&None, "get", driver.get(&key).await);
        is_final_or(&vec![None], "get_many", driver.get_many(&[&key]).await);
    }
    // Other keys in the same call work.
    shelf.set("a", "1", TTL).await;
    shelf.has("a", b"1").await;
}

fn is_final_or<T: PartialEq + std::fmt::Debug>(
    nothing: &T,
    call: &str,
    result: Result<T, DriverError>,
) {
    match result {
        Ok(found) => assert_eq!(&found, nothing, "{call} of a key that is too long"),
        Err(error) => {
            assert!(!error.is_transient(), "{call} of a key that is too long: {error}");
        }
    }
}

fn is_too_large<T: std::fmt::Debug>(result: Result<T, DriverError>, limit: usize) {
    let error = result.expect_err("over the limit, but taken");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    let message: String = error.to_string().replace([',', '_', '\''], "");
    let units = [1, 1 << 10, 1 << 20, 1 << 30, 1_000, 1_000_000, 1_000_000_000];
    let names = units.iter().filter(|unit| limit.is_multiple_of(**unit)).map(|unit| limit / unit);
    let is_named = names.filter(|number| *number > 0).any(|number| {
        let number = number.to_string();
        message.split(|c: char| !c.is_ascii_digit()).any(|word| word == number)
    });
    assert!(is_named, "the message should name the limit of {limit} bytes: {error}");
}

/// A value of 1 MiB is returned complete, unless the driver declares a lower limit.
pub async fn value_of_1_mib<D: L2Driver>(open: impl AsyncFn() -> D) {
    value_of(open, 1 << 20).await;
}

/// A value of 64 MiB is returned complete.
pub async fn value_of_64_mib<D: L2Driver>(open: impl AsyncFn() -> D) {
    value_of(open, 64 << 20).await;
}

async fn value_of<D: L2Driver>(open: impl AsyncFn() -> D, size: usize) {
    let shelf = Shelf::open(&open).await;
    if let Some(limit) = shelf.driver.capabilities().max_value.filter(|limit| *limit < size) {
        return is_too_large(shelf.try_set("a", vec![0; size], TTL).await, limit);
    }
    // No two parts are the same, and it does not compress well.
    let mut word = 1_u32;
    let mut value = Vec::with_capacity(size);
    while value.len() < size {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        value.extend_from_slice(&word.to_le_bytes());
    }
    let value = Bytes::from(value);
    shelf.set("a", value.clone(), TTL).await;
    let found = shelf.get("a").await.expect("the value");
    assert_eq!(found.len(), value.len(), "the value comes back whole");
    assert!(found == value, "the value comes back as it was");
    assert_eq!(shelf.delete(&["a"]).await, 1);
}

/// A value lives for its ttl, and no longer than the declared precision past it.
pub async fn expiry<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    for name in ["a", "b"] {
        shelf.set("other", "2", TTL).await;
        let start = Instant::now();
        shelf.set(name, "1", Some(ttl)).await;
        shelf.ends(name, start, ttl).await;
        shelf.has("other", b"2").await;
    }
    // A key can be used again, with its full ttl.
    let start = Instant::now();
    shelf.set("a", "3", Some(ttl)).await;
    shelf.ends("a", start, ttl).await;
}

/// A ttl is not rounded to seconds.
pub async fn expiry_to_the_millisecond<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    assert!(shelf.precision() <= Duration::from_millis(10), "what `fine_ttl` means");
    for millis in [50, 120, 1_080] {
        let ttl = Duration::from_millis(millis);
        let start = Instant::now();
        shelf.set("a", "1", Some(ttl)).await;
        shelf.ends("a", start, ttl).await;
    }
}

/// Without a ttl a value stays.
pub async fn no_ttl<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", None).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    shelf.driver.prune().await.expect("prune");
    shelf.has("a", b"1").await;
}

/// A ttl beyond every clock neither panics nor wraps around.
pub async fn huge_ttl<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let year = 365 * 24 * 60 * 60;
    for ttl in [
        Duration::MAX,
        Duration::from_secs(u64::MAX),
        Duration::from_millis(u64::MAX),
        Duration::from_secs(i64::MAX as u64 + 1),
        Duration::from_millis(i64::MAX as u64),
        Duration::from_secs(u64::from(u32::MAX) + 1),
        Duration::from_millis(u64::from(u32::MAX) + 1),
        Duration::from_secs(10_000 * year),
        Duration::from_secs(100 * year),
        Duration::from_secs(30 * year),
    ] {
        let result = shelf.try_set("a", "1", Some(ttl)).await;
        result.unwrap_or_else(|error| panic!("a ttl of {ttl:?}: {error}"));
        let found = shelf.get("a").await;
        assert_eq!(found.as_deref(), Some(&b"1"[..]), "a ttl of {ttl:?}");
        let is_updated = shelf.update("a", b"1", b"2", Some(ttl)).await;
        assert!(is_updated, "update with {ttl:?} left");
        shelf.driver.prune().await.expect("prune");
        shelf.has("a", b"2").await;
        shelf.delete(&["a"]).await;
    }
    let key = shelf.key("a");
    let write = Write { key: &key, value: "1".into(), ttl: Some(Duration::MAX) };
    shelf.driver.set_many(&[write]).await.expect("set_many with Duration::MAX");
    shelf.has("a", b"1").await;
}

/// A ttl below the store's precision is accepted, and does not mean "no end".
pub async fn tiny_ttl<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttls = [1, 1_000, 999_999, 1_000_000, 1_500_000].map(Duration::from_nanos);
    for (at, ttl) in ttls.into_iter().enumerate() {
        shelf.set(&format!("a{at}"), "1", Some(ttl)).await;
    }
    // Also over a value that lives longer.
    shelf.set("b", "1", None).await;
    shelf.set("b", "2", Some(Duration::from_nanos(1))).await;
    for name in ["a0", "a1", "a2", "a3", "a4", "b"] {
        shelf.ends(name, Instant::now(), Duration::ZERO).await;
    }
}

/// A ttl of zero leaves no readable value, neither a new nor an old one.
pub async fn zero_ttl<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("b", "1", None).await;
    shelf.set("a", "1", Some(Duration::ZERO)).await;
    shelf.set("b", "2", Some(Duration::ZERO)).await;
    let key = shelf.key("c");
    let write = Write { key: &key, value: "1".into(), ttl: Some(Duration::ZERO) };
    shelf.driver.set_many(&[write]).await.expect("set_many with a ttl of zero");
    for name in ["a", "b", "c"] {
        shelf.ends(name, Instant::now(), Duration::ZERO).await;
    }
}

/// A write replaces the expiry: it can end, lengthen and shorten it.
pub async fn overwriting_replaces_the_expiry<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    shelf.set("ends", "1", None).await;
    shelf.set("shorter", "1", TTL).await;
    shelf.set("longer", "1", Some(ttl)).await;
    shelf.set("stays", "1", Some(ttl)).await;
    let start = Instant::now();
    shelf.set("ends", "2", Some(ttl)).await;
    shelf.set("shorter", "2", Some(ttl)).await;
    shelf.set("longer", "2", TTL).await;
    shelf.set("stays", "2", None).await;
    shelf.ends("ends", start, ttl).await;
    shelf.ends("shorter", start, ttl).await;
    shelf.sleep_past(ttl).await;
    shelf.driver.prune().await.expect("prune");
    shelf.has("longer", b"2").await;
    shelf.has("stays", b"2").await;
}

/// No operation finds a value that has expired.
pub async fn expired_values_are_nowhere<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    let names = ["get", "get_many", "pull", "update", "delete_if", "keys", "set"];
    for name in names {
        shelf.set(name, "1", Some(ttl)).await;
    }
    shelf.sleep_past(ttl).await;
    // One key for each: a read may remove an expired value.
    shelf.has_no("get").await;
    assert_eq!(shelf.get_many(&["get_many"]).await, [None]);
    assert_eq!(shelf.pull("pull").await, None, "pull of an expired value");
    assert!(!shelf.update("update", b"1", b"2", TTL).await, "update of an expired value");
    shelf.has_no("update").await;
    assert!(!shelf.delete_if("delete_if", b"1").await, "delete_if of an expired value");
    match next(&mut shelf.driver.keys(&shelf.space)).await {
        None => {}
        Some(Err(error)) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
        Some(Ok(key)) => panic!("keys lists {key:?}, which has expired"),
    }
    shelf.set("set", "2", TTL).await;
    shelf.has("set", b"2").await;
}

/// `delete` returns how many of the keys existed.
pub async fn delete_counts<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    for name in ["a", "b", "c"] {
        shelf.set(name, "1", TTL).await;
    }
    assert_eq!(shelf.delete(&["a"]).await, 1, "one that is there");
    assert_eq!(shelf.delete(&["a"]).await, 0, "one that is gone");
    assert_eq!(shelf.delete(&["b", "missing", "a"]).await, 1, "one of three");
    shelf.has_no("a").await;
    shelf.has_no("b").await;
    shelf.has("c", b"1").await;
}

/// Deleting no keys does nothing, and not everything.
pub async fn delete_of_nothing<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    assert_eq!(shelf.driver.delete(&[]).await.expect("delete of no keys"), 0);
    shelf.has("a", b"1").await;
}

/// A repeated key counts once.
pub async fn delete_of_duplicates<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    shelf.set("b", "1", TTL).await;
    assert_eq!(shelf.delete(&["a", "a", "b", "a"]).await, 2);
    shelf.has_no("a").await;
    shelf.has_no("b").await;
}

/// Answers come in the order of the keys, also for missing and repeated ones.
pub async fn get_many_keeps_order<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("b", "2", TTL).await;
    shelf.set("a", "1", TTL).await;
    shelf.set("c", "", TTL).await;
    let found = shelf.get_many(&["c", "missing", "a", "b", "a", "missing", "A"]).await;
    let [one, two] = [Some(Bytes::from("1")), Some(Bytes::from("2"))];
    let empty = Some(Bytes::new());
    assert_eq!(found, [empty, None, one.clone(), two, one, None, None]);
}

/// Asking for no keys gives no values.
pub async fn get_many_of_nothing<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    let found = shelf.driver.get_many(&[]).await.expect("get_many of no keys");
    assert_eq!(found, Vec::<Option<Bytes>>::new());
}

/// Each write of a batch has its own ttl.
pub async fn set_many_with_mixed_ttls<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    shelf.set("stays", "old", Some(ttl)).await;
    let keys = shelf.full(&["ends", "stays", "long", "empty"]);
    let write = |at: usize, value: &str, ttl| Write {
        key: &keys[at],
        value: Bytes::copy_from_slice(value.as_bytes()),
        ttl,
    };
    let start = Instant::now();
    let writes =
        [write(0, "1", Some(ttl)), write(1, "2", None), write(2, "3", TTL), write(3, "", TTL)];
    shelf.driver.set_many(&writes).await.expect("set_many");
    let found = shelf.get_many(&["long", "stays", "empty"]).await;
    assert_eq!(found, [Some("3".into()), Some("2".into()), Some("".into())]);
    shelf.ends("ends", start, ttl).await;
    shelf.sleep_past(ttl).await;
    shelf.has("stays", b"2").await;
    shelf.has("long", b"3").await;
}

/// Writing nothing does nothing.
pub async fn set_many_of_nothing<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    shelf.driver.set_many(&[]).await.expect("set_many of nothing");
    shelf.has("a", b"1").await;
}

/// Of two writes to one key in a batch, the later one wins.
pub async fn set_many_of_duplicates<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let key = shelf.key("a");
    let other = shelf.key("b");
    let write = |key, value: &'static str| Write { key, value: value.into(), ttl: TTL };
    let writes = [write(&key, "1"), write(&other, "2"), write(&key, "3")];
    shelf.driver.set_many(&writes).await.expect("set_many with a key twice");
    shelf.has("a", b"3").await;
    shelf.has("b", b"2").await;
}

/// Batches of 1,000 keys are within every limit on parameters and requests.
pub async fn a_thousand_keys<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let keys: Vec<String> = (0..1_000).map(|at| shelf.key(&format!("k{at}"))).collect();
    let value = |at: usize| Bytes::from(format!("value {at}"));
    let writes: Vec<Write<'_>> = keys
        .iter()
        .enumerate()
        .filter(|(at, _)| at % 10 != 0)
        .map(|(at, key)| Write { key, value: value(at), ttl: TTL })
        .collect();
    shelf.driver.set_many(&writes).await.expect("set_many of 900");
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = shelf.driver.get_many(&keys).await.expect("get_many of 1,000");
    assert_eq!(found.len(), 1_000);
    for (at, found) in found.into_iter().enumerate() {
        assert_eq!(found, (at % 10 != 0).then(|| value(at)), "key {at} of 1,000");
    }
    assert_eq!(shelf.driver.delete(&keys).await.expect("delete of 1,000"), 900);
    let found = shelf.driver.get_many(&keys).await.expect("get_many of 1,000");
    assert!(found.iter().all(Option::is_none), "delete of 1,000 left some");
}

/// Prefixes that a store could treat as patterns, and keys that such a pattern would match.
const PREFIXES: &[(&str, &[&str])] = &[
    ("app*", &["app", "apple", "app:a", "ap"]),
    ("app_1", &["appX1", "app-1:a", "app:1"]),
    ("app%", &["app", "apple", "app:a"]),
    ("app?", &["appX", "app", "app:"]),
    ("app[1]", &["app1", "app1:a"]),
    ("app[", &["app", "app:a"]),
    ("app\\", &["app", "app:a", "app*", "app%"]),
    ("app\\*", &["app*", "app*a", "appa"]),
    ("app.", &["appX", "app:a"]),
    ("{app}", &["app", "app:a"]),
    ("^app", &["app", "app:a"]),
    ("app|x", &["app", "x"]),
    ("app'", &["app", "app:a"]),
    ("users", &["user", "Users", "USERS:a", " users", "user:s"]),
    ("users:", &["users", "usersAbc", "usersAbc:a", "users/a"]),
    ("a/", &["a", "a:", "a\\b"]),
    ("../", &["..", "..:a", "a"]),
    ("\u{e9}", &["e", "e\u{301}", "\u{c9}", "\u{ea}"]),
    ("z\u{10ffff}", &["z", "z\u{10fffe}", "za"]),
    ("%41", &["A", "Aa", "41"]),
];

/// `clear` deletes the keys that start with the prefix, and no key that only looks like it.
pub async fn clear_takes_the_prefix_literally<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    for (prefix, others) in PREFIXES {
        let own = ["", "a", ":a", ":a:b", "*", "%", "é", " "].map(|end| format!("{prefix}{end}"));
        for name in own.iter().map(String::as_str).chain(others.iter().copied()) {
            shelf.set(name, "1", TTL).await;
        }
        shelf.clear(prefix).await;
        for name in &own {
            assert_eq!(shelf.get(name).await, None, "clear of {prefix:?} left {name:?}");
        }
        for name in *others {
            let is_left = shelf.get(name).await.is_some();
            assert!(is_left, "clear of {prefix:?} deleted {name:?}");
        }
        shelf.clear(prefix).await;
        assert_eq!(shelf.delete(others).await, others.len() as u64);
    }
}

/// `clear` deletes more keys than one page of a listing, including those of other instances.
pub async fn clear_of_many_keys<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    let keys: Vec<String> = (0..2_500).map(|at| shelf.key(&format!("a:{at}"))).collect();
    for keys in keys.chunks(500) {
        let write = |key| Write { key, value: Bytes::from_static(b"1"), ttl: TTL };
        let writes: Vec<Write<'_>> = keys.iter().map(|key| write(key)).collect();
        shelf.driver.set_many(&writes).await.expect("set_many");
    }
    shelf.set("b:1", "1", TTL).await;
    other.clear("a:").await;
    for keys in keys.chunks(500) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let found = shelf.driver.get_many(&keys).await.expect("get_many");
        let left = found.iter().flatten().count();
        assert_eq!(left, 0, "clear left {left} of 500 keys");
    }
    other.has("b:1", b"1").await;
}

/// `clear` with an empty prefix deletes everything that belongs to the store, or is refused and
/// deletes nothing.
pub async fn clear_of_everything<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    shelf.set("b:c", "2", None).await;
    match shelf.driver.clear("").await {
        Ok(()) => {
            shelf.has_no("a").await;
            shelf.has_no("b:c").await;
            shelf.set("a", "3", TTL).await;
            shelf.has("a", b"3").await;
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            assert!(error.to_string().len() > 10, "what should be configured? {error}");
            shelf.has("a", b"1").await;
            shelf.has("b:c", b"2").await;
        }
    }
}

/// `pull` returns the value and removes it.
pub async fn pull_takes<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    shelf.set("b", "2", None).await;
    assert_eq!(shelf.pull("a").await, Some("1".into()));
    assert_eq!(shelf.pull("a").await, None);
    shelf.has_no("a").await;
    shelf.has("b", b"2").await;
    assert_eq!(shelf.pull("b").await, Some("2".into()));
}

/// `pull` of a missing key returns nothing and creates nothing.
pub async fn pull_of_nothing<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    assert_eq!(shelf.pull("a").await, None);
    shelf.has_no("a").await;
}

/// Runs `call` in eight concurrent tasks, on two instances in turn.
async fn at_once<D, F, T>(
    shelves: [&Shelf<D>; 2],
    name: &str,
    call: impl Fn(usize, Arc<D>, String) -> F,
) -> Vec<T>
where
    D: L2Driver,
    F: Future<Output = Result<T, DriverError>> + Send + 'static,
    T: Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(8));
    let tasks: Vec<_> = (0..8)
        .map(|at| {
            let call = call(at, shelves[at % 2].driver.clone(), shelves[0].key(name));
            let start = start.clone();
            tokio::spawn(async move {
                start.wait().await;
                call.await
            })
        })
        .collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.expect("no panic").expect("no error"));
    }
    results
}

/// Of eight concurrent pulls on two instances, one gets the value.
pub async fn concurrent_pulls<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..40 {
        shelf.set("a", "1", TTL).await;
        let results =
            at_once([&shelf, &other], "a", |_, driver, key| async move { driver.pull(&key).await })
                .await;
        let winners = results.iter().flatten().count();
        assert_eq!(winners, 1, "in round {round}, of 8 concurrent pulls");
        shelf.has_no("a").await;
    }
}

/// `update` replaces the expected bytes.
pub async fn update_replaces<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "1", TTL).await;
    assert!(shelf.update("a", b"1", b"two", TTL).await);
    shelf.has("a", b"two").await;
    assert!(shelf.update("a", b"two", b"", TTL).await);
    shelf.has("a", b"").await;
    let every_byte: Vec<u8> = (0..=255).collect();
    assert!(shelf.update("a", b"", &every_byte, TTL).await);
    assert!(shelf.update("a", &every_byte, b"3", TTL).await);
    shelf.has("a", b"3").await;
}

/// `update` keeps the expiry, or its absence.
pub async fn update_keeps_the_expiry<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl().max(Duration::from_millis(1_500));
    shelf.set("stays", "1", None).await;
    let start = Instant::now();
    shelf.set("ends", "1", Some(ttl)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let left = ttl - start.elapsed().min(ttl);
    assert!(shelf.update("ends", b"1", b"2", Some(left)).await);
    assert!(shelf.update("stays", b"1", b"2", None).await);
    shelf.has("ends", b"2").await;
    // A store that cannot keep the expiry rounds the remaining time once more.
    shelf.ends_within("ends", start, ttl, shelf.precision()).await;
    shelf.driver.prune().await.expect("prune");
    shelf.has("stays", b"2").await;
}

/// `update` does not change a value that differs from the expected one.
pub async fn update_compares<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "value", TTL).await;
    for other in ["", "valu", "value ", "VALUE", "value\0", "v_lue", "%"] {
        let is_updated = shelf.update("a", other.as_bytes(), b"2", TTL).await;
        assert!(!is_updated, "update of {other:?} replaced \"value\"");
        shelf.has("a", b"value").await;
    }
}

/// `update` creates nothing: no missing, deleted or pulled key.
pub async fn update_creates_nothing<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    assert!(!shelf.update("a", b"1", b"2", TTL).await, "update of a missing key");
    shelf.has_no("a").await;
    shelf.set("a", "1", TTL).await;
    shelf.delete(&["a"]).await;
    assert!(!shelf.update("a", b"1", b"2", TTL).await, "update of a deleted key");
    shelf.set("a", "1", TTL).await;
    shelf.pull("a").await;
    assert!(!shelf.update("a", b"1", b"2", TTL).await, "update of a pulled key");
    if shelf.driver.capabilities().clear {
        shelf.set("a", "1", TTL).await;
        shelf.clear("a").await;
        assert!(!shelf.update("a", b"1", b"2", TTL).await, "update of a cleared key");
    }
    shelf.has_no("a").await;
}

/// Of eight concurrent updates of the same bytes, one succeeds, and its value stays.
pub async fn concurrent_updates<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..40 {
        shelf.set("a", "old", TTL).await;
        let results = at_once([&shelf, &other], "a", |at, driver, key| async move {
            driver.update(&key, b"old", format!("new {at}").into(), TTL).await
        })
        .await;
        let winners: Vec<usize> = (0..8).filter(|at| results[*at]).collect();
        assert_eq!(winners.len(), 1, "in round {round}, of 8 concurrent updates");
        shelf.has("a", format!("new {}", winners[0]).as_bytes()).await;
    }
}

/// An update never overwrites a value that was set in the meantime.
pub async fn update_against_set<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..60 {
        shelf.set("a", "old", TTL).await;
        at_once([&shelf, &other], "a", |at, driver, key| async move {
            if at == 4 {
                driver.set(&key, "newer".into(), TTL).await
            } else {
                driver.update(&key, b"old", "updated".into(), TTL).await.map(drop)
            }
        })
        .await;
        let found = shelf.get("a").await;
        assert_eq!(found.as_deref(), Some(&b"newer"[..]), "in round {round}, after set");
    }
}

/// `insert` stores a missing key with the given expiry, and does not change an existing one.
pub async fn insert_spares_what_is_there<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let insert = async |name: &str, value: &'static str, ttl| {
        shelf.driver.insert(&shelf.key(name), value.into(), ttl).await.expect("insert")
    };
    assert!(insert("a", "1", TTL).await, "insert of a missing key");
    assert!(!insert("a", "2", None).await, "insert of a key that is there");
    shelf.has("a", b"1").await;
    assert_eq!(shelf.delete(&["a"]).await, 1);
    assert!(insert("a", "3", None).await, "insert of a deleted key");
    shelf.has("a", b"3").await;
    shelf.set("b", "", TTL).await;
    assert!(!insert("b", "1", TTL).await, "an empty value is there");
}

/// An inserted value ends like a value that was set.
pub async fn insert_keeps_its_ttl<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    let insert = async |name: &str, ttl| {
        shelf.driver.insert(&shelf.key(name), "1".into(), ttl).await.expect("insert")
    };
    assert!(insert("stays", None).await);
    let start = Instant::now();
    assert!(insert("ends", Some(ttl)).await);
    shelf.has("ends", b"1").await;
    // An insert that finds a value does not change its expiry either.
    assert!(!insert("ends", None).await);
    shelf.ends("ends", start, ttl).await;
    shelf.driver.prune().await.expect("prune");
    shelf.has("stays", b"1").await;
}

/// An expired value counts as missing, whether it was removed or not.
pub async fn insert_replaces_what_has_expired<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "old", Some(shelf.short_ttl())).await;
    shelf.sleep_past(shelf.short_ttl()).await;
    let inserted = shelf.driver.insert(&shelf.key("a"), "new".into(), TTL).await;
    assert!(inserted.expect("insert"), "insert of a key whose value has expired");
    shelf.has("a", b"new").await;
}

/// Of eight concurrent inserts one succeeds, and its value stays.
pub async fn concurrent_inserts<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..40 {
        shelf.delete(&["a"]).await;
        let results = at_once([&shelf, &other], "a", |at, driver, key| async move {
            driver.insert(&key, format!("new {at}").into(), TTL).await
        })
        .await;
        let winners: Vec<usize> = (0..8).filter(|at| results[*at]).collect();
        assert_eq!(winners.len(), 1, "in round {round}, of 8 concurrent inserts");
        shelf.has("a", format!("new {}", winners[0]).as_bytes()).await;
    }
}

/// `delete_if` deletes exactly these bytes and nothing else.
pub async fn delete_if_compares<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    shelf.set("a", "value", TTL).await;
    shelf.set("b", "value", TTL).await;
    for other in ["", "valu", "value ", "VALUE", "value\0", "v_lue", "%"] {
        let is_deleted = shelf.delete_if("a", other.as_bytes()).await;
        assert!(!is_deleted, "delete_if of {other:?} deleted \"value\"");
        shelf.has("a", b"value").await;
    }
    assert!(shelf.delete_if("a", b"value").await);
    shelf.has_no("a").await;
    assert!(!shelf.delete_if("a", b"value").await, "delete_if of a deleted key");
    assert!(!shelf.delete_if("missing", b"value").await, "delete_if of a missing key");
    shelf.has("b", b"value").await;
    let every_byte: Vec<u8> = (0..=255).collect();
    shelf.set("a", every_byte.clone(), None).await;
    assert!(shelf.delete_if("a", &every_byte).await);
}

/// Of eight concurrent `delete_if`, one succeeds.
pub async fn concurrent_delete_ifs<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..40 {
        shelf.set("a", "1", TTL).await;
        let results = at_once([&shelf, &other], "a", |_, driver, key| async move {
            driver.delete_if(&key, b"1").await
        })
        .await;
        let winners = results.iter().filter(|is_deleted| **is_deleted).count();
        assert_eq!(winners, 1, "in round {round}, of 8 concurrent delete_ifs");
    }
}

/// A `delete_if` never deletes a value that was set in the meantime.
pub async fn delete_if_against_set<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..60 {
        shelf.set("a", "old", TTL).await;
        at_once([&shelf, &other], "a", |at, driver, key| async move {
            if at == 4 {
                driver.set(&key, "newer".into(), TTL).await
            } else {
                driver.delete_if(&key, b"old").await.map(drop)
            }
        })
        .await;
        let found = shelf.get("a").await;
        assert_eq!(found.as_deref(), Some(&b"newer"[..]), "in round {round}, after set");
    }
}

/// `keys` lists the keys with the prefix exactly as written, once each, and nothing else.
pub async fn keys_are_exact<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    assert_eq!(shelf.list("").await, BTreeSet::new());
    for (prefix, others) in PREFIXES {
        let own = ["", "a", ":a", "*", "é"].map(|end| format!("{prefix}{end}"));
        for name in own.iter().map(String::as_str).chain(others.iter().copied()) {
            shelf.set(name, "1", TTL).await;
        }
        assert_eq!(shelf.list(prefix).await, BTreeSet::from(own.clone()), "keys of {prefix:?}");
        let all: Vec<&str> = own.iter().map(String::as_str).chain(others.iter().copied()).collect();
        shelf.delete(&all).await;
    }
    for hostile in HOSTILE {
        shelf.set(hostile, "1", None).await;
    }
    let all: BTreeSet<String> = HOSTILE.iter().map(ToString::to_string).collect();
    assert_eq!(shelf.list("").await, all);
    shelf.delete(HOSTILE).await;
    let many: BTreeSet<String> = (0..1_200).map(|at| format!("k{at}")).collect();
    let keys: Vec<String> = many.iter().map(|name| shelf.key(name)).collect();
    let write = |key| Write { key, value: Bytes::from_static(b"1"), ttl: TTL };
    let writes: Vec<Write<'_>> = keys.iter().map(|key| write(key)).collect();
    shelf.driver.set_many(&writes).await.expect("set_many");
    assert_eq!(shelf.list("k").await, many);
    shelf.delete(&["k7"]).await;
    assert!(!shelf.list("k").await.contains("k7"), "keys lists a deleted key");
}

/// `prune` removes the expired values, counts them and keeps the others. A store that expires
/// values by itself may remove them earlier.
pub async fn prune_removes_the_dead<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    for at in 0..20 {
        shelf.set(&format!("dead{at}"), "1", Some(ttl)).await;
    }
    shelf.set("stays", "1", None).await;
    shelf.set("long", "1", TTL).await;
    shelf.sleep_past(ttl).await;
    let pruned = shelf.driver.prune().await.expect("prune");
    if !shelf.driver.capabilities().native_expiry {
        assert!(pruned >= 20, "prune removed {pruned} of 20");
        let more = shelf.driver.prune().await.expect("prune");
        assert!(more < 20, "prune counts again what it has removed: {more}");
    }
    shelf.has("stays", b"1").await;
    shelf.has("long", b"1").await;
    shelf.has_no("dead0").await;
}

/// One of many writers to one key wins; no reader sees a mixture.
pub async fn concurrent_writers<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    shelf.set("a", vec![b'a'; 1_000], TTL).await;
    let writing = Arc::new(AtomicUsize::new(6));
    at_once([&shelf, &other], "a", |at, driver, key| {
        let writing = writing.clone();
        async move {
            for round in 0..10 * usize::from(at < 6) {
                // Sizes differ, so that a short value over a long one would show.
                let value = vec![b'a' + at as u8; 1_000 + at * 4_096 + round];
                driver.set(&key, value.into(), TTL).await?;
            }
            if at < 6 {
                writing.fetch_sub(1, Relaxed);
            }
            // Two tasks only read, all the while.
            while at >= 6 && writing.load(Relaxed) > 0 {
                let found = driver.get(&key).await?;
                is_whole(&found.expect("a key that is only overwritten is always there"));
                tokio::task::yield_now().await;
            }
            Ok(())
        }
    })
    .await;
    let found = shelf.get("a").await.expect("a value");
    is_whole(&found);
    assert_eq!(other.get("a").await, Some(found), "both instances see the same");
}

/// Each of 200 concurrent readers gets the value of its own key, or none. A driver may batch them.
pub async fn concurrent_readers<D: L2Driver>(open: impl AsyncFn() -> D) {
    const READERS: usize = 200;
    let shelf = Shelf::open(&open).await;
    let value = |at: usize| Bytes::from(format!("value {at}"));
    let names: Vec<String> = (0..READERS).map(|at| shelf.key(&format!("{at}"))).collect();
    let there = |at: usize| at.is_multiple_of(2);
    for at in (0..READERS).filter(|at| there(*at)) {
        shelf.set(&format!("{at}"), value(at), TTL).await;
    }
    let start = Arc::new(tokio::sync::Barrier::new(READERS));
    let readers = names.into_iter().map(|key| {
        let (driver, start) = (shelf.driver.clone(), start.clone());
        tokio::spawn(async move {
            start.wait().await;
            let first = driver.get(&key).await?;
            // Once more, in the middle of the others.
            Ok::<_, DriverError>((first, driver.get(&key).await?))
        })
    });
    for (at, reader) in readers.collect::<Vec<_>>().into_iter().enumerate() {
        let both = reader.await.expect("no panic").expect("no error");
        let expected = there(at).then(|| value(at));
        assert_eq!(both, (expected.clone(), expected), "reader {at} of {READERS} at once");
    }
}

fn is_whole(value: &Bytes) {
    let letter = value.first().copied().unwrap_or_default();
    assert!(value.iter().all(|byte| *byte == letter), "a value is mixed of two");
    let writer = usize::from(letter.wrapping_sub(b'a'));
    let sizes = 1_000 + writer * 4_096..1_010 + writer * 4_096;
    assert!(sizes.contains(&value.len()), "a value is cut: {} bytes", value.len());
}

/// Calls may be dropped at any await: the value stays complete and the driver usable.
pub async fn abandoned_calls<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let key = shelf.key("a");
    let value = |letter: u8| Bytes::from(vec![letter; 100_000]);
    shelf.driver.set(&key, value(b'a'), TTL).await.expect("set");
    for round in 0..60_u8 {
        let patience = Duration::from_micros(u64::from(round) * 37);
        let driver = &shelf.driver;
        let calls = async {
            let _ = driver.set(&key, value(b'b' + round % 20), TTL).await;
            let _ = driver.get_many(&[&key, "missing"]).await;
            let _ = driver.update(&key, b"x", value(b'x'), TTL).await;
            let _ = driver.touch("missing", TTL).await;
            let _ = driver.delete_if(&key, b"x").await;
        };
        // Once by time, and once after the first step.
        let _ = tokio::time::timeout(patience, calls).await;
        let mut set = Box::pin(driver.set(&key, value(b'z'), TTL));
        std::future::poll_fn(|cx| {
            let _ = set.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
        drop(set);
        let found = shelf.get("a").await.expect("abandoned calls deleted a value");
        assert_eq!(found.len(), 100_000, "an abandoned call cut a value");
        assert!(found.iter().all(|byte| *byte == found[0]), "an abandoned call mixed two values");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    shelf.set("a", "end", TTL).await;
    shelf.has("a", b"end").await;
}

/// A change by one instance is visible at once to another on the same backend.
pub async fn two_instances<D: L2Driver>(open: impl AsyncFn() -> D) {
    let one = Shelf::open(&open).await;
    let two = one.join(&open).await;
    one.set("a", "1", TTL).await;
    two.has("a", b"1").await;
    two.set("a", "2", TTL).await;
    one.has("a", b"2").await;
    assert!(one.update("a", b"2", b"3", TTL).await);
    assert_eq!(two.get_many(&["a"]).await, [Some("3".into())]);
    assert_eq!(two.delete(&["a"]).await, 1);
    one.has_no("a").await;
    one.set("a", "4", TTL).await;
    assert_eq!(two.pull("a").await, Some("4".into()));
    one.has_no("a").await;
    one.set("a", "5", TTL).await;
    assert!(two.delete_if("a", b"5").await);
    one.has_no("a").await;
    let ttl = one.short_ttl().max(Duration::from_millis(1_000));
    let start = Instant::now();
    one.set("a", "6", Some(ttl)).await;
    two.has("a", b"6").await;
    two.ends("a", start, ttl).await;
    one.has_no("a").await;
}

/// After `disconnect`, every call returns an answer or an error, and other instances still work.
pub async fn calls_after_disconnect<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    shelf.set("a", "1", TTL).await;
    shelf.driver.disconnect().await.expect("disconnect");
    let calls = async {
        let driver = &shelf.driver;
        let key = shelf.key("b");
        let value = || Bytes::from_static(b"1");
        let _ = driver.get(&key).await;
        let _ = driver.get_many(&[&key]).await;
        let _ = driver.set(&key, value(), TTL).await;
        let _ = driver.set_many(&[Write { key: &key, value: value(), ttl: TTL }]).await;
        let _ = driver.delete(&[&key]).await;
        let _ = driver.clear(&key).await;
        let _ = driver.pull(&key).await;
        let _ = driver.update(&key, b"1", value(), TTL).await;
        let _ = driver.touch(&key, TTL).await;
        let _ = driver.delete_if(&key, b"1").await;
        let _ = driver.prune().await;
        let _ = next(&mut driver.keys(&key)).await;
        let _ = driver.disconnect().await;
    };
    let answered = tokio::time::timeout(Duration::from_secs(20), calls).await;
    assert!(answered.is_ok(), "a call after disconnect hangs");
    other.has("a", b"1").await;
    other.set("a", "2", TTL).await;
    other.has("a", b"2").await;
}

/// A call after `disconnect` fails permanently: a transient error would be retried.
pub async fn errors_after_disconnect_are_closed<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let driver = &shelf.driver;
    driver.disconnect().await.expect("disconnect");
    let (key, value) = (shelf.key("a"), || Bytes::from_static(b"1"));
    let write = Write { key: &key, value: value(), ttl: TTL };
    let results = [
        ("get", driver.get(&key).await.map(drop)),
        ("get_many", driver.get_many(&[&key, "b"]).await.map(drop)),
        ("set", driver.set(&key, value(), TTL).await),
        ("set_many", driver.set_many(&[write.clone(), write]).await),
        ("insert", driver.insert(&key, value(), TTL).await.map(drop)),
        ("delete", driver.delete(&[&key]).await.map(drop)),
        ("pull", driver.pull(&key).await.map(drop)),
        ("update", driver.update(&key, b"1", value(), TTL).await.map(drop)),
        ("touch", driver.touch(&key, TTL).await.map(drop)),
        ("delete_if", driver.delete_if(&key, b"1").await.map(drop)),
        ("prune", driver.prune().await.map(drop)),
    ];
    for (call, result) in results {
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Closed, "{call} after disconnect: {error}");
        }
    }
}

// ---- A server that is gone ----

/// While the server is gone, every call fails in time with an error that says so; once the server
/// is back, the driver works, whether it was used before or not.
pub async fn a_server_that_is_gone_is_a_transient_failure<D: L2Driver, L: FaultyLink>(
    open: impl AsyncFn() -> D,
    linked: impl AsyncFn() -> (D, L),
) {
    let _ = open;
    for fault in Fault::ALL {
        for is_used in [false, true] {
            let situation = format!("{fault:?}, used before: {is_used}");
            let (space, (driver, link)) = (unique("kit:") + ":", linked().await);
            let key = format!("{space}before");
            if is_used {
                driver.connect().await.expect("connect");
                driver.set(&key, "1".into(), TTL).await.expect("set");
            }
            fault.befalls(&link).await;
            let mut lost = calls(&driver, &space);
            // The driver may not know yet that its connection is lost.
            lost.retain(|(name, _)| !is_used || *name != "connect");
            all_fail_for_now(lost, &situation).await;
            link.restore().await;
            all_work_again(&driver, &space, calls, &situation).await;
        }
    }
}

// ---- A second runtime ----

/// Without a runtime, every call that needs one is [`ErrorKind::Closed`]; on a runtime that has
/// ended none panics or hangs; on the next one every call works.
///
/// `open` runs on the first runtime, and the resources that it returns with the driver are kept.
pub fn outlives_its_runtime<D: L2Driver, K>(open: impl AsyncFnOnce() -> (D, K)) {
    let space = unique("kit:") + ":";
    outlives(open, &space, all_calls, async |_| {});
}

fn all_calls<'a, D: L2Driver>(driver: &'a D, space: &'a str) -> Calls<'a> {
    let mut all = calls(driver, space);
    all.push(("prune", Box::pin(async move { driver.prune().await.map(drop) })));
    all
}

/// Every operation that needs the server, on keys with this prefix.
fn calls<'a, D: L2Driver>(driver: &'a D, space: &'a str) -> Calls<'a> {
    let key = move |name: &str| format!("{space}{name}");
    let value = || Bytes::from_static(b"value");
    vec![
        ("connect", Box::pin(driver.connect())),
        ("set", Box::pin(async move { driver.set(&key("a"), value(), TTL).await })),
        (
            "set_many",
            Box::pin(async move {
                let keys = ["b", "c"].map(key);
                let write = |key| Write { key, value: value(), ttl: TTL };
                driver.set_many(&[write(&keys[0]), write(&keys[1])]).await
            }),
        ),
        ("get", Box::pin(async move { driver.get(&key("a")).await.map(drop) })),
        (
            "get_many",
            Box::pin(async move { driver.get_many(&[&key("a"), &key("b")]).await.map(drop) }),
        ),
        ("insert", Box::pin(async move { driver.insert(&key("d"), value(), TTL).await.map(drop) })),
        (
            "update",
            Box::pin(
                async move { driver.update(&key("d"), b"value", value(), TTL).await.map(drop) },
            ),
        ),
        ("touch", Box::pin(async move { driver.touch(&key("d"), TTL).await.map(drop) })),
        (
            "delete_if",
            Box::pin(async move { driver.delete_if(&key("d"), b"value").await.map(drop) }),
        ),
        ("pull", Box::pin(async move { driver.pull(&key("b")).await.map(drop) })),
        ("delete", Box::pin(async move { driver.delete(&[&key("a")]).await.map(drop) })),
        ("clear", Box::pin(driver.clear(space))),
        (
            "keys",
            Box::pin(async move { next(&mut driver.keys(space)).await.transpose().map(drop) }),
        ),
    ]
}
