//! Pruning: asked for, and in the background.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_file::File;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::common::{files, keys, place, plant_expired, temporary};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn prune_removes_and_counts_what_is_expired() {
    let (directory, file) = temporary();
    for n in 0..1_000 {
        plant_expired(directory.path(), &n.to_string());
    }
    file.set("live", Bytes::new(), Some(HOUR)).await.unwrap();
    file.set("forever", Bytes::new(), None).await.unwrap();
    assert_eq!(file.prune().await.unwrap(), 1_000);
    assert_eq!(files(directory.path()).len(), 2);
    assert_eq!(keys(&file, "").await, ["forever", "live"]);
    assert_eq!(file.prune().await.unwrap(), 0);
}

#[tokio::test]
async fn prune_removes_temporary_files_only_when_they_are_old() {
    let (directory, file) = temporary();
    let shard = place(directory.path(), "key").parent().unwrap().to_owned();
    fs::create_dir_all(&shard).unwrap();
    let temporary_file = |directory: &Path, digit: &str, age: Duration| {
        let path = directory.join(format!("{}.bento-tmp", digit.repeat(32)));
        let file = fs::File::create(&path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        path
    };
    let young = temporary_file(&shard, "a", HOUR / 2);
    temporary_file(&shard, "b", HOUR * 2);
    temporary_file(directory.path(), "c", HOUR * 2);
    assert_eq!(file.prune().await.unwrap(), 0);
    assert_eq!(files(directory.path()), [young]);
    assert!(keys(&file, "").await.is_empty());
}

#[tokio::test]
async fn prune_of_a_directory_that_is_not_there_finds_nothing() {
    let (directory, _) = temporary();
    let file = File::new(directory.path().join("not/there"));
    assert_eq!(file.prune().await.unwrap(), 0);
    assert!(!directory.path().join("not").exists());
}

/// Whether the file goes within some turns of the (paused) clock.
async fn is_pruned(path: &Path) -> bool {
    for _ in 0..100 {
        if !path.exists() {
            return true;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    false
}

#[tokio::test(start_paused = true)]
async fn the_interval_prunes_again_and_again() {
    let (directory, file) = temporary();
    let file = file.prune_interval(HOUR);
    file.connect().await.unwrap();
    for _ in 0..3 {
        let path = plant_expired(directory.path(), "key");
        tokio::time::sleep(HOUR - Duration::from_secs(200)).await;
        assert!(path.exists());
        tokio::time::sleep(Duration::from_secs(150)).await;
        assert!(is_pruned(&path).await);
        // To the start of the next interval.
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_interval_nothing_runs() {
    let (directory, file) = temporary();
    let file = file.prune_interval(HOUR).prune_interval(None);
    file.connect().await.unwrap();
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    assert!(files(directory.path()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn disconnect_ends_the_task() {
    let (directory, file) = temporary();
    let file = file.prune_interval(HOUR);
    file.connect().await.unwrap();
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
    file.disconnect().await.unwrap();
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    let path = plant_expired(directory.path(), "key");
    tokio::time::sleep(3 * HOUR).await;
    assert!(path.exists());
    file.disconnect().await.unwrap();

    // And it can be connected again, twice even, with one task.
    file.connect().await.unwrap();
    file.connect().await.unwrap();
    tokio::time::sleep(HOUR).await;
    assert!(is_pruned(&path).await);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_driver_ends_the_task() {
    let (directory, file) = temporary();
    let file = file.prune_interval(HOUR);
    file.connect().await.unwrap();
    let path = plant_expired(directory.path(), "key");
    drop(file);
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    assert!(path.exists());
}

#[tokio::test(start_paused = true)]
async fn an_interval_may_be_as_long_as_a_duration_but_not_zero() {
    let (_directory, file) = temporary();
    let file = file.prune_interval(Duration::MAX);
    file.connect().await.unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);

    let error = file.prune_interval(Duration::ZERO).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}
