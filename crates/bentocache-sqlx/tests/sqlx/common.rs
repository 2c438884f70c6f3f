//! Servers that the tests share; tests that break their server start their own.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, Topic};
use futures_core::Stream;
use sqlx::{MySqlPool, mysql::MySqlPoolOptions};
use sqlx::{PgPool, postgres::PgPoolOptions};
use testservers::{MariaDbServer, PostgresServer};

/// The largest value in the suites: enough for their cases, and below the limits of the databases.
pub(crate) const MOST: usize = 65 << 20;
/// Connections of a pool, as a small service would have them.
const CONNECTIONS: u32 = 5;

pub(crate) fn postgres() -> &'static PostgresServer {
    static SERVER: LazyLock<PostgresServer> =
        LazyLock::new(|| testservers::shared("postgres", PostgresServer::start));
    &SERVER
}

pub(crate) fn mariadb() -> &'static MariaDbServer {
    static SERVER: LazyLock<MariaDbServer> = LazyLock::new(|| {
        testservers::shared("mariadb", || MariaDbServer::start_with(&["--max-allowed-packet=256M"]))
    });
    &SERVER
}

pub(crate) fn pg_pool(url: &str) -> PgPool {
    let options = PgPoolOptions::new().max_connections(CONNECTIONS);
    options.connect_lazy(url).expect("a URL")
}

pub(crate) fn mysql_pool(url: &str) -> MySqlPool {
    let options = MySqlPoolOptions::new().max_connections(CONNECTIONS);
    options.connect_lazy(url).expect("a URL")
}

/// A table that only one test uses.
pub(crate) fn table() -> String {
    bentocache_testkit::unique("kit_").replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

/// Connections to the shared server that can be told from those of other tests.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) pool: PgPool,
}

impl Named {
    pub(crate) fn new() -> Self {
        Self::by(postgres().addr())
    }

    /// The same through another address, such as that of a proxy.
    pub(crate) fn by(addr: std::net::SocketAddr) -> Self {
        let name = table();
        let pool = pg_pool(&format!("{}?application_name={name}", postgres().url_by(addr)));
        Self { name, pool }
    }

    /// The number of connections, including those of the pool.
    pub(crate) fn count(&self) -> u32 {
        let name = &self.name;
        let sql =
            format!("select count(*) from pg_stat_activity where application_name = '{name}'");
        postgres().sql(&sql).parse().expect("a number")
    }

    /// Ends the connections that listen, or all.
    pub(crate) fn kill(&self, query: &str) -> String {
        postgres().sql(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where application_name = '{}' and query ilike '{query}'",
            self.name
        ))
    }
}

/// The time limit for everything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    let item = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx));
    let item = tokio::time::timeout(PATIENCE, item).await.expect("nothing comes");
    item.expect("the stream has ended")
}

/// Repeats a call until it succeeds.
pub(crate) async fn in_time<T>(mut call: impl AsyncFnMut() -> Result<T, DriverError>) -> T {
    let start = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < PATIENCE, "still after {PATIENCE:?}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the condition holds.
pub(crate) async fn becomes(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes until one message arrives, and returns what came before.
pub(crate) async fn hears_again<B: BusDriver>(
    bus: &B,
    topic: Topic<'_>,
    stream: &mut BusStream,
) -> Vec<BusEvent> {
    let mut before = Vec::new();
    in_time(async || bus.publish(topic, "again".into()).await).await;
    loop {
        match next(stream).await {
            BusEvent::Message(message) if message == "again" => return before,
            event => before.push(event),
        }
    }
}
