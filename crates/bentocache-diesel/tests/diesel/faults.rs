//! Servers that die or say nothing, pools that are empty, calls that are dropped.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bentocache::driver::{DriverError, ErrorKind, L2Driver};
use bentocache::{BentoCache, Memory, Store};
use bentocache_diesel::{mysql, postgres, sqlite};
use bytes::Bytes;
use diesel_async::pooled_connection::bb8;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use testservers::{FaultProxy, MariaDbServer, PostgresServer};
use tokio::time::{sleep, timeout};

use crate::{MARIADB, POSTGRES, manager, mysql_pool, pg_pool, sqlite_pool, table};

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub(crate) async fn becomes(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Reads and writes from several tasks, each of which gives up after a while as the engine does,
/// while the server is killed and comes back.
async fn outlasts_a_restart<D: L2Driver>(driver: D, kill: impl Fn(), restart: impl Fn()) {
    let driver = Arc::new(driver);
    let stop = Arc::new(AtomicBool::new(false));
    let counts: Arc<[AtomicU64; 2]> = Arc::default();
    let count = |at: usize| counts[at].load(Relaxed);
    let tasks: Vec<_> = (0..6_u8)
        .map(|task| {
            let (driver, stop, counts) = (driver.clone(), stop.clone(), counts.clone());
            tokio::spawn(async move {
                let (key, value) = (format!("k{task}"), Bytes::from(vec![b'0' + task; 2_000]));
                while !stop.load(Relaxed) {
                    let call = async {
                        driver.set(&key, value.clone(), None).await?;
                        driver.get(&key).await
                    };
                    if let Ok(Ok(found)) = timeout(Duration::from_secs(1), call).await {
                        assert_eq!(found, Some(value.clone()), "a value of another");
                        counts[0].fetch_add(1, Relaxed);
                    } else {
                        counts[1].fetch_add(1, Relaxed);
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        })
        .collect();
    let before = count(0);
    becomes("traffic", async || count(0) > before + 20).await;
    let before = count(1);
    kill();
    becomes("failures", async || count(1) > before).await;
    restart();
    let before = count(0);
    becomes("traffic again", async || count(0) > before + 50).await;
    stop.store(true, Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_restart_in_mid_traffic() {
    let server = PostgresServer::start();
    let driver = postgres(pg_pool(&server.url()));
    outlasts_a_restart(driver, || server.kill(), || server.restart()).await;
    let server = MariaDbServer::start();
    let driver = mysql(mysql_pool(&server.url()));
    outlasts_a_restart(driver, || server.kill(), || server.restart()).await;
}

/// Calls that are dropped at any point, beside others that look at what they get.
async fn dropped_calls_disturb_nobody<D: L2Driver>(driver: D) {
    let driver = Arc::new(driver);
    for at in 0..20_u8 {
        driver.set(&format!("k{at}"), vec![at; 100 << 10].into(), None).await.unwrap();
    }
    let tasks: Vec<_> = (0..20_u8)
        .map(|at| {
            let driver = driver.clone();
            tokio::spawn(async move {
                let key = format!("k{at}");
                for round in 0..40_u64 {
                    if round % 2 == 0 {
                        // Up to two milliseconds, spread evenly and always the same.
                        let limit = (u64::from(at) * 7_919 + round * 104_729) % 2_000;
                        let limit = Duration::from_micros(limit);
                        let _ = timeout(limit, driver.get(&key)).await;
                    } else {
                        let found = driver.get(&key).await.unwrap().unwrap();
                        assert!(found.iter().all(|byte| *byte == at), "a value of another");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_calls_disturb_nobody_on_any_database() {
    let directory = tempfile::tempdir().unwrap();
    dropped_calls_disturb_nobody(postgres(pg_pool(&POSTGRES.url())).table_name(table())).await;
    dropped_calls_disturb_nobody(mysql(mysql_pool(&MARIADB.url())).table_name(table())).await;
    dropped_calls_disturb_nobody(sqlite(sqlite_pool(&directory.path().join("a.db")))).await;
}

#[tokio::test]
async fn dropped_calls_are_no_panic_on_one_thread() {
    let directory = tempfile::tempdir().unwrap();
    let driver = sqlite(sqlite_pool(&directory.path().join("a.db")));
    driver.set("a", vec![1; 4 << 20].into(), None).await.unwrap();
    for micros in (0..1_000).step_by(100) {
        let _ = timeout(Duration::from_micros(micros), driver.get("a")).await;
    }
    assert_eq!(driver.get("a").await.unwrap().map(|value| value.len()), Some(4 << 20));
}

/// A server that says nothing disturbs nobody once it speaks again.
async fn a_silent_network_is_outlasted<D: L2Driver>(proxy: &FaultProxy, driver: D) {
    driver.set("a", "1".into(), None).await.unwrap();
    proxy.freeze();
    for _ in 0..5 {
        // The engine waits no longer, and drops the call.
        let call = timeout(Duration::from_millis(100), driver.get("a")).await;
        assert!(call.is_err() || call.is_ok_and(|answer| answer.is_err()));
    }
    proxy.pass().await.unwrap();
    becomes("an answer", async || driver.get("a").await.is_ok_and(|a| a == Some("1".into()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_blocks_nobody_for_good() {
    let proxy = FaultProxy::start(POSTGRES.addr()).await.unwrap();
    let driver = postgres(pg_pool(&POSTGRES.url_by(proxy.addr()))).table_name(table());
    a_silent_network_is_outlasted(&proxy, driver).await;
    let proxy = FaultProxy::start(MARIADB.addr()).await.unwrap();
    // Otherwise it would find the server's socket and leave out the proxy.
    let url = format!("{}?prefer_socket=false", MARIADB.url_by(proxy.addr()));
    let driver = mysql(mysql_pool(&url)).table_name(table());
    a_silent_network_is_outlasted(&proxy, driver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_nobody_waits_for_loses_its_connection() {
    let table = table();
    let manager = manager::<AsyncPgConnection>(&POSTGRES.url());
    let pool = Pool::builder(manager).max_size(1).build().unwrap();
    let driver = postgres(pool.clone()).table_name(&table);
    driver.set("a", "1".into(), None).await.unwrap();
    let mut other = AsyncPgConnection::establish(&POSTGRES.url()).await.unwrap();
    let lock = format!("begin; lock table {table} in access exclusive mode");
    other.batch_execute(&lock).await.unwrap();
    let short = Duration::from_millis(100);
    assert!(timeout(short, driver.get("a")).await.is_err());
    assert!(timeout(short, pool.get()).await.is_err(), "it may still have its answer");
    becomes("another connection", async || timeout(short, pool.get()).await.is_ok()).await;
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(driver.get("a").await.unwrap(), Some("1".into()));
}

fn says(error: &DriverError, kind: ErrorKind, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do() {
    let server = PostgresServer::start();
    let url = server.url().replace("postgres@", "postgres:hunter2@");
    let lacking = postgres(pg_pool(&format!("{url}_missing")));
    says(&lacking.connect().await.unwrap_err(), ErrorKind::Config, "no such database");
    let driver = postgres(pg_pool(&url)).auto_create_table(false);
    says(&driver.connect().await.unwrap_err(), ErrorKind::Config, "auto_create_table");
    let driver = postgres(pg_pool(&url));
    driver.connect().await.unwrap();
    driver.set("a", "1".into(), None).await.unwrap();
    server.sql("drop table bentocache");
    assert_eq!(driver.get("a").await.unwrap(), None, "it is created again");
    server.kill();
    // Its processes may live a moment longer.
    becomes("the end of the server", async || {
        driver.get("a").await.unwrap_err().kind() == ErrorKind::Unavailable
    })
    .await;
    says(&driver.get("a").await.unwrap_err(), ErrorKind::Unavailable, "connection");
    let wrong = mysql(mysql_pool("mysql://nobody:hunter2@127.0.0.1:1/test"));
    says(&wrong.connect().await.unwrap_err(), ErrorKind::Unavailable, "connection");
    let missing = mysql(mysql_pool(&format!("{}_missing", MARIADB.url())));
    assert!(missing.connect().await.is_err());
    let busy = Pool::builder(manager::<AsyncPgConnection>(&POSTGRES.url())).max_size(1);
    let busy = busy
        .wait_timeout(Some(Duration::from_millis(200)))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .unwrap();
    let driver = postgres(busy.clone()).table_name(table());
    driver.connect().await.unwrap();
    let held = busy.get().await.unwrap();
    says(&driver.get("a").await.unwrap_err(), ErrorKind::Timeout, "more connections");
    drop(held);
    busy.close();
    says(&driver.get("a").await.unwrap_err(), ErrorKind::Closed, "closed its pool");
    let nowhere = Path::new("/nonexistent/cache.db");
    let pool = diesel::r2d2::Pool::builder()
        .connection_timeout(Duration::from_millis(200))
        .build_unchecked(diesel::r2d2::ConnectionManager::new(nowhere.to_str().unwrap()));
    let error = sqlite(pool).connect().await.unwrap_err();
    says(&error, ErrorKind::Config, "unable to open database file");
}

/// Why a cache cannot be built.
async fn build<D: L2Driver>(driver: D) -> String {
    let built = BentoCache::builder().store("main", Store::new().l2(driver)).build().await;
    built.expect_err("something that an operator has to repair").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_and_rights_that_are_missing_fail_the_build() {
    let nobody = POSTGRES.url().replace("postgres@", "nobody_:hunter2@");
    let bb8 = bb8::Pool::builder().build_unchecked(manager::<AsyncPgConnection>(&nobody));
    let wrong = mysql_pool(&MARIADB.url().replace("root@", "nobody:hunter2@"));
    for (why, advice) in [
        (build(postgres(pg_pool(&nobody))).await, "no such database or user; create it"),
        (build(postgres(bb8)).await, "no such database or user; create it"),
        (build(mysql(wrong)).await, "correct the user and the password"),
    ] {
        assert!(why.contains(advice) && !why.contains("hunter2"), "{why}");
    }
    let (reader, table) = (table(), table());
    postgres(pg_pool(&POSTGRES.url())).table_name(&table).connect().await.unwrap();
    POSTGRES.sql(&format!("create user {reader}; grant select on {table} to {reader}"));
    let url = POSTGRES.url().replace("postgres@", &format!("{reader}@"));
    let why = build(postgres(pg_pool(&url)).table_name(&table)).await;
    assert!(why.contains("write to the table") && why.contains("grant the right"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_shares_the_pool_with_the_application() {
    let pool = pg_pool(&POSTGRES.url());
    let table = table();
    let store = Store::new().l1(Memory::new()).l2(postgres(pool.clone()).table_name(&table));
    let bento = BentoCache::builder().store("main", store).build().await.unwrap();
    let mut connection = pool.get().await.unwrap();
    // A call is no part of the application's transaction.
    connection.batch_execute("begin; create temporary table orders (id int)").await.unwrap();
    bento.set("a", 1).await.unwrap();
    connection.batch_execute("rollback").await.unwrap();
    let stored = POSTGRES.sql(&format!("select convert_from(value, 'UTF8') from {table}"));
    assert!(stored.contains("\"value\":1"), "{stored}");
    bento.disconnect().await.unwrap();
    assert!(!pool.is_closed());
}

/// A runtime with two threads for what blocks, as a small service may have.
#[test]
fn calls_without_a_connection_take_no_thread_that_others_need() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let manager =
        diesel::r2d2::ConnectionManager::new(directory.path().join("cache.db").to_str().unwrap());
    let pool = diesel::r2d2::Pool::builder().max_size(1).build(manager).unwrap();
    let driver = std::sync::Arc::new(sqlite(pool.clone()));
    runtime.block_on(driver.connect()).unwrap();
    let held = pool.get().unwrap();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let driver = driver.clone();
            // The engine gives up after a second.
            runtime.spawn(async move { timeout(Duration::from_secs(1), driver.get("a")).await })
        })
        .collect();
    let start = std::time::Instant::now();
    runtime.block_on(async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        }
        for call in calls {
            assert!(call.await.unwrap().is_err(), "there is no connection");
        }
    });
    drop(held);
    assert_eq!(runtime.block_on(driver.get("a")).unwrap(), None);
    // The end of the runtime waits for threads that block.
    drop(runtime);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}
