//! Helpers of several tests. The layout and the format are repeated here from the crate's page: a
//! change of either must fail a test.

use std::fs;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bentocache_driver::L2Driver;
use bentocache_file::File;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) fn temporary() -> (TempDir, File) {
    let directory = tempfile::tempdir().unwrap();
    let file = File::new(directory.path());
    (directory, file)
}

/// The path of a key's entry.
pub(crate) fn place(root: &Path, key: &str) -> PathBuf {
    let hex: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    root.join(&hex[..2]).join(format!("{}.bento", &hex[2..]))
}

/// The bytes of an entry's file.
pub(crate) fn entry(key: &str, value: &[u8], expiry: u64) -> Vec<u8> {
    let mut bytes = b"bentofs\x01".to_vec();
    bytes.extend(expiry.to_le_bytes());
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend((key.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(value).to_le_bytes());
    let sum = crc32fast::hash(&[&bytes, key.as_bytes()].concat());
    bytes.extend(sum.to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(value);
    bytes
}

/// Atomically writes an expired entry.
pub(crate) fn plant_expired(root: &Path, key: &str) -> PathBuf {
    let place = place(root, key);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let aside = place.with_extension("aside");
    fs::write(&aside, entry(key, b"old", 1)).unwrap();
    fs::rename(aside, &place).unwrap();
    place
}

/// The end of a key's entry.
pub(crate) fn expiry(root: &Path, key: &str) -> u64 {
    let bytes = fs::read(place(root, key)).unwrap();
    u64::from_le_bytes(bytes[8..16].try_into().unwrap())
}

/// All files below the directory but the locks.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(root).unwrap().map(Result::unwrap) {
        if item.file_type().unwrap().is_dir() {
            found.extend(files(&item.path()));
        } else if item.file_name() != ".bento-lock" {
            found.push(item.path());
        }
    }
    found.sort();
    found
}

/// The keys, sorted.
pub(crate) async fn keys(file: &File, prefix: &str) -> Vec<String> {
    let mut stream = file.keys(prefix);
    let mut keys = Vec::new();
    while let Some(key) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
        keys.push(key.unwrap());
    }
    keys.sort();
    keys
}

/// Waits for another thread or process.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        tokio::task::yield_now().await;
    }
}

/// A value that identifies itself and shows whether it is complete: up to 200 kB, depending on `n`.
pub(crate) fn marked(n: u64) -> Bytes {
    let len = [0, 1, 100, 5_000, 70_000, 200_000][n as usize % 6];
    let filling = (0..len).map(|i| (n.wrapping_mul(31).wrapping_add(i)) as u8);
    n.to_le_bytes().into_iter().chain(filling).collect()
}

pub(crate) fn assert_whole(value: &[u8]) {
    let n = u64::from_le_bytes(value[..8].try_into().unwrap());
    assert!(value == marked(n), "a torn value of {} bytes", value.len());
}

const PART: &str = "BENTOCACHE_FILE_TEST_PART";
const ROOT: &str = "BENTOCACHE_FILE_TEST_ROOT";

/// Runs one test of this binary in another process, where it plays the part.
pub(crate) fn start_child(test: &str, part: &str, root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(PART, part)
        .env(ROOT, root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The part to play, and the directory; `None` in the parent.
pub(crate) fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var(PART).ok()?, std::env::var_os(ROOT)?.into()))
}
