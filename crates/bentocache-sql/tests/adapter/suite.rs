//! The adapter of the example passes the suite for L2, with any limits.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_sql::{DatabaseDriver, Limits};

use crate::strict::{NOTICED, Strict};
use crate::tree::Tree;

bentocache_testkit::l2_suite! {
    open = {
        let tree = Tree::default();
        async move || DatabaseDriver::new(tree.clone())
    },
    without = [link],
}

bentocache_testkit::l2_suite! {
    mod limited;
    open = {
        let tree = Tree::default();
        async move || DatabaseDriver::new(Strict::new(tree.clone(), limits())).max_value(5_000_000)
    },
    without = [long_keys, large_values, link],
}

/// Little at once.
fn limits() -> Limits {
    let limits = Limits::default().with_batch(7).with_batch_bytes(10_000);
    limits.with_max_key(500).with_max_value(6_000_000).without_nul()
}

#[tokio::test]
async fn a_name_that_cannot_be_used_is_a_setting() {
    let driver = DatabaseDriver::new(Tree::default()).table_name("a b");
    let error = driver.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().starts_with("tree: the table name \"a b\""), "{error}");
}

#[tokio::test]
async fn a_bad_text_fails_connect_and_the_first_call() {
    let driver = || DatabaseDriver::new(Tree::default());
    for (driver, named) in [
        (driver().prune_interval("soon"), "`prune_interval`: cannot use \"soon\""),
        (driver().prune_interval("-1h"), "`prune_interval`: cannot use \"-1h\""),
        (driver().max_value("ten").prune_interval("1h"), "`max_value`: cannot use \"ten\""),
        (driver().max_value(-1), "`max_value`: cannot use \"-1\""),
    ] {
        for error in [driver.connect().await.unwrap_err(), driver.get("a").await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().starts_with(&format!("tree: option {named}")), "{error}");
        }
    }
}

#[tokio::test]
async fn the_largest_value_may_be_a_text() {
    let driver = DatabaseDriver::new(Tree::default()).max_value("1kb");
    driver.set("a", vec![0; 1024].into(), None).await.unwrap();
    let error = driver.set("a", vec![0; 1025].into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("1024 bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn pruning_comes_with_the_interval_and_ends() {
    let driver = DatabaseDriver::new(Tree::default()).prune_interval("1m");
    driver.connect().await.unwrap();
    driver.set("dead", "1".into(), Some(Duration::ZERO)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(driver.prune().await.unwrap(), 0, "the task has pruned before");
    driver.set("dead", "1".into(), Some(Duration::ZERO)).await.unwrap();
    driver.disconnect().await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(driver.get("dead").await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_server_that_is_gone_wait_once() {
    let (strict, asked) = Strict::without_server();
    let driver = DatabaseDriver::new(strict);
    let start = tokio::time::Instant::now();
    let calls = futures_util::future::join_all((0..20).map(|_| driver.get("a")));
    for answer in calls.await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    assert_eq!((start.elapsed(), asked.load(SeqCst)), (NOTICED, 1));
    // The next one tries again.
    driver.get("a").await.unwrap_err();
    assert_eq!(asked.load(SeqCst), 2);
}
