//! L2 over Diesel, on servers that the tests start.

#![cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "deadpool",
    feature = "bb8"
))]
#![allow(clippy::unwrap_used)]

mod faults;
mod locks;
mod pooler;
mod suite;

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use diesel::SqliteConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{self, ConnectionManager, CustomizeConnection};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, bb8, deadpool};
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use testservers::{MariaDbServer, PostgresServer};

/// The largest value in the suites: enough for their cases.
const MOST: usize = 65 << 20;
/// Connections of a pool, as a small service would have them.
const CONNECTIONS: u32 = 5;

static POSTGRES: LazyLock<PostgresServer> =
    LazyLock::new(|| testservers::shared("postgres", PostgresServer::start));
static MARIADB: LazyLock<MariaDbServer> = LazyLock::new(|| {
    testservers::shared("mariadb", || MariaDbServer::start_with(&["--max-allowed-packet=256M"]))
});

/// A table that only one test uses.
fn table() -> String {
    bentocache_testkit::unique("die_").replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

fn manager<C: AsyncConnection + 'static>(url: &str) -> AsyncDieselConnectionManager<C> {
    AsyncDieselConnectionManager::new(url)
}

fn pg_pool(url: &str) -> deadpool::Pool<AsyncPgConnection> {
    deadpool::Pool::builder(manager(url)).max_size(CONNECTIONS as usize).build().unwrap()
}

/// Of the other kind, which the suite on MariaDB has.
fn mysql_pool(url: &str) -> bb8::Pool<AsyncMysqlConnection> {
    let wait = Duration::from_secs(10);
    let builder = bb8::Pool::builder().max_size(CONNECTIONS).connection_timeout(wait);
    builder.build_unchecked(manager(url))
}

/// As the page of the crate advises.
#[derive(Debug)]
struct Settings;

impl CustomizeConnection<SqliteConnection, r2d2::Error> for Settings {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), r2d2::Error> {
        let settings = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = wal; \
                        PRAGMA synchronous = normal";
        connection.batch_execute(settings).map_err(r2d2::Error::QueryError)
    }
}

fn sqlite_pool(file: &Path) -> r2d2::Pool<ConnectionManager<SqliteConnection>> {
    let manager = ConnectionManager::new(file.to_str().unwrap());
    let builder = r2d2::Pool::builder().max_size(CONNECTIONS);
    builder.connection_customizer(Box::new(Settings)).build(manager).unwrap()
}
