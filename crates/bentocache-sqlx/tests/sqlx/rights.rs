//! What an operator has to repair: logins, rights, tables and schemas, read-only servers, no room.

use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, L2Driver};
use bentocache_sqlx::{mysql, open_sqlite, postgres, sqlite};
use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use testservers::MariaDbServer;

use crate::common::{self, mysql_pool, pg_pool, table};

const TTL: Option<Duration> = Some(Duration::from_secs(600));

fn says(error: &DriverError, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
}

/// The URL of a new user without any rights, and its name.
fn pg_user() -> (String, String) {
    let user = table();
    common::postgres().sql(&format!("create role {user} login"));
    (common::postgres().url().replace("postgres@", &format!("{user}@")), user)
}

/// A table that another user has made.
async fn pg_table() -> String {
    let table = table();
    let owner = postgres(pg_pool(&common::postgres().url())).table_name(&table);
    owner.connect().await.unwrap();
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_fails_the_build_on_postgres() {
    let server = common::postgres();
    let (url, user) = pg_user();
    // To create a table.
    let driver = postgres(pg_pool(&url)).table_name(table());
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &["42501", "grant", "create"]);
    says(&driver.get("a").await.unwrap_err(), ErrorKind::Denied, &["42501", "grant"]);
    // To write to one: every right alone is not enough.
    let table = pg_table().await;
    let driver = postgres(pg_pool(&url)).table_name(&table);
    let mut rights = vec!["select", "insert", "update", "delete"];
    for right in &rights {
        server.sql(&format!("grant {right} on {table} to {user}"));
    }
    driver.connect().await.unwrap();
    // A right to read is missing, too, when the columns cannot be compared.
    rights.remove(0);
    for right in rights {
        server.sql(&format!("revoke {right} on {table} from {user}"));
        let words = ["write to the table", &table, "grant the right"];
        says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &words);
        server.sql(&format!("grant {right} on {table} to {user}"));
    }
    driver.connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_and_granted_again_is_denied_in_between() {
    let server = common::postgres();
    let (url, user) = pg_user();
    let table = pg_table().await;
    server.sql(&format!("grant all on {table} to {user}"));
    let driver = postgres(pg_pool(&url)).table_name(&table);
    driver.connect().await.unwrap();
    driver.set("a", "1".into(), TTL).await.unwrap();
    server.sql(&format!("revoke all on {table} from {user}"));
    for error in [
        driver.get("a").await.unwrap_err(),
        driver.set("a", "2".into(), TTL).await.unwrap_err(),
        driver.delete(&["a"]).await.unwrap_err(),
        driver.pull("a").await.unwrap_err(),
        driver.clear("a").await.unwrap_err(),
        driver.prune().await.unwrap_err(),
    ] {
        says(&error, ErrorKind::Denied, &["grant the right"]);
        assert!(error.is_transient(), "{error}");
    }
    server.sql(&format!("grant all on {table} to {user}"));
    assert_eq!(driver.delete(&["a"]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_databases_and_schemas_that_are_missing_fail_the_build() {
    let pg = common::postgres().url();
    let my = common::mariadb().url();
    let nobody = postgres(pg_pool(&pg.replace("postgres@", "nobody_:hunter2@")));
    let nowhere = postgres(pg_pool(&format!("{}/nowhere", pg.trim_end_matches("/postgres"))));
    let no_schema = postgres(pg_pool(&pg)).table_name("nowhere.cache");
    let wrong = mysql(mysql_pool(&my.replace("root@", "nobody:hunter2@")));
    let lost = mysql(mysql_pool(&format!("{}/nowhere", my.trim_end_matches("/test"))));
    let no_database = mysql(mysql_pool(&my)).table_name("nowhere.cache");
    async fn is_denied<D: L2Driver>(driver: D, words: &[&str]) {
        says(&driver.connect().await.unwrap_err(), ErrorKind::Config, words);
        for error in [
            driver.get("a").await.unwrap_err(),
            driver.set("a", "1".into(), TTL).await.unwrap_err(),
            driver.delete(&["a"]).await.unwrap_err(),
        ] {
            says(&error, ErrorKind::Denied, words);
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
    is_denied(nobody, &["28", "correct the user and the password"]).await;
    is_denied(nowhere, &["3D000", "create the database"]).await;
    is_denied(no_schema, &["3F000", "nowhere.cache", "create the schema"]).await;
    is_denied(wrong, &["1045", "correct the user and the password"]).await;
    is_denied(lost, &["1049", "create the database"]).await;
    is_denied(no_database, &["1049", "nowhere.cache", "create the database"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_fails_the_build_and_denies_later_writes() {
    let server = common::postgres();
    let (url, user) = pg_user();
    let table = pg_table().await;
    server.sql(&format!("grant all on {table} to {user}"));
    server.sql(&format!("alter role {user} set default_transaction_read_only = on"));
    let driver = postgres(pg_pool(&url)).table_name(&table);
    let words = ["25006", "use the address of the primary server"];
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &words);
    assert_eq!(driver.get("a").await.unwrap(), None);
    says(&driver.set("a", "1".into(), TTL).await.unwrap_err(), ErrorKind::Denied, &words);

    let server = MariaDbServer::start();
    server.sql("create user app; grant all on test.* to app");
    let driver = mysql(mysql_pool(&server.url().replace("root@", "app@")));
    driver.connect().await.unwrap();
    server.sql("set global read_only = 1");
    let words = ["1290", "use the address of the primary server"];
    says(&driver.set("a", "1".into(), TTL).await.unwrap_err(), ErrorKind::Denied, &words);
    says(&driver.delete(&["a"]).await.unwrap_err(), ErrorKind::Denied, &words);
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &words);
    server.sql("set global read_only = 0");
    driver.set("a", "1".into(), TTL).await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache.db");
    open_sqlite(&file).set("a", "1".into(), TTL).await.unwrap();
    let options = SqliteConnectOptions::new().filename(&file).read_only(true);
    let driver = sqlite(SqlitePoolOptions::new().connect_lazy_with(options));
    let words = ["read and write the file"];
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &words);
    assert_eq!(driver.get("a").await.unwrap(), Some("1".into()));
    says(&driver.set("a", "2".into(), TTL).await.unwrap_err(), ErrorKind::Denied, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_fails_the_build_on_mariadb() {
    let server = MariaDbServer::start();
    let driver = mysql(mysql_pool(&server.url()));
    driver.connect().await.unwrap();
    server.sql("create user app; grant select, insert, update on test.bentocache to app");
    let url = server.url().replace("root@", "app@");
    let driver = mysql(mysql_pool(&url));
    let words = ["1142", "write to the table", "grant the right"];
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &words);
    says(&driver.delete(&["a"]).await.unwrap_err(), ErrorKind::Denied, &["1142"]);
    server.sql("grant delete on test.bentocache to app");
    driver.connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn small_index_pages_fail_the_build_with_advice() {
    let server = MariaDbServer::start_with(&["--innodb-page-size=4k"]);
    let driver = mysql(mysql_pool(&server.url()));
    let words = ["1071", "shorter varbinary"];
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, &words);
    // What the text says works.
    server.sql(
        "use test; create table bentocache (`key` varbinary(512) not null primary key, \
         value longblob not null, expires_at bigint, index (expires_at))",
    );
    driver.connect().await.unwrap();
    driver.set("a", "1".into(), TTL).await.unwrap();
    let long = driver.set(&"k".repeat(513), "1".into(), TTL).await.unwrap_err();
    says(&long, ErrorKind::TooLarge, &["512"]);
}

/// Every operation finds the table gone, and works.
async fn comes_back<D: L2Driver>(driver: D, drop_table: impl Fn()) {
    driver.connect().await.unwrap();
    let value = || Bytes::from("1");
    driver.set("a", value(), TTL).await.unwrap();
    drop_table();
    assert_eq!(driver.get("a").await.unwrap(), None);
    drop_table();
    driver.set("a", value(), TTL).await.unwrap();
    assert_eq!(driver.get("a").await.unwrap(), Some(value()));
    drop_table();
    assert_eq!(driver.delete(&["a"]).await.unwrap(), 0);
    drop_table();
    driver.clear("a").await.unwrap();
    drop_table();
    assert!(driver.insert("a", value(), TTL).await.unwrap());
    drop_table();
    assert_eq!(driver.pull("a").await.unwrap(), None);
    drop_table();
    assert!(!driver.update("a", b"1", value(), TTL).await.unwrap());
    drop_table();
    assert!(!driver.delete_if("a", b"1").await.unwrap());
    drop_table();
    assert_eq!(driver.prune().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_is_created_again() {
    let name = table();
    let (pg, my) = (common::postgres(), common::mariadb());
    let in_postgres = || assert_eq!(pg.sql(&format!("drop table {name}")), "");
    comes_back(postgres(pg_pool(&pg.url())).table_name(&name), in_postgres).await;
    let in_mariadb = || assert_eq!(my.sql(&format!("drop table test.{name}")), "");
    comes_back(mysql(mysql_pool(&my.url())).table_name(&name), in_mariadb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_denied_where_creating_it_is_off() {
    let server = common::postgres();
    let table = pg_table().await;
    let open = || postgres(pg_pool(&server.url())).table_name(&table);
    let driver = open().auto_create_table(false);
    driver.connect().await.unwrap();
    driver.set("a", "1".into(), TTL).await.unwrap();
    server.sql(&format!("drop table {table}"));
    for _ in 0..2 {
        let words = [&*table, "create the table"];
        let error = driver.delete(&["a"]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains(words[0]), "{error}");
    }
    open().connect().await.unwrap();
    driver.set("a", "1".into(), TTL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sqlite_file_is_full_and_can_be_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("cache.db"))
        .create_if_missing(true)
        .pragma("max_page_count", "64");
    let driver = sqlite(SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options));
    let value = Bytes::from(vec![7; 20_000]);
    let mut stored = 0;
    let error = loop {
        match driver.set(&format!("k{stored}"), value.clone(), TTL).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "no limit");
    };
    says(&error, ErrorKind::Full, &["free some space"]);
    assert_eq!(driver.get("k0").await.unwrap(), Some(value.clone()));
    assert_eq!(driver.delete(&["k0"]).await.unwrap(), 1);
    driver.set("k0", value, TTL).await.unwrap();
    driver.clear("").await.unwrap();
    assert_eq!(driver.get("k1").await.unwrap(), None);
}

/// A pool of one connection, whose server turns into a replica: it takes no writes any more, and a new
/// connection would lead to one that does.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_server_takes_no_writes_any_more_is_left() {
    let url = common::postgres().url();
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let driver = postgres(pool.clone()).table_name(table());
    driver.connect().await.unwrap();
    let demote = "set session characteristics as transaction read only";
    sqlx::query(demote).execute(&pool).await.unwrap();
    // Unless it was asked in between, after two seconds, and left already.
    if let Err(error) = driver.set("a", Bytes::from("1"), TTL).await {
        says(&error, ErrorKind::Denied, &["25006", "primary"]);
    }
    driver.set("a", Bytes::from("1"), TTL).await.unwrap();
}
