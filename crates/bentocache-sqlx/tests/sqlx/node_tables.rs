//! Tables as the Node library makes them through Knex, which this one must use as they are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bentocache::{BentoCache, Store};
use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_sqlx::{mysql, postgres, sqlite};
use sqlx::SqlitePool;

use crate::common::{self, becomes, mysql_pool, pg_pool, table};

const HOUR: Duration = Duration::from_secs(3_600);

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Its keys are in the order of a language, as in most databases.
async fn postgres_table() -> (String, impl L2Driver) {
    let (server, table) = (common::postgres(), table());
    server.sql(&format!(
        "create table {table} (\"key\" varchar(255) collate \"en-x-icu\" primary key, \"value\" text, \
         expires_at timestamptz null)"
    ));
    let driver = postgres(pg_pool(&server.url())).table_name(&table);
    driver.connect().await.unwrap();
    (table, driver)
}

async fn mysql_table() -> (String, impl L2Driver) {
    let (server, table) = (common::mariadb(), table());
    // The collation is the server's, which knows no case.
    server.sql(&format!(
        "create table test.{table} (`key` varchar(255) not null primary key, `value` longtext, \
         expires_at timestamp null) charset utf8mb4 collate utf8mb4_general_ci"
    ));
    let driver = mysql(mysql_pool(&server.url())).table_name(&table);
    driver.connect().await.unwrap();
    (table, driver)
}

async fn sqlite_table(directory: &std::path::Path) -> (SqlitePool, impl L2Driver) {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(directory.join("node.db"))
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let create = "create table bentocache (`key` varchar(255) not null, `value` text, \
                  `expires_at` datetime null, primary key (`key`))";
    sqlx::query(create).execute(&pool).await.unwrap();
    let driver = sqlite(pool.clone());
    driver.connect().await.unwrap();
    (pool, driver)
}

async fn keys(driver: &impl L2Driver, prefix: &str) -> Vec<String> {
    let mut keys = driver.keys(prefix);
    let mut all = Vec::new();
    while let Some(key) = std::future::poll_fn(|cx| keys.as_mut().poll_next(cx)).await {
        all.push(key.unwrap());
    }
    all
}

/// What holds on each of these tables, whatever its types.
async fn works(driver: &impl L2Driver, precision: Duration) {
    let json = r#"{"value":"é 🍱 \u0000","createdAt":1}"#;
    driver.set("app:a", json.into(), Some(HOUR)).await.unwrap();
    driver.set("app:b", json.into(), None).await.unwrap();
    driver.set("app_b", json.into(), Some(Duration::MAX)).await.unwrap();
    let all = driver.get_many(&["app:b", "missing", "app:a", "app_b"]).await.unwrap();
    assert_eq!(all, [Some(json.into()), None, Some(json.into()), Some(json.into())]);
    assert_eq!(keys(driver, "app:").await, ["app:a", "app:b"]);
    assert_eq!(keys(driver, "APP:").await, [""; 0]);
    // In the order of bytes, not of a dictionary.
    driver.set("Z", "1".into(), None).await.unwrap();
    assert_eq!(keys(driver, "").await, ["Z", "app:a", "app:b", "app_b"]);

    assert!(driver.update("app:a", json.as_bytes(), "new".into(), None).await.unwrap());
    assert!(!driver.update("app:a", b"NEW", "newer".into(), None).await.unwrap());
    assert!(!driver.delete_if("app:a", b"new ").await.unwrap());
    assert!(!driver.delete_if("app:a", b"\xff").await.unwrap());
    assert!(!driver.insert("app:a", "newer".into(), None).await.unwrap());
    assert_eq!(driver.pull("app:a").await.unwrap(), Some("new".into()));
    assert_eq!(driver.pull("app:a").await.unwrap(), None);
    assert!(driver.insert("app:a", "newer".into(), Some(HOUR)).await.unwrap());

    driver.clear("app_").await.unwrap();
    assert_eq!(keys(driver, "app").await, ["app:a", "app:b"]);
    driver.clear("APP:").await.unwrap();
    assert_eq!(driver.delete(&["app:a", "app:b", "app_b", "Z"]).await.unwrap(), 3);

    driver.set("short", "1".into(), Some(Duration::from_millis(300))).await.unwrap();
    driver.set("stays", "1".into(), None).await.unwrap();
    assert_eq!(driver.get("short").await.unwrap(), Some("1".into()));
    tokio::time::sleep(Duration::from_millis(310) + precision).await;
    assert_eq!(driver.get("short").await.unwrap(), None);
    assert!(driver.insert("short", "2".into(), Some(Duration::ZERO)).await.unwrap());
    becomes("the end", async || driver.get("short").await.unwrap().is_none()).await;
    assert_eq!(driver.prune().await.unwrap(), 1);
    assert_eq!(driver.get("stays").await.unwrap(), Some("1".into()));
    driver.clear("").await.unwrap();

    let frame = vec![0xb3, 1, 0xff];
    let error = driver.set("bytes", frame.into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("use the JSON codec"), "{error}");
    let error = driver.set(&"é".repeat(256), "1".into(), None).await;
    if let Err(error) = error {
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains("the limit is 255 characters"), "{error}");
    }
    driver.set(&"é".repeat(255), "1".into(), None).await.unwrap();
    assert_eq!(driver.get(&"é".repeat(255)).await.unwrap(), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_node_works_on_postgres() {
    let (table, driver) = postgres_table().await;
    works(&driver, Duration::ZERO).await;
    // As Node writes and reads it.
    let server = common::postgres();
    let row = format!(
        "insert into {table} values ('n', '{{\"value\":1}}', now() + interval '1 hour'), \
         ('dead', '1', now() - interval '1 second'), ('odd', null, null)"
    );
    server.sql(&row);
    let found = driver.get_many(&["n", "dead", "odd"]).await.unwrap();
    assert_eq!(found, [Some(r#"{"value":1}"#.into()), None, Some("".into())]);
    driver.set("r", "1".into(), Some(HOUR)).await.unwrap();
    let left = format!(
        "select value, expires_at between now() + interval '59 minutes' and \
         now() + interval '61 minutes' from {table} where key = 'r'"
    );
    assert_eq!(server.sql(&left), "1|t");
    let error = driver.set("nul", "a\0b".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dates_without_a_zone_are_utc() {
    let (server, table) = (common::postgres(), table());
    server.sql(&format!(
        "create table {table} (key varchar(255) primary key, value text, expires_at timestamp); \
         alter database postgres set timezone to 'Asia/Tokyo'"
    ));
    let driver = postgres(pg_pool(&server.url())).table_name(&table);
    works(&driver, Duration::ZERO).await;
    driver.set("r", "1".into(), Some(HOUR)).await.unwrap();
    let end = format!(
        "select (extract(epoch from expires_at) * 1000)::bigint from {table} where key = 'r'"
    );
    let end: i64 = server.sql(&end).parse().unwrap();
    assert!((end - now() - 3_600_000).abs() < 120_000, "{end}");

    let (server, name) = (common::mariadb(), common::table());
    server.sql(&format!(
        "create table test.{name} (`key` varchar(255) primary key, value text, \
         expires_at datetime(3)) charset utf8mb4"
    ));
    let driver = mysql(mysql_pool(&server.url())).table_name(&name);
    works(&driver, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_node_works_on_mariadb() {
    let (table, driver) = mysql_table().await;
    // Its timestamps have whole seconds.
    works(&driver, Duration::from_secs(1)).await;
    let server = common::mariadb();
    server.sql(&format!(
        "insert into test.{table} values ('n', '{{\"value\":1}}', now() + interval 1 hour), \
         ('dead', '1', now() - interval 2 second)"
    ));
    let found = driver.get_many(&["n", "dead"]).await.unwrap();
    assert_eq!(found, [Some(r#"{"value":1}"#.into()), None]);
    driver.set("r", "1".into(), Some(HOUR)).await.unwrap();
    let left = format!(
        "select value, timestampdiff(minute, now(), expires_at) in (59, 60) \
         from test.{table} where `key` = 'r'"
    );
    assert_eq!(server.sql(&left), "1\t1");
    // Beyond January 2038 there are no timestamps.
    driver.set("far", "1".into(), Some(HOUR * 24 * 365 * 50)).await.unwrap();
    let end = format!("select expires_at is null from test.{table} where `key` = 'far'");
    assert_eq!(server.sql(&end), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_a_collation_takes_for_one_never_mix() {
    let (_, driver) = mysql_table().await;
    for (one, other) in [("key", "KEY"), ("e", "é"), ("a", "a ")] {
        driver.set(one, "1".into(), None).await.unwrap();
        assert_eq!(driver.get(other).await.unwrap(), None, "{other:?}");
        assert_eq!(driver.get_many(&[other, one]).await.unwrap(), [None, Some("1".into())]);
        assert_eq!(driver.delete(&[other]).await.unwrap(), 0);
        assert!(!driver.delete_if(other, b"1").await.unwrap());
        assert_eq!(driver.pull(other).await.unwrap(), None);
        // There is room for one of them only: the other one is gone, and not mistaken for it.
        driver.set(other, "2".into(), None).await.unwrap();
        assert_eq!(driver.get(one).await.unwrap(), None);
        assert_eq!(driver.get(other).await.unwrap(), Some("2".into()));
        assert!(driver.insert(one, "3".into(), None).await.unwrap());
        assert_eq!(driver.get_many(&[other, one]).await.unwrap(), [None, Some("3".into())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_node_works_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let (pool, driver) = sqlite_table(directory.path()).await;
    works(&driver, Duration::ZERO).await;
    let insert = "insert into bentocache values ('n', '{\"value\":1}', ?), ('dead', '1', ?)";
    let insert = sqlx::query(insert).bind(now() + 60_000).bind(now() - 1_000);
    insert.execute(&pool).await.unwrap();
    let found = driver.get_many(&["n", "dead"]).await.unwrap();
    assert_eq!(found, [Some(r#"{"value":1}"#.into()), None]);
    driver.set("r", "1".into(), Some(HOUR)).await.unwrap();
    let sql = "select typeof(value), expires_at from bentocache where key = 'r'";
    let (kind, end): (String, i64) = sqlx::query_as(sql).fetch_one(&pool).await.unwrap();
    assert_eq!(kind, "text");
    assert!((end - now() - 3_600_000).abs() < 120_000, "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_can_write_into_our_table_of_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(directory.path().join("ours.db"))
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let driver = sqlite(pool.clone());
    driver.connect().await.unwrap();
    let insert = "insert into bentocache (key, value, expires_at) values ('n', '1', ?)";
    sqlx::query(insert).bind(now() + 60_000).execute(&pool).await.unwrap();
    // Text in a column for bytes.
    assert_eq!(driver.get("n").await.unwrap(), Some("1".into()));
    assert!(driver.update("n", b"1", "2".into(), None).await.unwrap());
    assert!(driver.delete_if("n", b"2").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cache_works_on_the_table_of_node() {
    let (_, driver) = mysql_table().await;
    let store = Store::new().l2(driver);
    let bento = BentoCache::builder().store("main", store).build().await.unwrap();
    bento.set("a", "é".to_owned()).tags(["t"]).await.unwrap();
    assert_eq!(bento.get::<String>("a").await.unwrap().as_deref(), Some("é"));
    bento.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(bento.get::<String>("a").await.unwrap(), None);
    bento.set("b", 1).ttl("1h").await.unwrap();
    bento.clear().await.unwrap();
    assert!(bento.missing("b").await.unwrap());
}
