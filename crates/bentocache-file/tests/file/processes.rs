//! Several processes on one directory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Child;

use bentocache_driver::L2Driver;
use bentocache_file::File;
use bytes::Bytes;

use crate::common::{assert_whole, marked, part, plant_expired, start_child, temporary};

const READY: &str = "ready";
const TAKEN: &str = "taken ";

#[tokio::test]
async fn child() {
    let Some((part, root)) = part() else { return };
    let file = File::new(root);
    say(READY);
    match &*part {
        "pull" => {
            for key in shuffled() {
                if file.pull(&key).await.unwrap() == Some(Bytes::copy_from_slice(key.as_bytes())) {
                    say(&format!("{TAKEN}{key}"));
                }
            }
        }
        "delete_if" => {
            for key in shuffled() {
                if file.delete_if(&key, key.as_bytes()).await.unwrap() {
                    say(&format!("{TAKEN}{key}"));
                }
            }
        }
        "delete" => {
            for key in shuffled() {
                if file.delete(&[&key]).await.unwrap() == 1 {
                    say(&format!("{TAKEN}{key}"));
                }
            }
        }
        "write" => {
            for n in 0..400 {
                file.set(["a", "b"][n as usize % 2], marked(n), None).await.unwrap();
            }
        }
        "read" => {
            for _ in 0..600 {
                // Always there: a value that is overwritten is never gone for a moment.
                assert_whole(&file.get("a").await.unwrap().unwrap());
                assert_whole(&file.get("b").await.unwrap().unwrap());
            }
        }
        "count" => {
            for _ in 0..100 {
                loop {
                    let count = file.get("count").await.unwrap().unwrap();
                    let next = std::str::from_utf8(&count).unwrap().parse::<u32>().unwrap() + 1;
                    if file.update("count", &count, next.to_string().into(), None).await.unwrap() {
                        break;
                    }
                }
            }
        }
        "tidy" => {
            while !is_told_to_stop() {
                file.get("key").await.unwrap();
                file.prune().await.unwrap();
                file.get("key").await.unwrap();
            }
        }
        "update" => {
            while !is_told_to_stop() {
                file.update("key", b"value", Bytes::from_static(b"value"), None).await.unwrap();
            }
        }
        other => panic!("no such part: {other}"),
    }
}

/// The keys that the children fight for.
fn shuffled() -> Vec<String> {
    let mut keys: Vec<_> = (0..200).map(|n| format!("key:{n}")).collect();
    fastrand::shuffle(&mut keys);
    keys
}

fn say(line: &str) {
    // In one piece, and on a line of its own: the test harness writes there too.
    std::io::stdout().write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

/// A file gives the signal, which needs no thread.
fn is_told_to_stop() -> bool {
    part().unwrap().1.join("stop").exists()
}

fn tell_to_stop(root: &Path) {
    std::fs::write(root.join("stop"), b"").unwrap();
}

/// Starts the child and returns when it is running.
fn started(part: &str, root: &Path) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = start_child("processes::child", part, root);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == READY));
    (child, lines)
}

/// Waits for the child and returns what it took.
fn finished((mut child, lines): (Child, impl Iterator<Item = String>)) -> Vec<String> {
    let taken = lines.filter_map(|line| line.strip_prefix(TAKEN).map(str::to_owned)).collect();
    assert!(child.wait().unwrap().success());
    taken
}

#[tokio::test]
async fn each_value_is_taken_once() {
    for part in ["pull", "delete_if", "delete"] {
        let (directory, file) = temporary();
        for key in shuffled() {
            file.set(&key, key.clone().into(), None).await.unwrap();
        }
        let children = [(); 4].map(|()| started(part, directory.path()));
        let mut taken = BTreeMap::<String, u32>::new();
        for key in children.into_iter().flat_map(finished) {
            *taken.entry(key).or_default() += 1;
        }
        assert_eq!(taken.len(), 200, "{part}");
        assert!(taken.values().all(|&times| times == 1), "{part}: {taken:?}");
    }
}

#[tokio::test]
async fn readers_see_whole_values_of_any_writer() {
    let (directory, file) = temporary();
    file.set("a", marked(0), None).await.unwrap();
    file.set("b", marked(0), None).await.unwrap();
    let children = ["write", "read", "write", "read"].map(|part| started(part, directory.path()));
    children.into_iter().for_each(|child| drop(finished(child)));
}

#[tokio::test]
async fn no_compared_update_is_lost() {
    let (directory, file) = temporary();
    file.set("count", "0".into(), None).await.unwrap();
    let children = [(); 4].map(|()| started("count", directory.path()));
    children.into_iter().for_each(|child| drop(finished(child)));
    assert_eq!(file.get("count").await.unwrap(), Some("400".into()));
}

#[tokio::test]
async fn tidying_up_an_expired_file_never_takes_a_newer_one() {
    let (directory, file) = temporary();
    let children = [(); 2].map(|()| started("tidy", directory.path()));
    for _ in 0..500 {
        plant_expired(directory.path(), "key");
        file.set("key", "new".into(), None).await.unwrap();
        assert_eq!(file.get("key").await.unwrap(), Some("new".into()));
    }
    tell_to_stop(directory.path());
    children.into_iter().for_each(|child| drop(finished(child)));
    assert_eq!(file.get("key").await.unwrap(), Some("new".into()));
}

#[tokio::test]
async fn an_update_never_brings_a_deleted_key_back() {
    let (directory, file) = temporary();
    let children = [(); 2].map(|()| started("update", directory.path()));
    for round in 0..500 {
        file.set("key", "value".into(), None).await.unwrap();
        match round % 3 {
            0 => drop(file.delete(&["key"]).await.unwrap()),
            1 => file.clear("ke").await.unwrap(),
            _ => assert_eq!(file.pull("key").await.unwrap(), Some("value".into())),
        }
        assert_eq!(file.get("key").await.unwrap(), None, "{round}");
    }
    tell_to_stop(directory.path());
    children.into_iter().for_each(|child| drop(finished(child)));
    assert_eq!(file.get("key").await.unwrap(), None);
}
