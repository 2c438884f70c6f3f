//! A pool that only reads leaves a server that is no primary any more: its connections stay open, and
//! the address of the pool leads somewhere else.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bentocache_driver::L2Driver;
use bentocache_sqlx::{mysql, postgres};
use testservers::{MariaDbServer, PostgresServer};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{PATIENCE, becomes, mysql_pool, pg_pool, table};

/// An address that leads to one server and then to another. Open connections stay where they are.
struct Address {
    addr: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
}

impl Address {
    async fn of(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let leads_to = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = *leads_to.lock().unwrap();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { addr, target }
    }

    fn leads_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }
}

/// Only reads, none of which may fail, until the value is the new one.
async fn comes_to_read<D: L2Driver>(driver: &D, old: &'static str, new: &'static str) {
    let start = Instant::now();
    loop {
        let found = driver.get("a").await.unwrap().unwrap();
        if found == new {
            break;
        }
        assert_eq!(found, old);
        assert!(start.elapsed() < PATIENCE, "it reads from the old server for good");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        assert_eq!(driver.get("a").await.unwrap(), Some(new.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_on_postgres_is_left_when_the_address_leads_to_the_primary() {
    let primary = PostgresServer::start();
    let standby = PostgresServer::standby_of(&primary);
    let writer = postgres(pg_pool(&primary.url()));
    writer.set("a", "old".into(), None).await.unwrap();
    let address = Address::of(standby.addr()).await;
    let reader = postgres(pg_pool(&standby.url_by(address.addr)));
    becomes("the copy of the row", async || {
        reader.get("a").await.is_ok_and(|found| found == Some("old".into()))
    })
    .await;
    standby.sql("select pg_wal_replay_pause()");
    becomes("the pause", async || {
        standby.sql("select pg_get_wal_replay_pause_state()") == "paused"
    })
    .await;
    writer.set("a", "new".into(), None).await.unwrap();
    for _ in 0..20 {
        assert_eq!(reader.get("a").await.unwrap(), Some("old".into()));
    }
    // The address is moved, and the standby lives on: as after a failover.
    address.leads_to(primary.addr());
    comes_to_read(&reader, "old", "new").await;

    // While there is none but the standby, it is read from, and found out again and again.
    let alone = postgres(pg_pool(&standby.url()));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        assert_eq!(alone.get("a").await.unwrap(), Some("old".into()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_mariadb_that_has_become_read_only_is_left() {
    let (one, two) = (MariaDbServer::start(), MariaDbServer::start());
    for (server, value) in [(&one, "old"), (&two, "new")] {
        let writer = mysql(mysql_pool(&server.url()));
        writer.set("a", value.into(), None).await.unwrap();
    }
    let address = Address::of(one.addr()).await;
    // One connection, which stays where it is for as long as that is the primary.
    let pool = sqlx::mysql::MySqlPoolOptions::new().max_connections(1);
    let reader = mysql(pool.connect_lazy(&one.url_by(address.addr)).unwrap());
    assert_eq!(reader.get("a").await.unwrap(), Some("old".into()));
    address.leads_to(two.addr());
    for _ in 0..20 {
        assert_eq!(reader.get("a").await.unwrap(), Some("old".into()), "it is the primary");
    }
    one.sql("set global read_only = 1");
    comes_to_read(&reader, "old", "new").await;
}

/// Each statement is a transaction of its own, which the server counts.
#[tokio::test(flavor = "multi_thread")]
async fn few_of_the_statements_ask_for_the_role() {
    const GETS: u64 = 2_000;
    let server = PostgresServer::start();
    let driver = postgres(pg_pool(&server.url())).table_name(table());
    driver.set("a", "1".into(), None).await.unwrap();
    let looks = AtomicU64::new(0);
    let count = || {
        looks.fetch_add(1, SeqCst);
        server.sql("select pg_stat_force_next_flush()");
        let sql = "select xact_commit from pg_stat_database where datname = 'postgres'";
        server.sql(sql).parse::<u64>().unwrap()
    };
    let before = count();
    let start = Instant::now();
    for _ in 0..GETS {
        driver.get("a").await.unwrap();
    }
    becomes("the count", async || count() >= before + GETS * 9 / 10).await;
    let done = count() - before;
    // Two of this test for each look, and one for each of five connections every two seconds.
    let most = GETS + 300 + 2 * looks.load(SeqCst) + 5 * start.elapsed().as_secs();
    assert!(done < most, "{done} statements for {GETS} gets");
}
