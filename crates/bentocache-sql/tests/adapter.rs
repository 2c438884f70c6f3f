//! The adapter of the example passes the suite for second tiers, with any limits.

#[path = "../examples/adapter/tree.rs"]
mod tree;

use std::time::Duration;

use bentocache_core::{DriverError, ErrorKind, L2Driver};
use bentocache_sql::{DatabaseAdapter, DatabaseDriver, Limits, Row, TableName};
use bytes::Bytes;
use tree::Tree;

bentocache_testkit::l2_suite! {
    open = {
        let tree = Tree::default();
        async move || DatabaseDriver::new(tree.clone())
    },
}

bentocache_testkit::l2_suite! {
    mod limited;
    open = {
        let tree = Tree::default();
        async move || DatabaseDriver::new(Strict(tree.clone())).max_value(5_000_000)
    },
    without = [long_keys, large_values],
}

/// Takes little at once, and checks what the driver promises to adapters.
struct Strict(Tree);

impl Strict {
    fn check_keys(keys: &[&str]) {
        assert!((1..=7).contains(&keys.len()), "{} keys", keys.len());
        assert!(keys.is_sorted_by(|one, other| one < other), "{keys:?}");
        assert!(keys.iter().all(|key| key.len() <= 500 && !key.contains('\0')));
    }
}

impl DatabaseAdapter for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn limits(&self) -> Limits {
        let limits = Limits::default().with_batch(7).with_batch_bytes(10_000);
        limits.with_max_key(500).with_max_value(6_000_000).without_nul()
    }

    async fn open_table(&self, table: &TableName, create: bool) -> Result<(), DriverError> {
        assert_eq!((&*table.to_string(), create), ("bentocache", true));
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        Self::check_keys(keys);
        self.0.get(keys, now).await
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
        let keys: Vec<&str> = rows.iter().map(|row| row.key).collect();
        Self::check_keys(&keys);
        let size: usize = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        assert!(rows.len() == 1 || size <= 10_000, "{size} bytes at once");
        self.0.set(rows).await
    }

    async fn insert(&self, row: Row<'_>, now: i64) -> Result<bool, DriverError> {
        self.0.insert(row, now).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        now: i64,
    ) -> Result<bool, DriverError> {
        self.0.update(key, expected, value, now).await
    }

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
        Self::check_keys(keys);
        self.0.delete(keys, now).await
    }

    async fn delete_if(&self, key: &str, value: &[u8], now: i64) -> Result<bool, DriverError> {
        self.0.delete_if(key, value, now).await
    }

    async fn pull(&self, key: &str, now: i64) -> Result<Option<Bytes>, DriverError> {
        self.0.pull(key, now).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.0.clear(prefix).await
    }

    async fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> Result<Vec<String>, DriverError> {
        self.0.keys(prefix, after, limit, now).await
    }

    async fn prune(&self, now: i64) -> Result<u64, DriverError> {
        self.0.prune(now).await
    }
}

#[tokio::test]
async fn a_name_that_cannot_be_used_is_a_setting() {
    let driver = DatabaseDriver::new(Tree::default()).table_name("a b");
    let error = driver.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().starts_with("tree: the table name \"a b\""), "{error}");
}

#[tokio::test(start_paused = true)]
async fn pruning_comes_with_the_interval_and_ends() {
    let driver = DatabaseDriver::new(Tree::default()).prune_interval(Duration::from_secs(60));
    driver.connect().await.unwrap();
    driver.set("dead", "1".into(), Some(Duration::ZERO)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(driver.prune().await.unwrap(), 0, "the task has pruned before");
    driver.set("dead", "1".into(), Some(Duration::ZERO)).await.unwrap();
    driver.disconnect().await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(driver.get("dead").await.unwrap_err().kind(), ErrorKind::Closed);
}
