//! The directory itself: missing, unusable, locked, removed while in use.

use std::fs;
use std::time::{Duration, Instant};

use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_file::File;
use bytes::Bytes;

use crate::common::{self, keys, place, temporary};

const VALUE: Bytes = Bytes::from_static(b"value");

#[tokio::test]
async fn connect_creates_the_directory_and_leaves_nothing_in_it() {
    let (directory, _) = temporary();
    let root = directory.path().join("a/b");
    File::new(&root).connect().await.unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[tokio::test]
async fn what_cannot_be_a_directory_is_a_wrong_setting() {
    let (directory, _) = temporary();
    let taken = directory.path().join("taken");
    fs::write(&taken, b"theirs").unwrap();
    let nul = directory.path().join("a\0b");
    for path in [taken.clone(), taken.join("below"), nul, "".into()] {
        let error = File::new(&path).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{path:?}: {error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read(&taken).unwrap(), b"theirs");
}

#[tokio::test]
async fn a_file_in_the_way_is_a_miss_for_readers_and_an_error_for_writers() {
    let (directory, _) = temporary();
    let taken = directory.path().join("taken");
    fs::write(&taken, b"theirs").unwrap();
    let file = File::new(&taken);
    assert_eq!(file.get("key").await.unwrap(), None);
    assert_eq!(file.delete(&["key"]).await.unwrap(), 0);
    let error = file.set("key", VALUE, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("in the way"), "{error}");
}

#[tokio::test]
async fn a_missing_directory_is_a_miss_for_readers_and_made_by_writers() {
    let (directory, _) = temporary();
    let root = directory.path().join("cache");
    let file = File::new(&root);
    assert_eq!(file.get("key").await.unwrap(), None);
    assert_eq!(file.get_many(&["key"]).await.unwrap(), [None]);
    assert_eq!(file.pull("key").await.unwrap(), None);
    assert_eq!(file.delete(&["key"]).await.unwrap(), 0);
    assert!(!file.update("key", b"", VALUE, None).await.unwrap());
    assert!(!file.delete_if("key", b"").await.unwrap());
    assert!(keys(&file, "").await.is_empty());
    file.clear("").await.unwrap();
    assert!(!root.exists());

    file.connect().await.unwrap();
    for _ in 0..3 {
        file.set("key", VALUE, None).await.unwrap();
        assert_eq!(file.get("key").await.unwrap(), Some(VALUE));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(file.get("key").await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_begins_again_when_the_directory_was_removed_under_it() {
    let (directory, _) = temporary();
    let root = directory.path().join("cache");
    let file = std::sync::Arc::new(File::new(&root));
    file.set("key", VALUE, None).await.unwrap();
    let lock = place(&root, "key").with_file_name(".bento-lock");
    let lock = fs::File::open(lock).unwrap();
    lock.lock().unwrap();
    let set = tokio::spawn({
        let file = file.clone();
        async move { file.set("key", Bytes::from_static(b"new"), None).await }
    });
    // The temporary file is there, and waits for the lock.
    common::until(|| common::files(&root).len() == 2).await;
    fs::remove_dir_all(&root).unwrap();
    lock.unlock().unwrap();
    set.await.unwrap().unwrap();
    assert_eq!(file.get("key").await.unwrap(), Some(Bytes::from_static(b"new")));
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_the_directory_under_writers_harms_nobody() {
    let (directory, _) = temporary();
    let root = directory.path().join("cache");
    let file = std::sync::Arc::new(File::new(&root));
    let writers: Vec<_> = (0..4)
        .map(|writer: u64| {
            let file = file.clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    let key = format!("{}", n % 3);
                    // Somebody removes the directory all the time, so even the fourth try may fail.
                    let _ = file.set(&key, common::marked(writer * 1000 + n), None).await;
                    if let Some(value) = file.get(&key).await.unwrap() {
                        common::assert_whole(&value);
                    }
                }
            })
        })
        .collect();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let _ = fs::remove_dir_all(&root);
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    file.set("key", VALUE, None).await.unwrap();
    assert_eq!(file.get("key").await.unwrap(), Some(VALUE));
}

#[tokio::test]
async fn a_lock_that_is_held_for_good_is_a_timeout_for_writers_and_nothing_to_readers() {
    let (directory, file) = temporary();
    file.set("key", VALUE, None).await.unwrap();
    let lock = place(directory.path(), "key").with_file_name(".bento-lock");
    let lock = fs::File::open(lock).unwrap();
    lock.lock().unwrap();

    let start = Instant::now();
    let error = file.set("key", Bytes::new(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("suspended"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(file.get("key").await.unwrap(), Some(VALUE));
    // The value that could not be moved to its place is not left behind.
    assert_eq!(common::files(directory.path()).len(), 1);

    drop(lock);
    file.set("key", Bytes::new(), None).await.unwrap();
    assert_eq!(file.get("key").await.unwrap(), Some(Bytes::new()));
}

#[tokio::test]
async fn durable_writes_do_the_same() {
    let (directory, _) = temporary();
    let file = File::new(directory.path().join("cache")).durable(true);
    file.connect().await.unwrap();
    file.set("key", VALUE, None).await.unwrap();
    assert!(file.update("key", &VALUE, Bytes::from_static(b"new"), None).await.unwrap());
    assert_eq!(file.pull("key").await.unwrap(), Some(Bytes::from_static(b"new")));
    file.set("key", VALUE, None).await.unwrap();
    file.clear("").await.unwrap();
    assert_eq!(file.get("key").await.unwrap(), None);
}

#[test]
fn outside_of_a_runtime_it_is_an_error() {
    let (_directory, file) = temporary();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let get = std::pin::pin!(file.get("key"));
    let std::task::Poll::Ready(Err(error)) = get.poll(&mut cx) else { panic!() };
    assert_eq!(error.kind(), ErrorKind::Closed);
    let mut keys = file.keys("");
    let std::task::Poll::Ready(Some(Err(error))) = keys.as_mut().poll_next(&mut cx) else {
        panic!()
    };
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(matches!(keys.as_mut().poll_next(&mut cx), std::task::Poll::Ready(None)));
}

#[cfg(unix)]
#[tokio::test]
async fn a_directory_that_may_only_be_read_serves_readers() {
    use std::os::unix::fs::PermissionsExt;

    let (directory, file) = temporary();
    let root = directory.path();
    file.set("key", VALUE, None).await.unwrap();
    let expired = common::plant_expired(root, "expired");
    let shards = [place(root, "key"), expired.clone()].map(|p| p.parent().unwrap().to_owned());
    let allow = |mode| {
        for directory in shards.iter().map(|shard| &**shard).chain([root]) {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o555);
    if fs::write(root.join("probe"), b"").is_ok() {
        // This user may do anything, so there is nothing to see.
        return;
    }
    let error = file.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("right to read and write"), "{error}");

    assert_eq!(file.get("key").await.unwrap(), Some(VALUE));
    assert_eq!(file.get("expired").await.unwrap(), None);
    assert!(expired.exists());
    let calls = [
        file.set("key", VALUE, None).await,
        file.set("elsewhere", VALUE, None).await,
        file.delete(&["key"]).await.map(drop),
        file.clear("key").await,
        file.pull("key").await.map(drop),
        file.prune().await.map(drop),
    ];
    for error in calls.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains(root.to_str().unwrap()), "{error}");
        assert!(error.to_string().contains("right to read and write"), "{error}");
    }
    assert_eq!(file.get("key").await.unwrap(), Some(VALUE));
    allow(0o755);
}
