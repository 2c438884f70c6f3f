//! Tables: made once, found, refused, and used by index.

use std::time::Duration;

use bentocache_driver::{ErrorKind, L2Driver, Write};
use bentocache_sqlx::{mysql, open_sqlite, postgres, sqlite};
use bytes::Bytes;

use crate::common::{self, becomes, mysql_pool, pg_pool, table};

/// As many nodes as start at the same time, each with a pool of its own.
const NODES: usize = 12;

/// All of them connect at once, and then share what they write.
async fn start_together<D: L2Driver>(open: impl Fn() -> D) {
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(NODES));
    let nodes: Vec<_> = (0..NODES)
        .map(|at| {
            let (node, start) = (open(), start.clone());
            tokio::spawn(async move {
                start.wait().await;
                node.connect().await.unwrap();
                node.set(&format!("k{at}"), "1".into(), None).await.unwrap();
                node
            })
        })
        .collect();
    for node in nodes {
        let node = node.await.unwrap();
        let keys: Vec<String> = (0..NODES).map(|at| format!("k{at}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        becomes("all nodes to have written", async || {
            node.get_many(&keys).await.unwrap().iter().all(Option::is_some)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_start_together_on_postgres() {
    for _ in 0..5 {
        let table = table();
        start_together(|| postgres(pg_pool(&common::postgres().url())).table_name(&table)).await;
        let indexes = format!("select count(*) from pg_indexes where tablename = '{table}'");
        assert_eq!(common::postgres().sql(&indexes), "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_start_together_on_mariadb() {
    for _ in 0..5 {
        let table = table();
        start_together(|| mysql(mysql_pool(&common::mariadb().url())).table_name(&table)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_start_together_on_sqlite() {
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        // The file and its mode are made at once, too.
        start_together(|| open_sqlite(directory.path().join("cache.db"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_calls_make_the_table_without_connect() {
    let table = table();
    let driver = postgres(pg_pool(&common::postgres().url())).table_name(&table);
    let calls = (0..20).map(|at| format!("k{at}")).collect::<Vec<_>>();
    let calls = calls.iter().map(|key| driver.set(key, "1".into(), None));
    let calls: Vec<_> = calls.map(|call| async { call.await.unwrap() }).collect();
    futures_join(calls).await;
    assert_eq!(common::postgres().sql(&format!("select count(*) from {table}")), "20");
}

async fn futures_join<F: Future<Output = ()>>(calls: Vec<F>) {
    let mut calls: Vec<_> = calls.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
        if calls.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// The build fails, and later calls with that kind.
async fn is_refused<D: L2Driver>(driver: D, later: ErrorKind, says: &str) {
    let built = driver.connect().await.unwrap_err();
    let called = driver.get("a").await.unwrap_err();
    for (error, kind) in [(built, ErrorKind::Config), (called, later)] {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// A setting of the driver cannot be used.
async fn is_config<D: L2Driver>(driver: D, says: &str) {
    is_refused(driver, ErrorKind::Config, says).await;
}

/// The table must be repaired first.
async fn is_denied<D: L2Driver>(driver: D, says: &str) {
    is_refused(driver, ErrorKind::Denied, says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_not_made_when_that_is_off() {
    let directory = tempfile::tempdir().unwrap();
    let (pg, my) = (common::postgres(), common::mariadb());
    let says = "auto_create_table";
    is_denied(postgres(pg_pool(&pg.url())).table_name(table()).auto_create_table(false), says)
        .await;
    is_denied(mysql(mysql_pool(&my.url())).table_name(table()).auto_create_table(false), says)
        .await;
    is_denied(open_sqlite(directory.path().join("a.db")).auto_create_table(false), says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_sql_are_refused() {
    let pool = pg_pool(&common::postgres().url());
    for name in ["a; drop table users", "a\"b", "", "1", "a.b.c"] {
        is_config(postgres(pool.clone()).table_name(name), "letters, digits and underscores").await;
    }
    // A word of the language is a name like any other.
    let directory = tempfile::tempdir().unwrap();
    for name in ["select", "Table", "user"] {
        let drivers = (
            postgres(pool.clone()).table_name(name),
            mysql(mysql_pool(&common::mariadb().url())).table_name(name),
            open_sqlite(directory.path().join("a.db")).table_name(name),
        );
        drivers.0.set("a", "1".into(), None).await.unwrap();
        drivers.1.set("a", "1".into(), None).await.unwrap();
        drivers.2.set("a", "1".into(), None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_others_are_refused_and_left_alone() {
    let server = common::postgres();
    let users = table();
    server.sql(&format!("create table {users} (id int, name text)"));
    server.sql(&format!("insert into {users} values (1, 'Ada')"));
    let pool = pg_pool(&server.url());
    is_denied(postgres(pool).table_name(&users), "no column `key`").await;
    assert_eq!(server.sql(&format!("select * from {users}")), "1|Ada");
    let server = common::mariadb();
    server
        .sql(&format!("create table test.{users} (`key` varchar(9), value text, expires_at int)"));
    is_denied(mysql(mysql_pool(&server.url())).table_name(&users), "column `key`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_kept_apart() {
    let server = common::postgres();
    let (one, two) = (table(), table());
    server.sql(&format!("create schema {one}; create schema {two}"));
    let pool = pg_pool(&server.url());
    let open = |schema: &str| postgres(pool.clone()).table_name(format!("{schema}.cache"));
    let (one, two) = (open(&one), open(&two));
    one.set("a", "1".into(), None).await.unwrap();
    two.set("a", "2".into(), None).await.unwrap();
    two.clear("").await.unwrap();
    assert_eq!(one.get("a").await.unwrap(), Some("1".into()));
    let server = common::mariadb();
    server.sql("create database if not exists other");
    let other = mysql(mysql_pool(&server.url())).table_name("other.cache");
    other.set("a", "1".into(), None).await.unwrap();
    assert_eq!(server.sql("select value from other.cache where `key` = 'a'"), "1");
}

/// More keys than a statement has parameters.
async fn takes_many<D: L2Driver>(driver: D) {
    let keys: Vec<String> = (0..70_000).map(|at| format!("k{at}")).collect();
    let write = |key| Write { key, value: Bytes::from_static(b"1"), ttl: None };
    let writes: Vec<Write<'_>> = keys.iter().take(25_000).map(|key| write(key)).collect();
    driver.set_many(&writes).await.unwrap();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = driver.get_many(&keys).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 25_000);
    assert_eq!(driver.delete(&keys).await.unwrap(), 25_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_split_at_the_limits_of_statements() {
    let directory = tempfile::tempdir().unwrap();
    takes_many(postgres(pg_pool(&common::postgres().url())).table_name(table())).await;
    takes_many(mysql(mysql_pool(&common::mariadb().url())).table_name(table())).await;
    takes_many(open_sqlite(directory.path().join("cache.db"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_and_get_use_the_index_of_postgres() {
    let (server, table) = (common::postgres(), table());
    let driver = postgres(pg_pool(&server.url())).table_name(&table);
    driver.connect().await.unwrap();
    server.sql(&format!(
        "insert into {table} select 'k' || n, 'v', null from generate_series(1, 30000) n"
    ));
    server.sql(&format!("analyze {table}"));
    let scans = |what: &str| -> u64 {
        let sql = format!("select {what} from pg_stat_user_tables where relname = '{table}'");
        server.sql(&sql).parse().unwrap()
    };
    let by_index = scans("idx_scan");
    driver.clear("k1234").await.unwrap();
    driver.get_many(&["k1", "k2", "k3"]).await.unwrap();
    becomes("the statistics", async || scans("idx_scan") >= by_index + 2).await;
    assert_eq!(scans("seq_tup_read"), 0, "rows read by going through the table");
    assert_eq!(server.sql(&format!("select count(*) from {table}")), "29989");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_keys_are_named() {
    let (pg, my) = (common::postgres(), common::mariadb());
    let at_limit = "é".repeat(1_024);
    let over = format!("{at_limit}x");
    let drivers = (
        postgres(pg_pool(&pg.url())).table_name(table()),
        mysql(mysql_pool(&my.url())).table_name(table()),
    );
    // What compresses badly is the longest in an index.
    let noise: String = (0..2_048_u32)
        .map(|at| char::from(b'!' + (at.wrapping_mul(2_654_435_761) >> 24) as u8 % 90))
        .collect();
    for key in [&at_limit, &noise] {
        drivers.0.set(key, "1".into(), None).await.unwrap();
        drivers.1.set(key, "1".into(), None).await.unwrap();
        assert_eq!(drivers.0.get(key).await.unwrap(), Some("1".into()));
        assert_eq!(drivers.1.get(key).await.unwrap(), Some("1".into()));
    }
    let errors = [
        drivers.0.set(&over, "1".into(), None).await.unwrap_err(),
        drivers.1.set(&over, "1".into(), None).await.unwrap_err(),
        drivers.0.insert(&over, "1".into(), None).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains("2048 bytes"), "{error}");
    }
    // Nothing is under a key that cannot be there.
    assert_eq!(drivers.0.get_many(&[&over, &at_limit]).await.unwrap(), [None, Some("1".into())]);
    assert_eq!(drivers.1.delete(&[&over, &at_limit]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_in_memory_works_too() {
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect_lazy("sqlite::memory:").unwrap();
    let driver = sqlite(pool.clone());
    driver.set("a", "1".into(), None).await.unwrap();
    assert_eq!(driver.get("a").await.unwrap(), Some("1".into()));
    driver.disconnect().await.unwrap();
    assert_eq!(driver.get("a").await.unwrap_err().kind(), ErrorKind::Closed);
    // The application's own pool stays open.
    assert!(!pool.is_closed());
}

/// What has expired but is still in the table.
async fn expired_rows_are_in_nobodys_way<D: L2Driver>(driver: D, rows: impl AsyncFn() -> i64) {
    let expire = async |key: &str| {
        driver.set(key, "old".into(), Some(Duration::from_millis(1))).await.unwrap();
        becomes("the end", async || driver.get(key).await.unwrap().is_none()).await;
    };
    expire("a").await;
    assert_eq!(rows().await, 1);
    assert!(driver.insert("a", "new".into(), None).await.unwrap(), "insert over an expired row");
    assert_eq!(driver.get("a").await.unwrap(), Some("new".into()));
    expire("b").await;
    // Nobody with a slower clock may see it after that.
    assert_eq!(driver.delete(&["a", "b"]).await.unwrap(), 1);
    assert_eq!(rows().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_rows_are_in_nobodys_way_on_any_database() {
    let (pg, my, table) = (common::postgres(), common::mariadb(), table());
    let driver = postgres(pg_pool(&pg.url())).table_name(&table);
    let count = format!("select count(*) from {table}");
    expired_rows_are_in_nobodys_way(driver, async || pg.sql(&count).parse().unwrap()).await;
    let driver = mysql(mysql_pool(&my.url())).table_name(&table);
    let count = format!("select count(*) from test.{table}");
    expired_rows_are_in_nobodys_way(driver, async || my.sql(&count).parse().unwrap()).await;
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect_lazy("sqlite::memory:").unwrap();
    expired_rows_are_in_nobodys_way(sqlite(pool.clone()), async || {
        sqlx::query_scalar("select count(*) from bentocache").fetch_one(&pool).await.unwrap()
    })
    .await;
}
