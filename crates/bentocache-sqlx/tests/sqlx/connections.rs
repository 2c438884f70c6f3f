//! Connections that a statement keeps, plans that are stale, files that are replaced.

use std::time::{Duration, Instant};

use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_sqlx::{mysql, open_sqlite, postgres};
use sqlx::postgres::PgPoolOptions;
use tokio::time::timeout;

use crate::common::{self, PATIENCE, mysql_pool, pg_pool, table};

const TTL: Option<Duration> = Some(Duration::from_secs(600));

#[tokio::test(flavor = "multi_thread")]
async fn writes_behind_a_lock_leave_a_connection_for_reads() {
    let server = common::postgres();
    let table = table();
    let pool = PgPoolOptions::new().max_connections(3).acquire_timeout(Duration::from_secs(2));
    let driver = postgres(pool.connect_lazy(&server.url()).unwrap()).table_name(&table);
    driver.connect().await.unwrap();
    driver.set("a", "1".into(), TTL).await.unwrap();
    // A lock that writes wait for, and reads do not.
    let mut other = pg_pool(&server.url()).begin().await.unwrap();
    let lock = sqlx::AssertSqlSafe(format!("lock table {table} in share mode"));
    sqlx::query(lock).execute(&mut *other).await.unwrap();
    for _ in 0..10 {
        // The engine waits no longer, and drops the call.
        let write = timeout(Duration::from_millis(50), driver.set("a", "2".into(), TTL)).await;
        assert!(write.is_err(), "{write:?}");
        let read = timeout(Duration::from_secs(1), driver.get("a")).await;
        assert_eq!(read.expect("a connection is left").unwrap(), Some("1".into()));
    }
    let error = driver.delete(&["a"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("look for a lock on the table"), "{error}");
    other.rollback().await.unwrap();
    common::in_time(async || driver.set("a", "3".into(), TTL).await).await;
    assert_eq!(driver.get("a").await.unwrap(), Some("3".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_statement_loses_its_connection() {
    let server = common::postgres();
    let table = table();
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(1));
    let pool = options.connect_lazy(&server.url()).unwrap();
    let driver = postgres(pool.clone()).table_name(&table);
    driver.connect().await.unwrap();
    let mut other = pg_pool(&server.url()).begin().await.unwrap();
    let lock = sqlx::AssertSqlSafe(format!("lock table {table} in access exclusive mode"));
    sqlx::query(lock).execute(&mut *other).await.unwrap();
    assert!(timeout(Duration::from_millis(100), driver.get("a")).await.is_err());
    let start = Instant::now();
    // The server still waits for the lock; the pool must not.
    while pool.acquire().await.is_err() {
        assert!(start.elapsed() < PATIENCE, "the connection is gone for good");
    }
    other.rollback().await.unwrap();
    assert_eq!(driver.get("a").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_does_not_fit_the_table_any_more_is_made_anew() {
    let (server, table) = (common::postgres(), table());
    // As the Node library makes it, whose key may be widened by an administrator.
    server.sql(&format!(
        "create table {table} (key varchar(255) primary key, value text, \
         expires_at timestamp with time zone)"
    ));
    let driver = postgres(pg_pool(&server.url())).table_name(&table);
    let reads = async || {
        // Each connection of the pool has plans of its own.
        let reads: Vec<_> = (0..20).map(|_| driver.get_many(&["a", "b"])).collect();
        for read in reads {
            assert_eq!(read.await.unwrap(), [Some("1".into()), None]);
        }
        assert_eq!(driver.get("a").await.unwrap(), Some("1".into()));
    };
    driver.set("a", "1".into(), TTL).await.unwrap();
    for kind in ["varchar(300)", "text", "varchar(400)"] {
        reads().await;
        server.sql(&format!("alter table {table} alter column key type {kind}"));
        reads().await;
        assert_eq!(driver.pull("a").await.unwrap(), Some("1".into()));
        driver.set("a", "1".into(), TTL).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_that_is_replaced_or_deleted_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let driver = open_sqlite(path("cache.db"));
    driver.set("a", "old".into(), TTL).await.unwrap();
    let remove = || {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(path(&format!("cache.db{end}")));
        }
    };
    remove();
    assert_eq!(driver.get("a").await.unwrap(), None, "the old file is gone");
    driver.set("a", "new".into(), TTL).await.unwrap();
    // Somebody else sees the same file.
    let other = open_sqlite(path("cache.db"));
    assert_eq!(other.get("a").await.unwrap(), Some("new".into()));
    other.disconnect().await.unwrap();

    let third = open_sqlite(path("other.db"));
    third.set("a", "other".into(), TTL).await.unwrap();
    third.disconnect().await.unwrap();
    remove();
    std::fs::rename(path("other.db"), path("cache.db")).unwrap();
    assert_eq!(driver.get("a").await.unwrap(), Some("other".into()));
    assert_eq!(driver.delete(&["a"]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_statements_are_an_error_that_says_so() {
    let server = testservers::MariaDbServer::start();
    let driver = mysql(mysql_pool(&server.url()));
    driver.connect().await.unwrap();
    server.sql("set global max_prepared_stmt_count = 0");
    let error = driver.set("b", "1".into(), TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("raise the server's max_prepared_stmt_count"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cuts_a_call_says_that_the_pool_is_exhausted() {
    let server = common::postgres();
    let pool = PgPoolOptions::new().max_connections(2);
    let pool = pool.connect_lazy(&server.url()).unwrap();
    let store = bentocache::Store::new()
        .l2(postgres(pool.clone()).table_name(table()))
        .l2_timeout("200ms", "200ms")
        .suppress_l2_errors(false);
    let builder = bentocache::BentoCache::builder().ttl("10m").store("main", store);
    let cache = builder.build().await.unwrap();
    // By the application.
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let error = cache.get::<u32>("a").await.unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("within 200ms: all 2 connections of the pool are in use"), "{why}");
    drop(held);
    let start = Instant::now();
    while cache.set("a", 1_u32).await.is_err() {
        assert!(start.elapsed() < PATIENCE);
    }
}
