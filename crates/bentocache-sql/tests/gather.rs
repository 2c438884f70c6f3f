//! Gets that come at the same time travel together, over any adapter.

#[path = "../examples/adapter/tree.rs"]
mod tree;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bentocache_core::{DriverError, ErrorKind, L2Driver};
use bentocache_sql::{DatabaseAdapter, DatabaseDriver, Row, TableName};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, yield_now};
use tree::Tree;

const READERS: usize = 200;
/// The statements that are under way at most: four for a key each, two for many.
const AT_ONCE: usize = 6;

/// A database whose gets wait until they are let go on.
struct Gated {
    tree: Tree,
    /// The keys of each statement that was begun.
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    /// The statements that may go on; closed when they are to fail.
    gate: Arc<Semaphore>,
}

impl Gated {
    fn new() -> Self {
        let gate = Arc::new(Semaphore::new(0));
        Self { tree: Tree::default(), asked: Arc::default(), gate }
    }
}

impl DatabaseAdapter for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    async fn open_table(&self, _: &TableName, _: bool) -> Result<(), DriverError> {
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        self.asked
            .lock()
            .expect("no panic")
            .push(keys.iter().map(|key| (*key).to_owned()).collect());
        let Ok(may) = self.gate.acquire().await else {
            return Err(DriverError::new(ErrorKind::Unavailable, "gated: the server has gone"));
        };
        may.forget();
        self.tree.get(keys, now).await
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
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

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
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

/// Returns when all tasks of this thread wait.
async fn all_have_run() {
    for _ in 0..READERS {
        yield_now().await;
    }
}

type Reader = JoinHandle<Result<Option<Bytes>, DriverError>>;

/// Readers of `k0`, `k1`, … that all have asked. Of the keys, every second one is there.
async fn readers(driver: &Arc<DatabaseDriver<Gated>>) -> Vec<Reader> {
    for at in (0..READERS).step_by(2) {
        driver.set(&format!("k{at}"), format!("v{at}").into(), None).await.expect("stored");
    }
    let read = |at| {
        let driver = driver.clone();
        tokio::spawn(async move { driver.get(&format!("k{at}")).await })
    };
    let readers = (0..READERS).map(read).collect();
    all_have_run().await;
    readers
}

#[tokio::test]
async fn many_readers_at_once_get_their_own_values_with_few_statements() {
    let gated = Gated::new();
    let (asked, gate) = (gated.asked.clone(), gated.gate.clone());
    let driver = Arc::new(DatabaseDriver::new(gated));
    let readers = readers(&driver).await;
    assert_eq!(asked.lock().unwrap().len(), AT_ONCE, "statements under way");
    gate.add_permits(READERS);
    for (at, reader) in readers.into_iter().enumerate() {
        let value = reader.await.unwrap().unwrap();
        let expected = at.is_multiple_of(2).then(|| format!("v{at}"));
        assert_eq!(value.as_deref(), expected.as_deref().map(str::as_bytes), "k{at}");
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked.iter().map(Vec::len).sum::<usize>(), READERS);
    assert!(asked.len() <= AT_ONCE + READERS.div_ceil(64), "{} statements", asked.len());
}

#[tokio::test]
async fn the_same_key_is_asked_for_once_in_a_statement() {
    let gated = Gated::new();
    let (asked, gate) = (gated.asked.clone(), gated.gate.clone());
    let driver = Arc::new(DatabaseDriver::new(gated));
    driver.set("same", "value".into(), None).await.unwrap();
    let read = || {
        let driver = driver.clone();
        tokio::spawn(async move { driver.get("same").await })
    };
    let readers: Vec<Reader> = (0..READERS).map(|_| read()).collect();
    all_have_run().await;
    gate.add_permits(READERS);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().as_deref(), Some(&b"value"[..]));
    }
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|keys| keys == &["same"]), "{asked:?}");
}

#[tokio::test]
async fn a_failure_reaches_all_who_asked_and_none_who_ask_later() {
    let gated = Gated::new();
    let (asked, gate) = (gated.asked.clone(), gated.gate.clone());
    let driver = Arc::new(DatabaseDriver::new(gated));
    let readers = readers(&driver).await;
    gate.close();
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (ErrorKind::Unavailable, "gated: the server has gone")
        );
    }
    asked.lock().unwrap().clear();
    // The next one goes out on its own again, whatever becomes of it.
    driver.get("k0").await.unwrap_err();
    assert_eq!(*asked.lock().unwrap(), [["k0"]]);
}

#[tokio::test(start_paused = true)]
async fn statements_of_readers_that_gave_up_end_and_hold_up_nobody() {
    let gated = Gated::new();
    let (asked, gate) = (gated.asked.clone(), gated.gate.clone());
    let driver = Arc::new(DatabaseDriver::new(gated));
    let given_up = readers(&driver).await;
    for reader in given_up {
        reader.abort();
        assert!(reader.await.unwrap_err().is_cancelled());
    }
    asked.lock().unwrap().clear();
    let readers = readers(&driver).await;
    // The database still answers nobody.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(asked.lock().unwrap().len(), AT_ONCE, "statements under way");
    gate.add_permits(READERS);
    for (at, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap().unwrap().is_some(), at.is_multiple_of(2), "k{at}");
    }
    assert_eq!(asked.lock().unwrap().iter().map(Vec::len).sum::<usize>(), READERS);
}
