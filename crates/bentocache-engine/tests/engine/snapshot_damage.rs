//! Files of snapshots that are damaged, foreign, or cannot be written: a warning, and the service
//! goes on.

use std::fs;
use std::path::Path;

use crate::common::get;
use crate::logs::Log;
use crate::snapshot::Place;
use bentocache::{BentoCache, Memory, Store};

/// A store without an L2 that uses the file.
async fn run(path: &Path) -> BentoCache {
    run_as("s", "bentocache", path).await
}

async fn run_as(name: &str, prefix: &str, path: &Path) -> BentoCache {
    let store = Store::new().l1(Memory::new().snapshot(path)).prefix(prefix).ttl("1h");
    BentoCache::builder().store(name, store).build().await.unwrap()
}

/// The bytes of a snapshot of three entries.
async fn snapshot(place: &Place) -> Vec<u8> {
    let node = run(&place.path()).await;
    for (key, value) in [("a", 1_u32), ("b", 2), ("c", 3)] {
        node.set(key, value).tags(["t"]).await.unwrap();
    }
    node.disconnect().await.unwrap();
    fs::read(place.path()).unwrap()
}

/// Loads the bytes. Each value is the one that was stored, or gone. Returns how many are left, and
/// the warnings.
async fn load(place: &Place, bytes: &[u8], log: &Log) -> (usize, Vec<String>) {
    fs::write(place.path(), bytes).unwrap();
    log.warnings();
    let node = run(&place.path()).await;
    let mut left = 0;
    for (key, value) in [("a", 1), ("b", 2), ("c", 3)] {
        let found = get(&node, key).await;
        assert!(found.is_none_or(|found| found == value), "{key}: {found:?}");
        left += usize::from(found.is_some());
    }
    assert!(left <= node.stats().l1.unwrap().entries, "nothing else was loaded");
    (left, log.warnings())
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_cut_anywhere_is_used_up_to_the_cut() {
    let place = Place::alone();
    let whole = snapshot(&place).await;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    assert_eq!(load(&place, &whole, &log).await, (3, vec![]));
    let mut before = 0;
    for end in 0..whole.len() {
        let (left, warnings) = load(&place, &whole[..end], &log).await;
        assert!(left >= before && left <= 3, "{end}");
        before = left;
        assert_eq!(warnings.len(), 1, "{end}: {warnings:?}");
        assert!(warnings[0].contains("snapshot of L1 was not loaded"), "{warnings:?}");
    }
    assert_eq!(before, 3, "only the last block was cut");
}

#[tokio::test(start_paused = true)]
async fn a_byte_that_is_wrong_anywhere_brings_back_no_wrong_value() {
    let place = Place::alone();
    let whole = snapshot(&place).await;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    for at in 0..whole.len() {
        for flip in [1, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let (_, warnings) = load(&place, &bytes, &log).await;
            assert_eq!(warnings.len(), 1, "{at}: {warnings:?}");
        }
    }
    for extra in [&b"x"[..], &whole] {
        let (left, warnings) = load(&place, &[&whole[..], extra].concat(), &log).await;
        assert_eq!((left, warnings.len()), (3, 1), "{warnings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn entries_of_another_file_are_not_taken_for_those_of_this_one() {
    let place = Place::alone();
    let (older, newer) = (snapshot(&place).await, snapshot(&place).await);
    assert_eq!(older.len(), newer.len());
    // The disk brings back blocks of the older file behind the head of the newer one.
    let head = 8 + 4 + u32::from_be_bytes(newer[8..12].try_into().unwrap()) as usize + 8;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let mixed = [&newer[..head], &older[head..]].concat();
    assert_eq!(load(&place, &mixed, &log).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn the_file_of_another_store_is_neither_used_nor_replaced() {
    let place = Place::alone();
    let whole = snapshot(&place).await;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    for (name, prefix) in [("other", "bentocache"), ("s", "other")] {
        let node = run_as(name, prefix, &place.path()).await;
        assert_eq!(get(&node, "a").await, None);
        node.set("a", 9_u32).await.unwrap();
        node.disconnect().await.unwrap();
        let warnings = log.warnings();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings.iter().all(|line| line.contains("choose another path")));
        assert_eq!(fs::read(place.path()).unwrap(), whole);
    }
    let node = run(&place.path()).await;
    assert_eq!(get(&node, "a").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_no_snapshot_is_not_replaced() {
    let place = Place::alone();
    fs::write(place.path(), "precious").unwrap();
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let node = run(&place.path()).await;
    node.set("a", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    assert_eq!(fs::read(place.path()).unwrap(), b"precious");
    assert_eq!(log.warnings().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_cannot_be_written_is_a_warning() {
    let place = Place::alone();
    let parent = place.path();
    fs::write(&parent, "a file").unwrap();
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let missing = parent.with_file_name("missing").join("l1");
    for path in [missing, parent.join("l1"), "/proc/l1.snapshot".into(), "/".into()] {
        let node = run(&path).await;
        node.set("a", 1_u32).await.unwrap();
        assert_eq!(get(&node, "a").await, Some(1));
        assert!(!log.warnings().is_empty(), "{path:?}: at the start");
        node.disconnect().await.unwrap();
        assert!(!log.warnings().is_empty(), "{path:?}: at the end");
    }
}

/// Files of every kind of nonsense with the right first bytes.
#[tokio::test(start_paused = true)]
async fn hostile_lengths_cost_no_memory() {
    let place = Place::alone();
    let whole = snapshot(&place).await;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    for len in [u32::MAX, 1 << 31, 0] {
        for at in [8, 8 + 4 + u32::from_be_bytes(whole[8..12].try_into().unwrap()) as usize + 8] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&len.to_be_bytes());
            assert_eq!(load(&place, &bytes, &log).await.0, 0);
        }
    }
}
