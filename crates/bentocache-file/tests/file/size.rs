//! A limit of the size of all files, and disks that are full.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_file::File;
use bytes::Bytes;
use tempfile::TempDir;

const LIMIT: u64 = 4 << 20;
/// Two blocks with its head and key.
const VALUE: usize = 6_000;

fn value(at: usize) -> Bytes {
    vec![at as u8; VALUE].into()
}

/// What the entries take, in blocks; a file may go at any time.
fn size(root: &Path) -> u64 {
    let mut size = 0;
    for shard in fs::read_dir(root).unwrap().flatten() {
        for file in fs::read_dir(shard.path()).into_iter().flatten().flatten() {
            size += file.metadata().map_or(0, |metadata| metadata.len().div_ceil(4_096) * 4_096);
        }
    }
    size
}

/// How many of the values are there, each of which must be the right one.
async fn left(driver: &File, keys: std::ops::Range<usize>) -> usize {
    let mut left = 0;
    for at in keys {
        if let Some(found) = driver.get(&format!("k{at}")).await.unwrap() {
            assert_eq!(found, value(at), "k{at}");
            left += 1;
        }
    }
    left
}

async fn fill(driver: &File, keys: std::ops::Range<usize>) {
    for at in keys {
        driver.set(&format!("k{at}"), value(at), None).await.unwrap();
    }
}

async fn becomes(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A file system of 4 MiB, which only root can make.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(directory.path());
        let is_there = mount.status().is_ok_and(|status| status.success());
        assert!(is_there, "cannot mount a file system of its own: run the tests as root");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left, until the file is removed.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.path().join("filler");
        let mut size = 1 << 20;
        let mut bytes = Vec::new();
        while size > 0 {
            bytes.resize(bytes.len() + size, 1);
            if fs::write(&path, &bytes).is_err() {
                bytes.truncate(bytes.len() - size);
                size /= 2;
            }
        }
        let _ = fs::write(&path, &bytes);
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_files_make_room_and_all_keep_to_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let driver = File::new(directory.path()).max_size(LIMIT).durable(false);
    driver.connect().await.unwrap();
    for at in 0..2_000 {
        driver.set(&format!("k{at}"), value(at), None).await.unwrap();
        if at % 50 == 0 {
            // What is written again is not old.
            driver.set("again", value(1), None).await.unwrap();
            let size = size(directory.path());
            assert!(size <= LIMIT, "{size} bytes after k{at}");
        }
    }
    assert_eq!(driver.get("again").await.unwrap(), Some(value(1)));
    assert_eq!(left(&driver, 0..1_400).await, 0, "the oldest are gone");
    assert_eq!(left(&driver, 1_700..2_000).await, 300, "the youngest are there");
    assert!(driver.update("k1999", &value(1_999), value(7), None).await.unwrap());
    driver.clear("").await.unwrap();
    assert_eq!(size(directory.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_too_large_is_refused_and_removes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let driver = File::new(directory.path()).max_size(LIMIT);
    fill(&driver, 0..10).await;
    let large = Bytes::from(vec![0; LIMIT as usize / 4 + 1]);
    let error = driver.set("large", large, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(error.to_string().contains("raise max_size"), "{error}");
    assert_eq!(left(&driver, 0..10).await, 10);
    // The largest that fits, with its head and key.
    let large = Bytes::from(vec![9; LIMIT as usize / 4 - 100]);
    for key in ["l1", "l2", "l3", "l4", "l5"] {
        driver.set(key, large.clone(), None).await.unwrap();
        assert_eq!(driver.get(key).await.unwrap(), Some(large.clone()));
        assert!(size(directory.path()) <= LIMIT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_make_room_too() {
    let directory = tempfile::tempdir().unwrap();
    let driver = File::new(directory.path()).max_size(LIMIT);
    fill(&driver, 0..400).await;
    let large = |at: u8| Bytes::from(vec![at; LIMIT as usize / 5]);
    driver.set("a", large(0), None).await.unwrap();
    for at in 1..20 {
        let update = async {
            driver.update("a", &large(at - 1), large(at), None).await.unwrap();
            fill(&driver, 400..410).await;
        };
        tokio::time::timeout(Duration::from_secs(60), update).await.expect("a lock is free");
        let size = size(directory.path());
        assert!(size <= LIMIT, "{size} bytes after {at}");
    }
    assert_eq!(driver.get("a").await.unwrap(), Some(large(19)));
}

/// Just below the limit, one large entry is too much, and no look in the background is in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_entry_waits_for_its_room() {
    let large = Bytes::from(vec![7; LIMIT as usize / 4 - 100]);
    for is_update in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let unlimited = File::new(directory.path());
        fill(&unlimited, 0..440).await;
        let driver = File::new(directory.path()).max_size(LIMIT);
        driver.prune().await.unwrap();
        assert!(size(directory.path()) + LIMIT / 4 > LIMIT);
        if is_update {
            assert!(driver.update("k439", &value(439), large.clone(), None).await.unwrap());
        } else {
            driver.set("k439", large.clone(), None).await.unwrap();
        }
        let size = size(directory.path());
        assert!(size <= LIMIT, "{size} bytes");
        assert_eq!(driver.get("k439").await.unwrap(), Some(large.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_removes_what_is_beyond_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let unlimited = File::new(directory.path());
    fill(&unlimited, 0..1_000).await;
    assert!(size(directory.path()) > LIMIT);
    let driver = File::new(directory.path()).durable(false).max_size(LIMIT);
    assert_eq!(driver.prune().await.unwrap(), 0, "none was expired");
    let kept = size(directory.path());
    assert!(kept <= LIMIT && kept > LIMIT / 2, "{kept} bytes");
    assert_eq!(left(&driver, 900..1_000).await, 100);
    assert_eq!(unlimited.prune().await.unwrap(), 0);
    assert_eq!(size(directory.path()), kept);
}

/// Others have written; a look comes only when this process has written a twentieth.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_looked_at_in_the_background_and_not_for_each_write() {
    let directory = tempfile::tempdir().unwrap();
    let other = File::new(directory.path());
    let driver = File::new(directory.path()).max_size(LIMIT);
    driver.set("first", "1".into(), None).await.unwrap();
    fill(&other, 0..1_000).await;
    let before = size(directory.path());
    for _ in 0..5 {
        driver.set("small", "1".into(), None).await.unwrap();
    }
    assert!(size(directory.path()) >= before);
    // A twentieth of four MiB is 26 files of two blocks.
    fill(&driver, 1_000..1_030).await;
    becomes("the files to go", || size(directory.path()) <= LIMIT).await;
    assert_eq!(left(&driver, 1_000..1_030).await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_can_be_emptied_and_a_limit_keeps_it_from_being_full() {
    let disk = Disk::new();
    let driver = File::new(disk.path().join("cache"));
    driver.connect().await.unwrap();
    fill(&driver, 0..10).await;
    let filler = disk.fill();
    let error = driver.set("more", vec![1; 100_000].into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert_eq!(left(&driver, 0..10).await, 10);
    assert_eq!(driver.delete(&["k0"]).await.unwrap(), 1);
    assert_eq!(driver.pull("k1").await.unwrap(), Some(value(1)));
    assert!(driver.delete_if("k2", &value(2)).await.unwrap());
    driver.clear("k3").await.unwrap();
    assert_eq!(left(&driver, 0..10).await, 6);
    driver.clear("").await.unwrap();
    assert_eq!(left(&driver, 0..10).await, 0);
    fs::remove_file(filler).unwrap();
    drop(driver);
    let limited = File::new(disk.path().join("limited")).max_size(2 << 20);
    fill(&limited, 0..1_000).await;
    assert_eq!(left(&limited, 950..1_000).await, 50);
}
