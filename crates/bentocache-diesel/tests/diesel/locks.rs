//! Statements that wait for a lock of somebody else: reads go on, and the server has none of ours left
//! soon after its caller has given up, whether or not the lock is released.

use std::time::Duration;

use bentocache::driver::{DriverError, L2Driver};
use bentocache_diesel::{postgres, sqlite};
use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel_async::pooled_connection::{bb8, deadpool};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use tokio::time::timeout;

use crate::faults::becomes;
use crate::{POSTGRES, manager, sqlite_pool, table};

/// Writes that wait behind a lock, each given up as the engine does, and a read after each.
async fn reads_go_on<D: L2Driver>(driver: &D) {
    for _ in 0..8 {
        let write = timeout(Duration::from_millis(50), driver.set("a", "2".into(), None)).await;
        assert!(write.is_err(), "{write:?}");
        let read = timeout(Duration::from_secs(2), driver.get("a")).await;
        assert_eq!(read.expect("a connection is left").unwrap(), Some("1".into()));
    }
}

/// The lock is free again, and no write comes late that somebody has given up.
async fn works_again<D: L2Driver>(driver: &D) {
    assert_eq!(driver.get("a").await.unwrap(), Some("1".into()), "a write came late");
    driver.set("a", "3".into(), None).await.unwrap();
    assert_eq!(driver.get("a").await.unwrap(), Some("3".into()));
}

/// With two of the connections for writes.
async fn leaves_nothing_behind<D: L2Driver>(table: &str, driver: D) {
    let running = || {
        let sql = format!(
            "select count(*) from pg_stat_activity \
             where application_name = '{table}' and state = 'active'"
        );
        POSTGRES.sql(&sql).parse::<u32>().unwrap()
    };
    driver.set("a", "1".into(), None).await.unwrap();
    for lock in ["lock table {} in share mode", "select 1 from {} for update"] {
        let mut other = AsyncPgConnection::establish(&POSTGRES.url()).await.unwrap();
        let lock = format!("begin; {}", lock.replace("{}", table));
        other.batch_execute(&lock).await.unwrap();
        reads_go_on(&driver).await;
        becomes("two writes that wait", async || running() == 2).await;
        becomes("the end of what waits", async || running() == 0).await;
        // A clear may be at work, so it has a limit on the server, and is not cancelled.
        let clear = timeout(Duration::from_millis(50), driver.clear("")).await;
        assert!(clear.is_err(), "{clear:?}");
        becomes("the end of the clear", async || running() == 0).await;
        other.batch_execute("rollback").await.unwrap();
        works_again(&driver).await;
        driver.set("a", "1".into(), None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_has_no_statement_left_that_waits_for_a_lock() {
    let name = table();
    let url = format!("{}?application_name={name}", POSTGRES.url());
    let pool = deadpool::Pool::builder(manager::<AsyncPgConnection>(&url)).max_size(3);
    let driver = postgres(pool.build().unwrap()).table_name(&name);
    leaves_nothing_behind(&name, driver).await;
    let name = table();
    let url = format!("{}?application_name={name}", POSTGRES.url());
    let pool = bb8::Pool::builder().max_size(3).build_unchecked(manager::<AsyncPgConnection>(&url));
    leaves_nothing_behind(&name, postgres(pool).table_name(&name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_has_no_write_left_that_waits_for_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let driver = sqlite(sqlite_pool(&path));
    driver.set("a", "1".into(), None).await.unwrap();
    let mut other = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("begin immediate").unwrap();
    reads_go_on(&driver).await;
    // Its own calls are repeated for ten seconds: by then all before it have ended.
    let error = driver.delete(&["a"]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    other.batch_execute("rollback").unwrap();
    works_again(&driver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_left_open_on_sqlite_is_rolled_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let manager = diesel::r2d2::ConnectionManager::new(path.to_str().unwrap());
    let pool = diesel::r2d2::Pool::builder().max_size(1).build(manager).unwrap();
    let (driver, other) = (sqlite(pool.clone()), sqlite(sqlite_pool(&path)));
    driver.set("a", "1".into(), None).await.unwrap();
    pool.get().unwrap().batch_execute("begin; update bentocache set value = '2'").unwrap();
    driver.set("b", "1".into(), None).await.unwrap();
    assert_eq!(other.get("a").await.unwrap(), Some("1".into()));
    assert_eq!(other.get("b").await.unwrap(), Some("1".into()));
    assert_eq!(driver.delete(&["b"]).await.unwrap(), 1);
    assert_eq!(other.get("b").await.unwrap(), None);
}

/// What the driver says of a call that was cut.
async fn why<D: L2Driver>(
    driver: &D,
    call: impl Future<Output = Result<(), DriverError>>,
) -> String {
    assert!(timeout(Duration::from_millis(200), call).await.is_err(), "it waits");
    driver.trouble().expect("a reason")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_says_what_it_was_waiting_for() {
    let name = table();
    let pool = deadpool::Pool::builder(manager::<AsyncPgConnection>(&POSTGRES.url())).max_size(2);
    let pool = pool.build().unwrap();
    let driver = postgres(pool.clone()).table_name(&name);
    driver.set("a", "1".into(), None).await.unwrap();
    assert_eq!(driver.trouble(), None);
    let mut other = AsyncPgConnection::establish(&POSTGRES.url()).await.unwrap();
    other.batch_execute(&format!("begin; lock table {name} in share mode")).await.unwrap();
    let reason = why(&driver, driver.set("a", "2".into(), None)).await;
    assert!(reason.contains("has not finished it: look for a lock"), "{reason}");
    // Behind the one that still waits for the lock.
    let reason = why(&driver, driver.set("a", "2".into(), None)).await;
    assert!(reason.contains("writes of the cache hold all connections"), "{reason}");
    other.batch_execute("rollback").await.unwrap();
    driver.set("a", "3".into(), None).await.unwrap();
    assert_eq!(driver.trouble(), None);
    let _held = [pool.get().await.unwrap(), pool.get().await.unwrap()];
    let reason = why(&driver, async { driver.get("a").await.map(drop) }).await;
    assert!(reason.contains("let the pool have more connections"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_on_sqlite_says_what_it_was_waiting_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let driver = sqlite(sqlite_pool(&path));
    driver.set("a", "1".into(), None).await.unwrap();
    let mut other = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("begin immediate").unwrap();
    let reason = why(&driver, driver.set("a", "2".into(), None)).await;
    assert!(reason.contains("has not finished it: look for a lock"), "{reason}");
    other.batch_execute("rollback").unwrap();
    driver.set("a", "3".into(), None).await.unwrap();
    assert_eq!(driver.trouble(), None);
}
