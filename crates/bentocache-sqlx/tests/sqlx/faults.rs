//! Servers that die, pools that are empty, writers in each other's way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::{ErrorKind, L2Driver, Link, Write};
use bentocache_sqlx::{mysql, postgres};
use bytes::Bytes;
use sqlx::postgres::PgPoolOptions;
use testservers::{FaultProxy, MariaDbServer, PostgresServer};

use crate::common::{self, Named, becomes, in_time, mysql_pool, pg_pool, table};

const TTL: Option<Duration> = Some(Duration::from_secs(600));

/// Reads and writes from several tasks while the server is killed and comes back.
async fn outlasts_a_restart<D: L2Driver>(driver: D, kill: impl Fn(), restart: impl Fn()) {
    let driver = Arc::new(driver);
    driver.set("before", "1".into(), None).await.unwrap();
    let (stop, done, failed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let (driver, stop) = (driver.clone(), stop.clone());
            let (done, failed) = (done.clone(), failed.clone());
            tokio::spawn(async move {
                let key = format!("k{task}");
                while !stop.load(Relaxed) {
                    let value = Bytes::from(vec![b'0' + task; 2_000]);
                    let call = async {
                        driver.set(&key, value.clone(), TTL).await?;
                        driver.get(&key).await
                    };
                    // As the engine does.
                    match tokio::time::timeout(Duration::from_secs(1), call).await {
                        Ok(Ok(found)) => {
                            assert_eq!(found, Some(value), "a value of another");
                            done.fetch_add(1, Relaxed);
                        }
                        Ok(Err(error)) => {
                            assert!(error.is_transient(), "{error}");
                            failed.fetch_add(1, Relaxed);
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                        Err(_) => drop(failed.fetch_add(1, Relaxed)),
                    }
                }
            })
        })
        .collect();
    for _ in 0..2 {
        let before = done.load(Relaxed);
        becomes("traffic", async || done.load(Relaxed) > before + 20).await;
        let before = failed.load(Relaxed);
        kill();
        becomes("failures", async || failed.load(Relaxed) > before).await;
        restart();
    }
    let before = done.load(Relaxed);
    becomes("traffic again", async || done.load(Relaxed) > before + 50).await;
    stop.store(true, Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(driver.get("before").await.unwrap(), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restarts_in_mid_traffic() {
    let server = PostgresServer::start();
    let driver = postgres(pg_pool(&server.url()));
    outlasts_a_restart(driver, || server.kill(), || server.restart()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_restarts_in_mid_traffic() {
    let server = MariaDbServer::start();
    let driver = mysql(mysql_pool(&server.url()));
    outlasts_a_restart(driver, || server.kill(), || server.restart()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_come_later() {
    let server = PostgresServer::start();
    server.kill();
    let options = PgPoolOptions::new().acquire_timeout(Duration::from_millis(300));
    let url = server.url().replace("postgres@", "postgres:hunter2@");
    let driver = postgres(options.connect_lazy(&url).unwrap());
    for error in [driver.connect().await.unwrap_err(), driver.get("a").await.unwrap_err()] {
        assert!(error.is_transient(), "{error}");
        assert!(!format!("{error} {error:?} {driver:?}").contains("hunter2"), "{error:?}");
    }
    server.restart();
    in_time(async || driver.set("a", "1".into(), None).await).await;
    assert_eq!(in_time(async || driver.get("a").await).await, Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_connections_are_not_noticed() {
    let named = Named::new();
    let driver = postgres(named.pool.clone()).table_name(table());
    for _ in 0..10 {
        driver.set("a", "1".into(), None).await.unwrap();
        named.kill("%");
        assert_eq!(driver.get("a").await.unwrap(), Some("1".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_blocks_nobody_for_good() {
    let server = common::postgres();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let options =
        PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_millis(500));
    let pool = options.connect_lazy(&server.url_by(proxy.addr())).unwrap();
    let driver = postgres(pool).table_name(table());
    driver.set("a", "1".into(), None).await.unwrap();
    proxy.freeze();
    for _ in 0..5 {
        // The engine waits no longer, and drops the call.
        let call = tokio::time::timeout(Duration::from_millis(200), driver.get("a")).await;
        assert!(call.is_err() || call.is_ok_and(|answer| answer.is_err()));
    }
    proxy.pass().await.unwrap();
    assert_eq!(in_time(async || driver.get("a").await).await, Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_pool_is_an_error_that_says_so() {
    let table = table();
    let options =
        PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(200));
    let pool = options.connect_lazy(&common::postgres().url()).unwrap();
    let driver = postgres(pool.clone()).table_name(table);
    driver.set("a", "1".into(), None).await.unwrap();
    let held = pool.acquire().await.unwrap();
    let error = driver.get("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("let the pool have more connections"), "{error}");
    drop(held);
    assert_eq!(in_time(async || driver.get("a").await).await, Some("1".into()));
    pool.close().await;
    assert_eq!(driver.get("a").await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_no_part_of_the_applications_transaction() {
    let table = table();
    let pool = pg_pool(&common::postgres().url());
    let driver = postgres(pool.clone()).table_name(&table);
    driver.connect().await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("create temporary table orders (id int)").execute(&mut *transaction).await.unwrap();
    driver.set("a", "1".into(), TTL).await.unwrap();
    let count = sqlx::AssertSqlSafe(format!("select 1 from {table} where key = 'a'"));
    let seen = sqlx::query(count).fetch_all(&mut *transaction).await.unwrap();
    assert_eq!(seen.len(), 1, "a write is seen at once, inside of the transaction too");
    transaction.rollback().await.unwrap();
    assert_eq!(driver.get("a").await.unwrap(), Some("1".into()), "no rollback undoes it");
}

/// Batches in all orders at once, with clears, prunes and deletes in between.
async fn get_in_each_others_way<D: L2Driver>(open: impl Fn() -> D) {
    let nodes: Vec<_> = (0..6).map(|_| Arc::new(open())).collect();
    nodes[0].connect().await.unwrap();
    let keys: Arc<Vec<String>> = Arc::new((0..60).map(|at| format!("k{at}")).collect());
    let tasks: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(at, node)| {
            let (node, keys) = (node.clone(), keys.clone());
            tokio::spawn(async move {
                for round in 0..25_usize {
                    let write = |turn: usize| Write {
                        key: &keys[(turn * 7 + at * 13 + round) % keys.len()],
                        value: Bytes::from(vec![b'0' + at as u8; 300]),
                        ttl: TTL,
                    };
                    let writes: Vec<Write<'_>> = (0..keys.len()).map(write).collect();
                    node.set_many(&writes).await.unwrap();
                    let some: Vec<&str> =
                        keys.iter().skip(round).step_by(3).map(String::as_str).collect();
                    match (at + round) % 4 {
                        0 => drop(node.delete(&some).await.unwrap()),
                        1 => node.clear("k1").await.unwrap(),
                        2 => drop(node.prune().await.unwrap()),
                        _ => drop(node.insert("k5", "new".into(), TTL).await.unwrap()),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let found = nodes[0].get_many(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for value in found.unwrap().into_iter().flatten().filter(|value| *value != "new") {
        assert!(value.len() == 300 && value.iter().all(|byte| *byte == value[0]), "mixed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_keys_do_not_fail() {
    let name = table();
    get_in_each_others_way(|| postgres(pg_pool(&common::postgres().url())).table_name(&name)).await;
    get_in_each_others_way(|| mysql(mysql_pool(&common::mariadb().url())).table_name(&name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_beyond_the_packet_of_mysql_is_refused() {
    let server = MariaDbServer::start_with(&["--max-allowed-packet=2M"]);
    let driver = mysql(mysql_pool(&server.url()));
    driver.connect().await.unwrap();
    let limit = driver.capabilities().max_value.unwrap();
    assert_eq!(limit, (1 << 20) - (32 << 10));
    let [one, two] = [Bytes::from(vec![0xff; limit]), Bytes::from(vec![0xfe; limit])];
    driver.set("a", one.clone(), None).await.unwrap();
    assert!(driver.update("a", &one, two.clone(), None).await.unwrap());
    assert_eq!(driver.get("a").await.unwrap(), Some(two.clone()));
    assert_eq!(driver.pull("a").await.unwrap(), Some(two));
    let over = Bytes::from(vec![0; limit + 1]);
    let error = driver.set("a", over, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
    // Batches fit into packets.
    let keys: Vec<String> = (0..12).map(|at| format!("k{at}")).collect();
    let write = |key| Write { key, value: Bytes::from(vec![1; 400_000]), ttl: None };
    let writes: Vec<Write<'_>> = keys.iter().map(|key| write(key)).collect();
    driver.set_many(&writes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_in_the_background_ends_with_the_driver() {
    let (server, table) = (common::postgres(), table());
    let pool = pg_pool(&server.url());
    let open = || postgres(pool.clone()).table_name(&table);
    let other = open();
    let dead = async || {
        for at in 0..20 {
            let ttl = Some(Duration::from_millis(1));
            other.set(&format!("dead{at}"), "1".into(), ttl).await.unwrap();
        }
    };
    let rows = || server.sql(&format!("select count(*) from {table}"));
    other.set("stays", "1".into(), TTL).await.unwrap();
    let driver = open().prune_interval(Duration::from_millis(50));
    driver.connect().await.unwrap();
    dead().await;
    becomes("the prune", async || rows() == "1").await;
    driver.disconnect().await.unwrap();
    dead().await;
    let dropped = open().prune_interval(Duration::from_millis(50));
    dropped.connect().await.unwrap();
    becomes("the prune of another", async || rows() == "1").await;
    drop(dropped);
    dead().await;
    // Many intervals.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rows(), "21");
    let zero = open().prune_interval(Duration::ZERO);
    assert_eq!(zero.connect().await.unwrap_err().kind(), ErrorKind::Config);
}

/// The reports of a driver whose server breaks and is back.
async fn reports_when_it_works_again<D: L2Driver>(
    driver: D,
    break_it: impl AsyncFn(),
    mend_it: impl AsyncFn(),
) {
    driver.set("a", "1".into(), TTL).await.unwrap();
    let mut link = driver.link().expect("reports");
    for _ in 0..2 {
        break_it().await;
        // As the engine does, which gives up.
        let call = driver.set("a", "2".into(), TTL);
        let call = tokio::time::timeout(Duration::from_millis(500), call).await;
        assert!(!matches!(call, Ok(Ok(()))), "it is broken");
        assert_eq!(common::next(&mut link).await, Link::Lost);
        mend_it().await;
        assert_eq!(common::next(&mut link).await, Link::Restored);
        driver.set("a", "3".into(), TTL).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_reports_when_its_server_works_again() {
    let server = PostgresServer::start();
    let options = PgPoolOptions::new().acquire_timeout(Duration::from_secs(1));
    let open = |url: &str| postgres(options.clone().connect_lazy(url).unwrap());
    let (kill, restart) = (async || server.kill(), async || server.restart());
    reports_when_it_works_again(open(&server.url()), kill, restart).await;
    // A network that swallows everything.
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let (freeze, pass) = (async || proxy.freeze(), async || proxy.pass().await.unwrap());
    reports_when_it_works_again(open(&server.url_by(proxy.addr())), freeze, pass).await;
    // A server that takes no writes.
    let read_only = |is_on: &'static str| {
        server.sql(&format!("alter system set default_transaction_read_only = {is_on}"));
        server.sql("select pg_reload_conf()");
        std::thread::sleep(Duration::from_millis(300));
    };
    let (demote, promote) = (async || read_only("on"), async || read_only("off"));
    reports_when_it_works_again(open(&server.url()), demote, promote).await;
}
