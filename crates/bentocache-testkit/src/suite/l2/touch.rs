//! The cases for [`L2Driver::touch`].

use std::time::{Duration, Instant};

use bentocache_driver::L2Driver;

use super::{Shelf, TTL, at_once};

/// `touch` moves the end of a key away, from now.
pub async fn touch_extends<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl().max(Duration::from_millis(500));
    shelf.set("a", "1", Some(ttl)).await;
    shelf.set("b", "1", Some(ttl)).await;
    assert!(shelf.touch("a", TTL).await, "touch of a key that is there returns true");
    let start = Instant::now();
    assert!(shelf.touch("b", Some(ttl * 2)).await);
    // Neither added to the old expiry, nor counted from the write.
    shelf.ends("b", start, ttl * 2).await;
    shelf.driver.prune().await.expect("prune");
    shelf.has("a", b"1").await;
}

/// `touch` brings the end of a key nearer, also of one without an end.
pub async fn touch_shortens<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    for (name, before) in [("a", TTL), ("b", None)] {
        shelf.set(name, "1", before).await;
        let start = Instant::now();
        assert!(shelf.touch(name, Some(ttl)).await, "touch of a key that is there");
        shelf.ends(name, start, ttl).await;
    }
}

/// `touch` without a ttl removes the expiry; a key that has none is there too.
pub async fn touch_without_an_end<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl().max(Duration::from_millis(500));
    shelf.set("a", "1", Some(ttl)).await;
    assert!(shelf.touch("a", None).await, "touch without a ttl");
    assert!(shelf.touch("a", None).await, "touch of a key without an expiry returns true");
    shelf.sleep_past(ttl).await;
    shelf.driver.prune().await.expect("prune");
    shelf.has("a", b"1").await;
}

/// `touch` changes no byte, and no other key.
pub async fn touch_keeps_the_value<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    let every_byte: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    for (name, value) in [("a", &every_byte[..]), ("b", b""), ("c", br#"{"value":1}"#)] {
        shelf.set(name, value.to_vec(), TTL).await;
        let start = Instant::now();
        shelf.set("a:", "other", Some(ttl)).await;
        for ttl in [TTL, None, TTL] {
            assert!(shelf.touch(name, ttl).await, "touch of {name:?}");
            shelf.has(name, value).await;
        }
        shelf.ends("a:", start, ttl).await;
        // What was compared before is the same after.
        assert!(shelf.update(name, value, b"2", TTL).await, "update after touch");
    }
}

/// `touch` of a missing, deleted or pulled key returns false and creates nothing.
pub async fn touch_of_nothing<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    for ttl in [TTL, None] {
        assert!(!shelf.touch("a", ttl).await, "touch of a missing key returns false");
        shelf.set("a", "1", TTL).await;
        shelf.delete(&["a"]).await;
        assert!(!shelf.touch("a", ttl).await, "touch of a deleted key returns false");
        shelf.set("a", "1", TTL).await;
        shelf.pull("a").await;
        assert!(!shelf.touch("a", ttl).await, "touch of a pulled key returns false");
        shelf.has_no("a").await;
    }
}

/// `touch` brings nothing back that has expired, whether it was removed or not.
pub async fn touch_of_the_expired<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let ttl = shelf.short_ttl();
    shelf.set("a", "1", Some(ttl)).await;
    shelf.set("b", "1", Some(ttl)).await;
    shelf.sleep_past(ttl).await;
    assert!(!shelf.touch("a", TTL).await, "touch of an expired key returns false");
    assert!(!shelf.touch("b", None).await, "touch of an expired key, without a ttl");
    shelf.has_no("a").await;
    shelf.has_no("b").await;
}

/// `touch` accepts a ttl that is shorter than the precision of the store, and one that is longer than
/// any clock can tell.
pub async fn touch_of_tiny_and_huge_ttls<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let year = 365 * 24 * 60 * 60;
    let huge = [30 * year, 10_000 * year, i64::MAX as u64 + 1, u64::MAX].map(Duration::from_secs);
    shelf.set("a", "1", TTL).await;
    for ttl in huge.into_iter().chain([Duration::from_millis(i64::MAX as u64), Duration::MAX]) {
        let touched = shelf.driver.touch(&shelf.key("a"), Some(ttl)).await;
        assert!(touched.unwrap_or_else(|error| panic!("touch with {ttl:?}: {error}")), "{ttl:?}");
        shelf.driver.prune().await.expect("prune");
        shelf.has("a", b"1").await;
    }
    for nanos in [0, 1, 999_999, 1_500_000] {
        shelf.set("b", "1", TTL).await;
        assert!(shelf.touch("b", Some(Duration::from_nanos(nanos))).await, "{nanos} ns");
        shelf.ends("b", Instant::now(), Duration::ZERO).await;
    }
}

/// A key that is deleted while it is touched stays deleted.
pub async fn touch_against_delete<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..60 {
        shelf.set("a", "1", TTL).await;
        at_once([&shelf, &other], "a", |at, driver, key| async move {
            if at == 4 {
                driver.delete(&[&key]).await.map(drop)
            } else {
                driver.touch(&key, TTL).await.map(drop)
            }
        })
        .await;
        let found = shelf.get("a").await;
        assert_eq!(found, None, "in round {round}: a touch brought a deleted key back");
    }
}

/// A value that is set while its key is touched stays.
pub async fn touch_against_set<D: L2Driver>(open: impl AsyncFn() -> D) {
    let shelf = Shelf::open(&open).await;
    let other = shelf.join(&open).await;
    for round in 0..60 {
        shelf.set("a", "old", TTL).await;
        at_once([&shelf, &other], "a", |at, driver, key| async move {
            if at == 4 {
                driver.set(&key, "newer".into(), TTL).await
            } else {
                driver.touch(&key, TTL).await.map(drop)
            }
        })
        .await;
        let found = shelf.get("a").await;
        assert_eq!(found.as_deref(), Some(&b"newer"[..]), "in round {round}, after set");
    }
}
