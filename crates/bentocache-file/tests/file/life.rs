//! When entries end.

use std::fs;
use std::time::{Duration, SystemTime};

use bentocache_driver::L2Driver;
use bytes::Bytes;

use crate::common::{expiry, files, keys, plant_expired, temporary};

const VALUE: Bytes = Bytes::from_static(b"value");

#[tokio::test]
async fn an_expired_file_is_removed_by_the_get_that_finds_it() {
    let (directory, file) = temporary();
    let place = plant_expired(directory.path(), "key");
    assert_eq!(file.get("key").await.unwrap(), None);
    assert!(!place.exists());
}

#[tokio::test]
async fn an_expired_entry_is_none_for_every_operation() {
    let (directory, file) = temporary();
    plant_expired(directory.path(), "key");
    assert_eq!(file.get_many(&["key"]).await.unwrap(), [None]);
    plant_expired(directory.path(), "key");
    assert_eq!(file.delete(&["key"]).await.unwrap(), 0);
    plant_expired(directory.path(), "key");
    assert_eq!(file.pull("key").await.unwrap(), None);
    plant_expired(directory.path(), "key");
    assert!(!file.update("key", b"old", VALUE, None).await.unwrap());
    assert!(!file.delete_if("key", b"old").await.unwrap());
    assert!(keys(&file, "").await.is_empty());
    assert_eq!(file.get("key").await.unwrap(), None);
}

#[tokio::test]
async fn a_real_ttl_ends() {
    let (_directory, file) = temporary();
    let written = SystemTime::now();
    let ttl = Duration::from_millis(150);
    file.set("key", VALUE, Some(ttl)).await.unwrap();
    loop {
        let found = file.get("key").await.unwrap().is_some();
        let age = written.elapsed().unwrap();
        assert!(found || age >= ttl, "gone after {age:?}");
        if !found {
            break;
        }
        assert!(age < Duration::from_secs(20));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_ttl_of_zero_stores_nothing_and_removes_what_is_there() {
    let (directory, file) = temporary();
    file.set("key", VALUE, Some(Duration::ZERO)).await.unwrap();
    assert!(files(directory.path()).is_empty());
    file.set("key", VALUE, None).await.unwrap();
    file.set("key", VALUE, Some(Duration::ZERO)).await.unwrap();
    assert!(files(directory.path()).is_empty());
}

#[tokio::test]
async fn the_longest_ttl_and_none_are_for_ever() {
    let (directory, file) = temporary();
    file.set("longest", VALUE, Some(Duration::MAX)).await.unwrap();
    file.set("forever", VALUE, None).await.unwrap();
    assert_eq!(expiry(directory.path(), "longest"), u64::MAX - 1);
    assert_eq!(expiry(directory.path(), "forever"), u64::MAX);
    assert_eq!(file.get_many(&["longest", "forever"]).await.unwrap(), [Some(VALUE), Some(VALUE)]);
}

#[tokio::test]
async fn a_set_replaces_the_expiry_and_an_update_keeps_it() {
    let (directory, file) = temporary();
    file.set("key", VALUE, None).await.unwrap();
    file.set("key", VALUE, Some(Duration::from_secs(60))).await.unwrap();
    let end = expiry(directory.path(), "key");
    assert_ne!(end, u64::MAX);
    let new = Bytes::from_static(b"new");
    let remaining = Some(Duration::from_secs(5));
    assert!(file.update("key", &VALUE, new.clone(), remaining).await.unwrap());
    assert_eq!(expiry(directory.path(), "key"), end);
    assert_eq!(file.get("key").await.unwrap(), Some(new));
}

#[tokio::test]
async fn removing_an_expired_file_does_not_wait_for_the_lock() {
    let (directory, file) = temporary();
    let place = plant_expired(directory.path(), "key");
    let lock = fs::File::create(place.with_file_name(".bento-lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(file.get("key").await.unwrap(), None);
    assert!(place.exists());
    lock.unlock().unwrap();
    assert_eq!(file.get("key").await.unwrap(), None);
    assert!(!place.exists());
}
