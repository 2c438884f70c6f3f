//! What is not a whole entry is a miss, and is removed from an entry's place.

use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::time::SystemTime;

use bentocache_driver::L2Driver;
use bentocache_file::File;
use bytes::Bytes;

use crate::common::{entry, files, keys, place, temporary};

const NEVER: u64 = u64::MAX;

/// Whether the bytes, put at the place of `key`, are a miss that is gone afterwards.
async fn is_removed(file: &File, root: &Path, key: &str, bytes: &[u8]) -> bool {
    let place = place(root, key);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, bytes).unwrap();
    file.get(key).await.unwrap().is_none() && !place.exists()
}

#[tokio::test]
async fn an_entry_with_any_bit_flipped() {
    let (directory, file) = temporary();
    let whole = entry("key", b"value", NEVER);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(is_removed(&file, directory.path(), "key", &flipped).await, "bit {bit}");
    }
    assert!(!is_removed(&file, directory.path(), "key", &whole).await);
}

#[tokio::test]
async fn an_entry_of_any_other_length() {
    let (directory, file) = temporary();
    let whole = entry("key", b"value", NEVER);
    for len in 0..whole.len() {
        assert!(is_removed(&file, directory.path(), "key", &whole[..len]).await, "{len} bytes");
    }
    let longer = [&whole[..], b"\0"].concat();
    assert!(is_removed(&file, directory.path(), "key", &longer).await);
}

#[tokio::test]
async fn something_else_entirely() {
    let (directory, file) = temporary();
    let mut huge_key = entry("key", b"value", NEVER);
    huge_key[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut huge_value = entry("key", b"value", NEVER);
    huge_value[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [&b""[..], b"{\"value\":1}", &[0; 5000], &[255; 5000], &huge_key, &huge_value] {
        assert!(is_removed(&file, directory.path(), "key", bytes).await);
    }
}

#[tokio::test]
async fn the_entry_of_another_key() {
    let (directory, file) = temporary();
    let other = entry("other", b"value", NEVER);
    assert!(is_removed(&file, directory.path(), "key", &other).await);

    // Neither listed nor counted, and gone after a sweep.
    fs::write(place(directory.path(), "key"), &other).unwrap();
    assert!(keys(&file, "").await.is_empty());
    assert_eq!(file.delete(&["other"]).await.unwrap(), 0);
    assert_eq!(file.prune().await.unwrap(), 0);
    assert!(files(directory.path()).is_empty());
}

#[tokio::test]
async fn every_operation_takes_a_damaged_entry_for_none() {
    let (directory, file) = temporary();
    let place = place(directory.path(), "key");
    let mut flipped = entry("key", b"value", NEVER);
    *flipped.last_mut().unwrap() ^= 1;
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let damage = || fs::write(&place, &flipped).unwrap();

    damage();
    assert_eq!(file.pull("key").await.unwrap(), None);
    damage();
    assert!(!file.delete_if("key", b"value").await.unwrap());
    assert!(!file.update("key", b"value", Bytes::new(), None).await.unwrap());
    assert_eq!(file.get_many(&["key", "key"]).await.unwrap(), [None, None]);
    assert!(!place.exists());
    damage();
    file.set("key", Bytes::from_static(b"new"), None).await.unwrap();
    assert_eq!(file.get("key").await.unwrap(), Some(Bytes::from_static(b"new")));
}

#[tokio::test]
async fn a_directory_at_an_entrys_place_is_a_miss_and_left_alone() {
    let (directory, file) = temporary();
    let place = place(directory.path(), "key");
    fs::create_dir_all(place.join("theirs")).unwrap();
    assert_eq!(file.get("key").await.unwrap(), None);
    assert_eq!(file.delete(&["key"]).await.unwrap(), 0);
    assert_eq!(file.pull("key").await.unwrap(), None);
    file.clear("").await.unwrap();
    assert!(place.join("theirs").exists());

    let error = file.set("key", Bytes::new(), None).await.unwrap_err();
    assert!(error.to_string().contains(place.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("remove it"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn links_are_not_followed() {
    use std::os::unix::fs::symlink;

    let elsewhere = tempfile::tempdir().unwrap();
    let (directory, file) = temporary();
    let place = place(directory.path(), "key");
    let shard = place.parent().unwrap();

    // A link at an entry's place goes, what it points to stays, even if it were right.
    let target = elsewhere.path().join("target");
    fs::write(&target, entry("key", b"value", NEVER)).unwrap();
    fs::create_dir_all(shard).unwrap();
    symlink(&target, &place).unwrap();
    assert_eq!(file.get("key").await.unwrap(), None);
    assert!(fs::symlink_metadata(&place).is_err());
    symlink(&target, &place).unwrap();
    file.clear("").await.unwrap();
    assert!(fs::symlink_metadata(&place).is_err());
    symlink(&target, &place).unwrap();
    file.set("key", Bytes::from_static(b"new"), None).await.unwrap();
    assert_eq!(file.get("key").await.unwrap(), Some(Bytes::from_static(b"new")));
    assert_eq!(fs::read(&target).unwrap(), entry("key", b"value", NEVER));

    // A link instead of a shard's directory is not entered.
    fs::rename(shard, elsewhere.path().join("shard")).unwrap();
    symlink(elsewhere.path().join("shard"), shard).unwrap();
    let temporary = elsewhere.path().join("shard").join("a".repeat(32) + ".bento-tmp");
    fs::File::create(temporary).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let before = files(elsewhere.path());
    assert_eq!(file.get("key").await.unwrap(), None);
    assert_eq!(file.delete(&["key"]).await.unwrap(), 0);
    assert!(keys(&file, "").await.is_empty());
    file.clear("").await.unwrap();
    let error = file.set("key", Bytes::new(), None).await.unwrap_err();
    assert_eq!(error.kind(), bentocache_driver::ErrorKind::Denied);
    assert_eq!(files(elsewhere.path()), before);

    // Nor is a link instead of the lock written through.
    fs::remove_file(shard).unwrap();
    fs::create_dir(shard).unwrap();
    symlink(elsewhere.path().join("lock"), shard.join(".bento-lock")).unwrap();
    let error = file.set("key", Bytes::new(), None).await.unwrap_err();
    assert!(error.to_string().contains(".bento-lock"), "{error}");
    assert!(!elsewhere.path().join("lock").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn a_pipe_is_not_waited_for() {
    let (directory, file) = temporary();
    let place = place(directory.path(), "key");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    if std::process::Command::new("mkfifo").arg(&place).status().is_ok_and(|s| s.success()) {
        assert_eq!(file.get("key").await.unwrap(), None);
        assert!(!place.exists());
    }
}
