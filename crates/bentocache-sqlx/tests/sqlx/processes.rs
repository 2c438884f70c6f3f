//! Several processes on one SQLite file.

use std::process::Stdio;
use std::time::Duration;

use bentocache_driver::L2Driver;
use bentocache_sqlx::open_sqlite;
use bytes::Bytes;
use tokio::process::{Child, Command};

use crate::common::{self, becomes};

const FILE: &str = "BENTO_TEST_SQLITE_FILE";
const ROUNDS: u32 = 150;

/// Starts this program again with only the test [`child`], on this file.
fn start(file: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The work of a process: it increments a shared number, and takes keys that only one process can
/// get.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(file) = std::env::var(FILE) else { return };
    let cache = open_sqlite(file);
    for round in 0..ROUNDS {
        cache.set("whole", vec![b'0' + (round % 10) as u8; 5_000].into(), None).await.unwrap();
        let whole = cache.get("whole").await.unwrap().unwrap();
        assert!(whole.len() == 5_000 && whole.iter().all(|byte| *byte == whole[0]), "mixed");
        if cache.pull(&format!("ticket {round}")).await.unwrap().is_some() {
            add_one(&cache, "taken").await;
        }
        add_one(&cache, "count").await;
    }
    cache.disconnect().await.unwrap();
}

async fn add_one(cache: &impl L2Driver, key: &str) {
    loop {
        let count = cache.get(key).await.unwrap().unwrap();
        let next: u32 = std::str::from_utf8(&count).unwrap().parse::<u32>().unwrap() + 1;
        if cache.update(key, &count, next.to_string().into(), None).await.unwrap() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache.db");
    let cache = open_sqlite(&file);
    for key in ["count", "taken"] {
        cache.set(key, "0".into(), None).await.unwrap();
    }
    for round in 0..ROUNDS {
        cache.set(&format!("ticket {round}"), "1".into(), None).await.unwrap();
    }
    let children: Vec<_> = (0..3).map(|_| start(&file)).collect();
    for mut child in children {
        assert!(child.wait().await.unwrap().success());
    }
    let count = async |key| cache.get(key).await.unwrap().unwrap();
    assert_eq!(count("count").await, (3 * ROUNDS).to_string());
    assert_eq!(count("taken").await, ROUNDS.to_string(), "a ticket was taken twice, or by nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_the_file_whole() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache.db");
    let cache = open_sqlite(&file);
    for key in ["count", "taken"] {
        cache.set(key, "0".into(), None).await.unwrap();
    }
    for _ in 0..3 {
        let before: Bytes = cache.get("count").await.unwrap().unwrap();
        let mut child = start(&file);
        becomes("work of the other process", async || {
            cache.get("count").await.unwrap().unwrap() != before
        })
        .await;
        child.kill().await.unwrap();
        // Its locks are gone with it.
        let set = cache.set("after", "1".into(), Some(Duration::from_secs(60)));
        tokio::time::timeout(common::PATIENCE, set).await.unwrap().unwrap();
        let whole = cache.get("whole").await.unwrap().unwrap();
        assert!(whole.len() == 5_000 && whole.iter().all(|byte| *byte == whole[0]), "mixed");
    }
}
