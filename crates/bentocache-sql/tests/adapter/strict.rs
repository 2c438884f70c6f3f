//! An adapter that checks what the driver promises to adapters.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind};
use bentocache_sql::{DatabaseAdapter, Limits, Row, TableName};
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::tree::Tree;

/// Takes what its limits say.
pub(crate) struct Strict {
    tree: Tree,
    limits: Limits,
    gate: Option<Arc<Gate>>,
    /// How often the table was asked for, while the server is gone.
    gone: Option<Arc<AtomicUsize>>,
}

/// How long it takes to notice that the server is gone.
pub(crate) const NOTICED: Duration = Duration::from_secs(1);

/// Where gets wait until they are let go on.
pub(crate) struct Gate {
    /// The keys of each statement that was begun.
    pub(crate) asked: Mutex<Vec<Vec<String>>>,
    /// The statements that may go on.
    pub(crate) open: Semaphore,
    /// How many of the next ones fail.
    pub(crate) failures: AtomicUsize,
}

impl Gate {
    async fn pass(&self, keys: &[&str]) -> Result<(), DriverError> {
        self.asked.lock().unwrap().push(keys.iter().map(|key| (*key).to_owned()).collect());
        self.open.acquire().await.unwrap().forget();
        match self.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(DriverError::new(ErrorKind::Unavailable, "strict: the server has gone")),
            Err(_) => Ok(()),
        }
    }
}

impl Strict {
    pub(crate) fn new(tree: Tree, limits: Limits) -> Self {
        Self { tree, limits, gate: None, gone: None }
    }

    /// With a gate that is shut.
    pub(crate) fn gated() -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate {
            asked: Mutex::default(),
            open: Semaphore::new(0),
            failures: AtomicUsize::new(0),
        });
        let strict = Self::new(Tree::default(), Limits::default());
        (Self { gate: Some(gate.clone()), ..strict }, gate)
    }

    /// Without a server.
    pub(crate) fn without_server() -> (Self, Arc<AtomicUsize>) {
        let asked = Arc::<AtomicUsize>::default();
        let strict = Self::new(Tree::default(), Limits::default());
        (Self { gone: Some(Arc::clone(&asked)), ..strict }, asked)
    }

    fn check_keys(&self, keys: &[&str]) {
        assert!((1..=self.limits.batch).contains(&keys.len()), "{} keys", keys.len());
        assert!(keys.is_sorted_by(|one, other| one < other), "{keys:?}");
        let longest = self.limits.max_key.unwrap_or(usize::MAX);
        let fits =
            |key: &&str| key.len() <= longest && (self.limits.takes_nul || !key.contains('\0'));
        assert!(keys.iter().all(fits));
    }
}

impl DatabaseAdapter for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn open_table(&self, table: &TableName, create: bool) -> Result<(), DriverError> {
        assert_eq!((&*table.to_string(), create), ("bentocache", true));
        if let Some(asked) = &self.gone {
            asked.fetch_add(1, SeqCst);
            tokio::time::sleep(NOTICED).await;
            return Err(DriverError::new(ErrorKind::Unavailable, "strict: there is no server"));
        }
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        self.check_keys(keys);
        if let Some(gate) = &self.gate {
            gate.pass(keys).await?;
        }
        self.tree.get(keys, now).await
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
        let keys: Vec<&str> = rows.iter().map(|row| row.key).collect();
        self.check_keys(&keys);
        let size: usize = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        assert!(rows.len() == 1 || size <= self.limits.batch_bytes, "{size} bytes at once");
        self.tree.set(rows).await
    }

    async fn insert(&self, row: Row<'_>, now: i64) -> Result<bool, DriverError> {
        self.tree.insert(row, now).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        now: i64,
    ) -> Result<bool, DriverError> {
        self.tree.update(key, expected, value, now).await
    }

    async fn touch(
        &self,
        key: &str,
        expires_at: Option<i64>,
        now: i64,
    ) -> Result<bool, DriverError> {
        self.tree.touch(key, expires_at, now).await
    }

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
        self.check_keys(keys);
        self.tree.delete(keys, now).await
    }

    async fn delete_if(&self, key: &str, value: &[u8], now: i64) -> Result<bool, DriverError> {
        self.tree.delete_if(key, value, now).await
    }

    async fn pull(&self, key: &str, now: i64) -> Result<Option<Bytes>, DriverError> {
        self.tree.pull(key, now).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.tree.clear(prefix).await
    }

    async fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> Result<Vec<String>, DriverError> {
        self.tree.keys(prefix, after, limit, now).await
    }

    async fn prune(&self, now: i64) -> Result<u64, DriverError> {
        self.tree.prune(now).await
    }
}
