//! A password that is rotated while the application runs: the pool is told, and all goes on.

use bentocache_driver::{BusDriver, BusEvent, ErrorKind, L2Driver, Topic};
use bentocache_sqlx::{PgNotifyBus, mysql, postgres};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use testservers::{MariaDbServer, PostgresServer};

use crate::common::{becomes, hears_again, in_time, next, table};

/// A server that lets the user in with the password only.
fn with_passwords() -> PostgresServer {
    let server = PostgresServer::start();
    let hba = server.sql("show hba_file");
    server.sql(&format!(
        "create role app login password 'one'; grant all on schema public to app; \
         copy (values ('local all postgres trust'), ('host all all 127.0.0.1/32 scram-sha-256')) \
         to '{hba}'; select pg_reload_conf()"
    ));
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_and_the_bus_on_postgres_follow_the_options_of_the_pool() {
    let server = with_passwords();
    let options = |password: &str| {
        let options = PgConnectOptions::new_without_pgpass().username("app").password(password);
        options.host("127.0.0.1").port(server.addr().port()).database("postgres")
    };
    let pool = PgPoolOptions::new().max_connections(3).connect_lazy_with(options("one"));
    let driver = postgres(pool.clone()).table_name(table());
    in_time(async || driver.set("a", "1".into(), None).await).await;
    let bus = PgNotifyBus::new(pool.clone());
    let channel = table();
    let topic = Topic::new(&channel, "");
    let mut stream = bus.subscribe(topic).await.unwrap();
    assert_eq!(hears_again(&bus, topic, &mut stream).await, []);

    server.sql("alter role app password 'two'");
    server.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'");
    assert_eq!(next(&mut stream).await, BusEvent::Lost);
    becomes("the old password to be refused", async || {
        driver.get("a").await.is_err_and(|error| error.kind() == ErrorKind::Denied)
    })
    .await;
    pool.set_connect_options(options("two"));
    assert_eq!(in_time(async || driver.get("a").await).await, Some("1".into()));
    assert_eq!(next(&mut stream).await, BusEvent::Restored);
    assert_eq!(hears_again(&bus, topic, &mut stream).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_on_mariadb_follows_the_options_of_the_pool() {
    let server = MariaDbServer::start();
    server.sql("create user app identified by 'one'; grant all on test.* to app");
    let options = |password: &str| {
        let options = MySqlConnectOptions::new().username("app").password(password);
        options.host("127.0.0.1").port(server.addr().port()).database("test")
    };
    let pool = MySqlPoolOptions::new().max_connections(3).connect_lazy_with(options("one"));
    let driver = mysql(pool.clone());
    driver.set("a", "1".into(), None).await.unwrap();
    server.sql("set password for app = password('two')");
    server.sql("kill user app");
    becomes("the old password to be refused", async || {
        driver.get("a").await.is_err_and(|error| error.kind() == ErrorKind::Denied)
    })
    .await;
    pool.set_connect_options(options("two"));
    assert_eq!(in_time(async || driver.get("a").await).await, Some("1".into()));
}
