//! A process that is killed at any point leaves whole entries.

use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, SystemTime};

use bentocache_driver::L2Driver;
use bentocache_file::File;

use crate::common::{assert_whole, files, keys, marked, part, start_child, temporary};

const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The key that is also deleted; the others are always there.
const DELETED: &str = "e";

/// Writes, updates and deletes forever, one line per round.
#[tokio::test]
async fn child() {
    let Some((start, root)) = part() else { return };
    let file = File::new(root);
    let mut out = std::io::stdout();
    for n in start.parse::<u64>().unwrap().. {
        let key = KEYS[n as usize % 5];
        match n % 7 {
            5 => drop(file.delete(&[DELETED]).await.unwrap()),
            6 => {
                if let Some(value) = file.get(key).await.unwrap() {
                    file.update(key, &value, marked(n), None).await.unwrap();
                }
            }
            _ => file.set(key, marked(n), Some(Duration::from_secs(600))).await.unwrap(),
        }
        writeln!(out, "round").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_is_whole_after_a_kill() {
    let (directory, file) = temporary();
    for key in KEYS {
        file.set(key, marked(0), None).await.unwrap();
    }
    let mut left_over = 0;
    for kill in 0..40 {
        // Two writers, so that one also dies while it waits for the other's lock.
        let mut children = [1, 2].map(|n| {
            start_child("crash::child", &(kill * 1_000_000 + n).to_string(), directory.path())
        });
        for child in &mut children {
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let rounds = lines.map_while(Result::ok).filter(|line| line.ends_with("round"));
            assert!(rounds.take(1 + fastrand::usize(..40)).count() > 0);
            // SIGKILL on Unix: nothing of the child runs after it.
            child.kill().unwrap();
        }
        for child in &mut children {
            child.wait().unwrap();
        }

        for key in KEYS {
            // The old value or the new one.
            match file.get(key).await.unwrap() {
                Some(value) => assert_whole(&value),
                None => assert_eq!(key, DELETED),
            }
        }
        let listed = keys(&file, "").await;
        assert!(listed.iter().all(|key| KEYS.contains(&&**key)), "{listed:?}");
        left_over = files(directory.path()).len() - listed.len();
    }
    // Dead processes left no lock, and their leftovers are pruned when they are old.
    for key in KEYS {
        file.set(key, marked(1), None).await.unwrap();
    }
    for path in files(directory.path()) {
        if path.extension().is_some_and(|extension| extension == "bento-tmp") {
            let long_ago = SystemTime::now() - Duration::from_secs(7200);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(long_ago).unwrap();
            left_over = left_over.saturating_sub(1);
        }
    }
    assert_eq!(left_over, 0);
    file.prune().await.unwrap();
    assert_eq!(files(directory.path()).len(), KEYS.len());
}
