//! Prefixes are literal, and what is not ours stays.

use std::fs;

use bentocache_driver::L2Driver;
use bytes::Bytes;

use crate::common::{entry, files, keys, place, plant_expired, temporary};

const KEYS: [&str; 12] = [
    "app:a",
    "app*:a",
    "app",
    "app2:a",
    "app_1",
    "appX1",
    "app[1]",
    "app1",
    "users:1",
    "usersAbc:1",
    "Users:1",
    "",
];

#[tokio::test]
async fn a_prefix_is_taken_literally() {
    for prefix in ["app", "app:", "app*", "app_", "app[1]", "users:", "Users", "%", "*", ".*", "\0"]
    {
        let (_directory, file) = temporary();
        for key in KEYS {
            file.set(key, Bytes::from_static(b"v"), None).await.unwrap();
        }
        let (mut gone, mut left): (Vec<_>, Vec<_>) =
            KEYS.into_iter().partition(|key| key.starts_with(prefix));
        gone.sort_unstable();
        left.sort_unstable();
        assert_eq!(keys(&file, prefix).await, gone, "{prefix}");
        file.clear(prefix).await.unwrap();
        assert_eq!(keys(&file, "").await, left, "{prefix}");
    }
}

#[tokio::test]
async fn an_empty_prefix_takes_what_is_ours_and_nothing_else() {
    let (directory, file) = temporary();
    let root = directory.path();
    for key in KEYS {
        file.set(key, Bytes::from_static(b"v"), None).await.unwrap();
    }
    // A torn one of ours, known by its name.
    fs::write(place(root, "app"), b"torn").unwrap();

    let ours = place(root, "app");
    let foreign = [
        root.join("readme.txt"),
        root.join("x.bento"),
        root.join("sub/dir/file"),
        root.join("ABC").join(ours.file_name().unwrap()),
        root.join("zz").join(ours.file_name().unwrap()),
        ours.with_extension("bento.bak"),
        ours.with_extension(""),
        ours.with_file_name("x.bento"),
        ours.with_file_name("x.bento-tmp"),
    ];
    for path in &foreign {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, entry("app", b"theirs", u64::MAX)).unwrap();
    }
    file.prune().await.unwrap();
    file.clear("").await.unwrap();
    let mut expected = foreign.to_vec();
    expected.sort();
    assert_eq!(files(root), expected);
    assert!(keys(&file, "").await.is_empty());
}

#[tokio::test]
async fn the_keys_of_long_and_expired_entries() {
    let (directory, file) = temporary();
    let long = "long".repeat(20_000);
    let value = Bytes::from(vec![0; 1 << 20]);
    file.set(&long, value, None).await.unwrap();
    plant_expired(directory.path(), "longer ago");
    assert_eq!(keys(&file, "long").await, [&*long]);
    file.clear("long").await.unwrap();
    assert!(files(directory.path()).is_empty());
}

#[tokio::test]
async fn many_keys_are_all_listed_and_cleared() {
    let (directory, file) = temporary();
    let mut expected: Vec<_> = (0..2_000).map(|n| format!("many:{n}")).collect();
    let value = Bytes::from_static(b"v");
    let writes: Vec<_> = expected
        .iter()
        .map(|key| bentocache_driver::Write { key, value: value.clone(), ttl: None })
        .collect();
    file.set_many(&writes).await.unwrap();
    drop(writes);
    expected.sort();
    assert_eq!(keys(&file, "many:").await, expected);

    // A stream that is given up does no harm.
    let mut some = file.keys("");
    assert!(std::future::poll_fn(|cx| some.as_mut().poll_next(cx)).await.is_some());
    drop(some);

    file.clear("many:").await.unwrap();
    assert!(files(directory.path()).is_empty());
}
