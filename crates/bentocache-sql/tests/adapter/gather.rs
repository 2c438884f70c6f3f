//! Gets that come at the same time travel together.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, L2Driver};
use bentocache_sql::DatabaseDriver;
use bytes::Bytes;
use tokio::task::{JoinHandle, yield_now};

use crate::strict::{Gate, Strict};

const READERS: usize = 200;
/// The statements that are under way at most: these for a key each, and two for many.
const ALONE: usize = 4;
const AT_ONCE: usize = ALONE + 2;

fn gated() -> (Arc<DatabaseDriver<Strict>>, Arc<Gate>) {
    let (strict, gate) = Strict::gated();
    (Arc::new(DatabaseDriver::new(strict)), gate)
}

/// Returns when all tasks of this thread wait.
async fn all_have_run() {
    for _ in 0..READERS {
        yield_now().await;
    }
}

type Reader = JoinHandle<Result<Option<Bytes>, DriverError>>;

/// Readers of `k0`, `k1`, … that all have asked. Of the keys, every second one is there.
async fn readers(driver: &Arc<DatabaseDriver<Strict>>) -> Vec<Reader> {
    for at in (0..READERS).step_by(2) {
        driver.set(&format!("k{at}"), format!("v{at}").into(), None).await.unwrap();
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
    let (driver, gate) = gated();
    let readers = readers(&driver).await;
    assert_eq!(gate.asked.lock().unwrap().len(), AT_ONCE, "statements under way");
    gate.open.add_permits(READERS);
    for (at, reader) in readers.into_iter().enumerate() {
        let value = reader.await.unwrap().unwrap();
        let expected = at.is_multiple_of(2).then(|| format!("v{at}"));
        assert_eq!(value.as_deref(), expected.as_deref().map(str::as_bytes), "k{at}");
    }
    let asked = gate.asked.lock().unwrap();
    assert_eq!(asked.iter().map(Vec::len).sum::<usize>(), READERS);
    assert!(asked.len() <= AT_ONCE + READERS.div_ceil(64), "{} statements", asked.len());
}

#[tokio::test]
async fn the_same_key_is_asked_for_once_in_a_statement() {
    let (driver, gate) = gated();
    driver.set("same", "value".into(), None).await.unwrap();
    let read = || {
        let driver = driver.clone();
        tokio::spawn(async move { driver.get("same").await })
    };
    let readers: Vec<Reader> = (0..READERS).map(|_| read()).collect();
    all_have_run().await;
    gate.open.add_permits(READERS);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().as_deref(), Some(&b"value"[..]));
    }
    let asked = gate.asked.lock().unwrap();
    assert!(asked.iter().all(|keys| keys == &["same"]), "{asked:?}");
}

/// Of the readers, those that got a value or none, and those that failed.
async fn outcomes(readers: Vec<Reader>) -> (usize, usize) {
    let mut failed = 0;
    let all = readers.len();
    for reader in readers {
        if let Err(error) = reader.await.unwrap() {
            failed += 1;
            assert_eq!(
                (error.kind(), &*error.to_string()),
                (ErrorKind::Unavailable, "strict: the server has gone")
            );
        }
    }
    (all - failed, failed)
}

#[tokio::test]
async fn a_failure_reaches_all_who_asked_and_none_who_ask_later() {
    let (driver, gate) = gated();
    let readers = readers(&driver).await;
    gate.failures.store(usize::MAX, SeqCst);
    gate.open.add_permits(READERS);
    assert_eq!(outcomes(readers).await, (0, READERS));
    gate.failures.store(0, SeqCst);
    gate.asked.lock().unwrap().clear();
    // The next one goes out on its own again.
    assert!(driver.get("k0").await.unwrap().is_some());
    assert_eq!(*gate.asked.lock().unwrap(), [["k0"]]);
}

#[tokio::test]
async fn one_lost_connection_is_not_the_failure_of_many_calls() {
    let (driver, gate) = gated();
    let readers = readers(&driver).await;
    // Those on their own fail by themselves; one more statement fails, that of many.
    gate.failures.store(ALONE + 1, SeqCst);
    gate.open.add_permits(READERS);
    assert_eq!(outcomes(readers).await, (READERS - ALONE, ALONE));
}

#[tokio::test(start_paused = true)]
async fn statements_of_readers_that_gave_up_end_and_hold_up_nobody() {
    let (driver, gate) = gated();
    let given_up = readers(&driver).await;
    for reader in given_up {
        reader.abort();
        assert!(reader.await.unwrap_err().is_cancelled());
    }
    gate.asked.lock().unwrap().clear();
    let readers = readers(&driver).await;
    // The database still answers nobody.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(gate.asked.lock().unwrap().len(), AT_ONCE, "statements under way");
    gate.open.add_permits(READERS);
    for (at, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap().unwrap().is_some(), at.is_multiple_of(2), "k{at}");
    }
    assert_eq!(gate.asked.lock().unwrap().iter().map(Vec::len).sum::<usize>(), READERS);
}
