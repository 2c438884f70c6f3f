//! Any key, any value; no key reaches another one's value or leaves the directory.

use std::collections::BTreeMap;

use bentocache_driver::{ErrorKind, L2Driver, Write};
use bentocache_file::File;
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::{files, keys, temporary};

fn hostile() -> Vec<String> {
    let mut keys: Vec<String> = [
        "",
        " ",
        ".",
        "..",
        "/",
        "//",
        "/etc/passwd",
        "../../x",
        "..:..:x",
        "a",
        "a:",
        "a:b",
        "a/b",
        "a\\b",
        "A",
        "a\0",
        "a\0b",
        "\0",
        "a\n",
        "%",
        "_",
        "*",
        "?",
        "[",
        "app[1]",
        "CON",
        "nul.txt",
        "a.",
        "a ",
        "é",
        "e\u{301}",
        "İ",
        "ı",
        "ß",
        "SS",
        "\u{202e}",
        "💩",
        "\u{10ffff}",
        ".bento",
        ".bento-lock",
        "ab/cd.bento",
    ]
    .map(str::to_owned)
    .into();
    keys.push("k".repeat(255));
    keys.push("k".repeat(256));
    keys.push("k".repeat(10_000));
    keys.push("é".repeat(5_000));
    keys.push("k".repeat(1 << 20));
    keys
}

#[tokio::test]
async fn hostile_keys_are_kept_apart_and_inside_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("a/b/cache");
    let file = File::new(&root);
    for (n, key) in hostile().iter().enumerate() {
        file.set(key, Bytes::from(n.to_string()), None).await.unwrap();
    }
    for (n, key) in hostile().iter().enumerate() {
        assert_eq!(file.get(key).await.unwrap(), Some(Bytes::from(n.to_string())), "{key:.40?}");
    }
    let mut expected = hostile();
    expected.sort();
    assert_eq!(keys(&file, "").await, expected);
    assert_eq!(files(outside.path()).len(), expected.len());
    assert_eq!(files(&root).len(), expected.len());

    let hostile = hostile();
    let all: Vec<_> = hostile.iter().map(String::as_str).collect();
    assert_eq!(file.delete(&all).await.unwrap(), all.len() as u64);
    assert_eq!(files(outside.path()), [""; 0].map(std::path::PathBuf::from));
}

#[tokio::test]
async fn a_key_over_the_limit_is_refused_by_every_operation() {
    let (_directory, file) = temporary();
    let limit = file.capabilities().max_key.unwrap();
    let key = &*"k".repeat(limit + 1);
    let refused = [
        file.get(key).await.map(drop),
        file.get_many(&[key]).await.map(drop),
        file.set(key, Bytes::new(), None).await,
        file.delete(&[key]).await.map(drop),
        file.pull(key).await.map(drop),
        file.update(key, b"", Bytes::new(), None).await.map(drop),
        file.delete_if(key, b"").await.map(drop),
    ];
    for result in refused {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains(&limit.to_string()), "{error}");
    }
}

#[tokio::test]
async fn values_from_nothing_to_64_mb() {
    let (_directory, file) = temporary();
    let large = Bytes::from((0..64_u32 << 20).map(|i| (i >> 7) as u8).collect::<Vec<_>>());
    for value in [Bytes::new(), Bytes::from_static(&[0]), large] {
        file.set("k", value.clone(), None).await.unwrap();
        assert!(file.get("k").await.unwrap() == Some(value));
    }
}

#[tokio::test]
async fn many_at_once_keep_their_order() {
    let (_directory, file) = temporary();
    let write = |key, value| Write { key, value: Bytes::from_static(value), ttl: None };
    file.set_many(&[write("a", b"1"), write("b", b"2"), write("a", b"3")]).await.unwrap();
    let [one, two] = [b"3", b"2"].map(|value| Some(Bytes::from_static(value)));
    let expected = [two.clone(), None, one, two];
    assert_eq!(file.get_many(&["b", "no", "a", "b"]).await.unwrap(), expected);
    assert_eq!(file.get_many(&[]).await.unwrap(), []);
    assert_eq!(file.delete(&["a", "no", "a", "b"]).await.unwrap(), 2);
    assert_eq!(file.delete(&[]).await.unwrap(), 0);
}

#[tokio::test]
async fn pull_takes_and_compared_changes_compare() {
    let (directory, file) = temporary();
    let bytes = Bytes::from_static;
    assert_eq!(file.pull("k").await.unwrap(), None);
    assert!(!file.delete_if("k", b"").await.unwrap());
    assert!(!file.update("k", b"", bytes(b"new"), None).await.unwrap());

    file.set("k", bytes(b"1"), None).await.unwrap();
    assert!(!file.update("k", b"2", bytes(b"3"), None).await.unwrap());
    assert!(file.update("k", b"1", bytes(b"2"), None).await.unwrap());
    assert!(!file.delete_if("k", b"1").await.unwrap());
    assert!(file.delete_if("k", b"2").await.unwrap());

    file.set("k", bytes(b"1"), None).await.unwrap();
    assert_eq!(file.pull("k").await.unwrap(), Some(bytes(b"1")));
    assert_eq!(file.pull("k").await.unwrap(), None);
    assert!(files(directory.path()).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Against a map, with keys that like to be mistaken for each other.
    #[test]
    fn a_directory_behaves_like_a_map(
        steps in prop::collection::vec(
            (0_u8..6, "[a:./é]{0,3}", prop::collection::vec(any::<u8>(), 0..9)), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_directory, file) = temporary();
            let mut map = BTreeMap::new();
            for (step, key, value) in steps {
                let key = &*key;
                let value = Bytes::from(value);
                match step {
                    0 | 1 => {
                        file.set(key, value.clone(), None).await.unwrap();
                        map.insert(key.to_owned(), value);
                    }
                    2 => {
                        let there = map.remove(key).is_some();
                        prop_assert_eq!(file.delete(&[key]).await.unwrap(), u64::from(there));
                    }
                    3 => prop_assert_eq!(file.pull(key).await.unwrap(), map.remove(key)),
                    4 => {
                        file.clear(key).await.unwrap();
                        map.retain(|other, _| !other.starts_with(key));
                    }
                    _ => {
                        let expected: Vec<_> =
                            map.keys().filter(|other| other.starts_with(key)).cloned().collect();
                        prop_assert_eq!(keys(&file, key).await, expected);
                    }
                }
                prop_assert_eq!(file.get(key).await.unwrap(), map.get(key).cloned());
            }
            Ok(())
        })?;
    }
}
