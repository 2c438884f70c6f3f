//! SQLite files with a limit of their size.

use std::path::Path;

use bentocache_driver::{ErrorKind, L2Driver, Write};
use bentocache_sqlx::{SqliteDriver, SqliteFile, open_sqlite};
use bytes::Bytes;

const LIMIT: u64 = 1 << 20;
const VALUE: usize = 20_000;

fn open(path: &Path) -> SqliteDriver {
    SqliteFile::new(path).max_size(LIMIT).open()
}

fn value(at: usize) -> Bytes {
    vec![at as u8; VALUE].into()
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// How many of the values are still there, each of which must be the right one.
async fn left(driver: &SqliteDriver, keys: std::ops::Range<usize>) -> usize {
    let mut left = 0;
    for at in keys {
        if let Some(found) = driver.get(&format!("k{at}")).await.unwrap() {
            assert_eq!(found, value(at), "k{at}");
            left += 1;
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_rows_make_room_and_the_file_keeps_to_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.db");
    // Two processes write to it.
    let nodes = [open(&path), open(&path)];
    nodes[0].set("again", value(1), None).await.unwrap();
    for at in 0..400 {
        let node = &nodes[at % 2];
        if at % 10 == 0 {
            // What is written again is not old.
            node.set("again", value(1), None).await.unwrap();
        }
        match at % 3 {
            0 => node.set(&format!("k{at}"), value(at), None).await.unwrap(),
            1 => assert!(node.insert(&format!("k{at}"), value(at), None).await.unwrap()),
            _ => {
                let key = format!("k{at}");
                let write = Write { key: &key, value: value(at), ttl: None };
                node.set_many(&[write]).await.unwrap();
            }
        }
        assert!(size(&path) <= LIMIT, "{} bytes after k{at}", size(&path));
    }
    let driver = &nodes[0];
    assert_eq!(driver.get("again").await.unwrap(), Some(value(1)));
    assert_eq!(left(driver, 0..300).await, 0, "the oldest are gone");
    assert_eq!(left(driver, 395..400).await, 5, "the youngest are there");
    assert!(left(driver, 300..400).await >= 10, "no more goes than must");
    assert!(driver.update("k399", &value(399), value(7), None).await.unwrap());
    assert_eq!(driver.delete(&["k398"]).await.unwrap(), 1);
    assert_eq!(driver.pull("k397").await.unwrap(), Some(value(397)));
    driver.clear("").await.unwrap();
    assert_eq!(left(driver, 300..400).await, 0);
    driver.set("k1", value(1), None).await.unwrap();
    assert_eq!(left(driver, 1..2).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_too_large_deletes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let driver = open(&directory.path().join("cache.db"));
    driver.set("k1", value(1), None).await.unwrap();
    let large = vec![0; LIMIT as usize / 4 + 1];
    let error = driver.set("large", large.into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert_eq!(left(&driver, 1..2).await, 1);
    // The largest that fits.
    let large = Bytes::from(vec![9; LIMIT as usize / 4]);
    for key in ["l1", "l2", "l3", "l4", "l5"] {
        driver.set(key, large.clone(), None).await.unwrap();
        assert_eq!(driver.get(key).await.unwrap(), Some(large.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_larger_already_grows_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.db");
    let before = open_sqlite(&path);
    for at in 0..100 {
        before.set(&format!("k{at}"), value(at), None).await.unwrap();
    }
    before.disconnect().await.unwrap();
    let large = size(&path);
    assert!(large > LIMIT);
    let driver = open(&path);
    for at in 100..200 {
        driver.set(&format!("k{at}"), value(at), None).await.unwrap();
    }
    assert!(size(&path) <= large, "{} bytes", size(&path));
    assert_eq!(left(&driver, 195..200).await, 5);
    driver.clear("k").await.unwrap();
    assert_eq!(left(&driver, 0..200).await, 0);
}

/// A file system of 4 MiB, which only root can make.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(directory.path());
        let is_there = mount.status().is_ok_and(|status| status.success());
        assert!(is_there, "cannot mount a file system of its own: run the tests as root");
        Self(directory)
    }

    /// Takes all the room that is left, until the file is removed.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.0.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 512]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidations_work_on_a_full_disk() {
    let disk = Disk::new();
    for clear in [false, true] {
        let path = disk.0.path().join(format!("{clear}.db"));
        let driver = open_sqlite(&path);
        for at in 0..20 {
            driver.set(&format!("k{at}"), value(at), None).await.unwrap();
        }
        let filler = disk.fill();
        let large = vec![1; 1 << 20];
        let error = driver.set("more", large.into(), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        assert_eq!(left(&driver, 0..20).await, 20);
        if clear {
            driver.clear("k1").await.unwrap();
            assert_eq!(left(&driver, 10..20).await, 0);
        } else {
            driver.delete(&["k1"]).await.unwrap();
            assert_eq!(left(&driver, 1..2).await, 0);
        }
        std::fs::remove_file(filler).unwrap();
        driver.set("k1", value(1), None).await.unwrap();
        assert_eq!(left(&driver, 1..2).await, 1);
        driver.disconnect().await.unwrap();
    }
}
