//! Connections that the application gives back with a transaction left open.

use std::time::{Duration, Instant};

use bentocache_driver::L2Driver;
use bentocache_sqlx::{mysql, postgres, sqlite};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::common::{self, PATIENCE, mariadb, mysql_pool, pg_pool, table};

/// Writes until somebody else sees what was written.
async fn is_seen_in_time<D: L2Driver>(driver: &D, other: &D) {
    let start = Instant::now();
    loop {
        // One that was never stored.
        let value = table();
        // In a transaction that has failed, the call may fail too.
        let is_set = driver.set("a", value.clone().into(), None).await.is_ok();
        if is_set && other.get("a").await.unwrap() == Some(value.into()) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "the transaction is open for good");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
    assert_eq!(driver.delete(&["a"]).await.unwrap(), 1);
    assert_eq!(other.get("a").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_such_a_connection_is_closed_within_seconds() {
    let (url, table) = (common::postgres().url(), table());
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy(&url).unwrap();
    let driver = postgres(pool.clone()).table_name(&table);
    let other = postgres(pg_pool(&url)).table_name(&table);
    driver.set("a", "1".into(), None).await.unwrap();
    for left_open in ["begin", "begin; select 1", "begin; create temporary table t (a int)"] {
        let left_open = sqlx::AssertSqlSafe(left_open);
        sqlx::raw_sql(left_open).execute(&pool).await.unwrap();
        is_seen_in_time(&driver, &other).await;
    }
    let fails = sqlx::raw_sql("begin; select 1 / 0").execute(&pool).await;
    assert!(fails.is_err());
    is_seen_in_time(&driver, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_mariadb_such_a_connection_is_closed_within_seconds() {
    let (url, table) = (mariadb().url(), table());
    let pool = MySqlPoolOptions::new().max_connections(1).connect_lazy(&url).unwrap();
    let driver = mysql(pool.clone()).table_name(&table);
    let other = mysql(mysql_pool(&url)).table_name(&table);
    driver.set("a", "1".into(), None).await.unwrap();
    sqlx::raw_sql("begin").execute(&pool).await.unwrap();
    is_seen_in_time(&driver, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_such_a_transaction_is_rolled_back_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("cache.db"))
        .create_if_missing(true);
    let open = || SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    let pool = open();
    let (driver, other) = (sqlite(pool.clone()), sqlite(open()));
    driver.set("a", "1".into(), None).await.unwrap();
    for left_open in ["begin", "begin immediate; update bentocache set value = '2'"] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(left_open)).execute(&pool).await.unwrap();
        driver.set("b", "1".into(), None).await.unwrap();
        assert_eq!(other.get("b").await.unwrap(), Some("1".into()), "after: {left_open}");
        assert_eq!(other.get("a").await.unwrap(), Some("1".into()));
        assert_eq!(driver.delete(&["b"]).await.unwrap(), 1);
        assert_eq!(other.get("b").await.unwrap(), None);
    }
}
