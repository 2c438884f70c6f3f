//! What every L2 must do, over the connections of SeaORM, and a whole cache.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache::driver::{ErrorKind, L2Driver};
use bentocache::{BentoCache, Memory, Store};
use bentocache_seaorm::{database, notify_bus};
use bentocache_testkit::unique;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use testservers::FaultProxy;
use testservers::{MariaDbServer, PostgresServer};

/// The largest value in the suites: enough for their cases.
const MOST: usize = 65 << 20;

static POSTGRES: LazyLock<PostgresServer> =
    LazyLock::new(|| testservers::shared("postgres", PostgresServer::start));
static MARIADB: LazyLock<MariaDbServer> = LazyLock::new(|| {
    testservers::shared("mariadb", || MariaDbServer::start_with(&["--max-allowed-packet=256M"]))
});

/// A table that only one test uses.
fn table() -> String {
    unique("sea_").replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(5).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

/// A connection by way of a proxy, which waits for its server for a short time.
async fn proxied(
    server: SocketAddr,
    url: impl Fn(SocketAddr) -> String,
) -> (DatabaseConnection, FaultProxy) {
    let proxy = FaultProxy::start(server).await.unwrap();
    let mut options = ConnectOptions::new(url(proxy.addr()));
    options.acquire_timeout(Duration::from_secs(2)).sqlx_logging(false);
    (Database::connect(options).await.unwrap(), proxy)
}

bentocache_testkit::l2_suite! {
    mod on_postgres;
    open = {
        let (table, connection) = (table(), connect(&POSTGRES.url()).await);
        async move || database(&connection).unwrap().table_name(&table).max_value(MOST)
    },
    link = async || {
        let url = |addr| POSTGRES.url_by(addr);
        let (connection, proxy) = proxied(POSTGRES.addr(), url).await;
        (database(&connection).unwrap().table_name(table()), proxy)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_mariadb;
    open = {
        let (table, connection) = (table(), connect(&MARIADB.url()).await);
        async move || database(&connection).unwrap().table_name(&table).max_value(MOST)
    },
    link = async || {
        let url = |addr| MARIADB.url_by(addr);
        let (connection, proxy) = proxied(MARIADB.addr(), url).await;
        (database(&connection).unwrap().table_name(table()), proxy)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_sqlite;
    open = {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cache.db");
        let connection = connect(&format!("sqlite://{}?mode=rwc", file.display())).await;
        async move || {
            let _ = &directory;
            database(&connection).unwrap().max_value(MOST)
        }
    },
    without = [link],
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_share_a_table_and_a_bus_with_the_application() {
    let server = PostgresServer::start();
    let connection = connect(&server.url()).await;
    let node = async || {
        let store = Store::new()
            .l1(Memory::new())
            .l2(database(&connection).unwrap())
            .bus(notify_bus(&connection).unwrap());
        BentoCache::builder().store("main", store).build().await.unwrap()
    };
    let (one, two) = (node().await, node().await);
    one.set("a", 1).await.unwrap();
    assert_eq!(two.get::<u32>("a").await.unwrap(), Some(1));
    // A transaction of the application goes on beside it.
    let transaction = connection.begin().await.unwrap();
    transaction.execute_unprepared("create table orders (id int)").await.unwrap();
    two.set("a", 2).await.unwrap();
    transaction.rollback().await.unwrap();
    let start = Instant::now();
    while one.get::<u32>("a").await.unwrap() != Some(2) {
        assert!(start.elapsed() < Duration::from_secs(60), "the change has not arrived");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    one.disconnect().await.unwrap();
    two.disconnect().await.unwrap();
    connection.ping().await.expect("the connection is still the application's");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_cannot_be_used_are_settings() {
    let error = database(&DatabaseConnection::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let sqlite = connect("sqlite::memory:").await;
    assert_eq!(notify_bus(&sqlite).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(database(&sqlite).unwrap().name(), "sqlite");
}
