//! Another client holds a lock, and statements of the driver wait for it. Reads go on meanwhile. Soon
//! after a caller has given up, its statement no longer runs on the server, whether or not the lock
//! was released.

use std::time::{Duration, Instant};

use bentocache_driver::{ErrorKind, L2Driver};
use bentocache_sqlx::{mysql, open_sqlite, postgres};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Executor, MySqlPool, PgPool};
use testservers::MariaDbServer;
use tokio::time::timeout;

use crate::common::{self, PATIENCE, becomes, in_time, mariadb, pg_pool, table};

const TTL: Option<Duration> = Some(Duration::from_secs(600));
/// Connections of a pool: writes may hold two of them.
const CONNECTIONS: u32 = 3;

/// A pool whose connections can be told from all others.
fn pg(name: &str) -> PgPool {
    let url = format!("{}?application_name={name}", common::postgres().url());
    let options =
        PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(Duration::from_secs(2));
    options.connect_lazy(&url).unwrap()
}

/// How many statements on that table the server is at work on.
fn pg_running(table: &str) -> u32 {
    let sql = format!(
        "select count(*) from pg_stat_activity \
         where application_name = '{table}' and state = 'active'"
    );
    common::postgres().sql(&sql).parse().unwrap()
}

fn my(connections: u32) -> MySqlPool {
    let options = MySqlPoolOptions::new().max_connections(connections);
    options.acquire_timeout(Duration::from_secs(2)).connect_lazy(&mariadb().url()).unwrap()
}

fn my_running(table: &str) -> u32 {
    let sql = format!(
        "select count(*) from information_schema.processlist \
         where command <> 'Sleep' and info like '%{table}%' and id <> connection_id()"
    );
    mariadb().sql(&sql).parse().unwrap()
}

/// Writes that wait behind a lock, each given up as the engine does, and a read after each.
async fn reads_go_on<D: L2Driver>(driver: &D) {
    for _ in 0..8 {
        let write = timeout(Duration::from_millis(50), driver.set("a", "2".into(), TTL)).await;
        assert!(write.is_err(), "{write:?}");
        let read = timeout(Duration::from_secs(2), driver.get("a")).await;
        assert_eq!(read.expect("a connection is left").unwrap(), Some("1".into()));
    }
}

/// The lock is free again, and no write comes late that somebody has given up.
async fn works_again<D: L2Driver>(driver: &D) {
    assert_eq!(driver.get("a").await.unwrap(), Some("1".into()), "a write came late");
    in_time(async || driver.set("a", "3".into(), TTL).await).await;
    assert_eq!(driver.get("a").await.unwrap(), Some("3".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_has_no_statement_left_that_waits_for_a_table_or_a_row() {
    for lock in ["lock table {} in share mode", "select 1 from {} for update"] {
        let table = table();
        let pool = pg(&table);
        let driver = postgres(pool.clone()).table_name(&table);
        driver.set("a", "1".into(), TTL).await.unwrap();
        let mut other = pg_pool(&common::postgres().url()).begin().await.unwrap();
        other.execute(AssertSqlSafe(lock.replace("{}", &table))).await.unwrap();
        reads_go_on(&driver).await;
        assert!(timeout(Duration::from_millis(50), driver.clear("")).await.is_err());
        assert!(pg_running(&table) >= 2, "nothing waits for: {lock}");
        becomes("the end of what waits", async || pg_running(&table) == 0).await;
        other.rollback().await.unwrap();
        works_again(&driver).await;
        // Nothing of that is set for the application.
        let timeouts =
            "select current_setting('statement_timeout') || current_setting('lock_timeout')";
        for _ in 0..CONNECTIONS {
            let set: String = sqlx::query_scalar(timeouts).fetch_one(&pool).await.unwrap();
            assert_eq!(set, "00");
        }
    }
}

/// A trigger makes it slow, and no lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_clear_that_is_at_work_is_not_cancelled_and_a_delete_is() {
    let table = table();
    let driver = postgres(pg(&table)).table_name(&table);
    for key in ["a", "b"] {
        driver.set(key, "1".into(), TTL).await.unwrap();
    }
    common::postgres().sql(&format!(
        "create function {table}_slow() returns trigger language plpgsql as $$ \
         begin perform pg_sleep(10); return old; end $$; \
         create trigger slow before delete on {table} for each row execute function {table}_slow()"
    ));
    let short = Duration::from_millis(50);
    let start = Instant::now();
    assert!(timeout(short, driver.clear("a")).await.is_err());
    assert!(timeout(short, driver.delete(&["b"])).await.is_err());
    becomes("the end of both", async || pg_running(&table) == 0).await;
    assert!(start.elapsed() >= Duration::from_secs(10), "the clear was cancelled");
    common::postgres().sql(&format!("drop trigger slow on {table}"));
    let left = in_time(async || driver.get_many(&["a", "b"]).await).await;
    assert_eq!(left, [None, Some("1".into())]);
}

/// MariaDB would end it by itself, but later; MySQL would not.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_statement_is_killed_on_mysql_and_an_abandoned_clear_is_not() {
    let server = MariaDbServer::start_with(&["--general-log=1", "--log-output=TABLE"]);
    let options = MySqlPoolOptions::new().max_connections(4);
    let driver = mysql(options.clone().connect_lazy(&server.url()).unwrap());
    driver.set("a", "1".into(), TTL).await.unwrap();
    let other = options.max_connections(1).connect_lazy(&server.url()).unwrap();
    other.execute("lock tables bentocache read").await.unwrap();
    let short = Duration::from_millis(50);
    assert!(timeout(short, driver.clear("")).await.is_err());
    assert!(timeout(short, driver.set("a", "2".into(), TTL)).await.is_err());
    let killed = || {
        let kills = "argument like 'kill query %' and argument not like '%general_log%'";
        server.sql(&format!("select count(*) from mysql.general_log where {kills}"))
    };
    becomes("a kill", async || killed() == "1").await;
    let running = "select count(*) from information_schema.processlist \
                   where command <> 'Sleep' and info like '%delete from%bentocache%' \
                   and id <> connection_id()";
    becomes("the end of the clear", async || server.sql(running) == "0").await;
    assert_eq!(killed(), "1");
    other.execute("unlock tables").await.unwrap();
    works_again(&driver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_has_no_statement_left_that_waits_for_a_table_or_a_row() {
    let lock_table = ["lock tables {} read", "unlock tables"];
    let lock_row = ["begin; select 1 from {} for update", "rollback"];
    for [lock, free] in [lock_table, lock_row] {
        let table = table();
        let pool = my(CONNECTIONS);
        let driver = mysql(pool.clone()).table_name(&table);
        driver.set("a", "1".into(), TTL).await.unwrap();
        let other = my(1);
        other.execute(AssertSqlSafe(lock.replace("{}", &table))).await.unwrap();
        reads_go_on(&driver).await;
        assert!(my_running(&table) >= 2, "nothing waits for: {lock}");
        becomes("the end of what waits", async || my_running(&table) == 0).await;
        // One that waits for the answer gets it; of them all, a clear may take longest.
        let both = async { tokio::join!(driver.set("a", "2".into(), TTL), driver.clear("")) };
        let (set, clear) = timeout(PATIENCE, both).await.expect("the server ends them");
        for (error, code) in [(set, "1969"), (clear, "1205")] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            assert!(error.to_string().contains(code), "{error}");
        }
        other.execute(free).await.unwrap();
        works_again(&driver).await;
        let set = "select concat(@@max_statement_time, ' ', @@innodb_lock_wait_timeout, ' ', \
                   @@lock_wait_timeout)";
        for _ in 0..CONNECTIONS {
            let set: String = sqlx::query_scalar(set).fetch_one(&pool).await.unwrap();
            assert_eq!(set, "0.000000 50 86400");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_has_no_write_left_that_waits_for_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.db");
    let driver = open_sqlite(&path);
    driver.set("a", "1".into(), TTL).await.unwrap();
    let options = SqliteConnectOptions::new().filename(&path);
    let other = SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options);
    other.execute("begin immediate").await.unwrap();
    reads_go_on(&driver).await;
    // Its own calls are repeated for ten seconds: by then all before it have ended.
    let error = driver.delete(&["a"]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    other.execute("rollback").await.unwrap();
    works_again(&driver).await;
}
