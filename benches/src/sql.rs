//! What the cache costs in front of a database: gets against the bare library with a prepared
//! statement that asks the same, over the same pool, on the same table.

use std::time::{SystemTime, UNIX_EPOCH};

use bentocache::sqlx::{mysql, open_sqlite, postgres};
use bentocache::{BentoCache, Store};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use testservers::{MariaDbServer, PostgresServer};

use crate::Result;
use crate::throughput::{KEYS, compare};

/// Calls of one measurement.
const CALLS: usize = 10_000;
const CONNECTIONS: u32 = 8;
const POSTGRES: &str = "select \"value\" from bentocache where \"key\" = $1 \
                        and (\"expires_at\" is null or \"expires_at\" > $2)";
const OTHERS: &str = "select `value` from bentocache where `key` = ? \
                      and (`expires_at` is null or `expires_at` > ?)";

/// The bare library's answer to one key, as a macro for what the three pools have in common.
macro_rules! bare {
    ($pool:expr, $sql:expr) => {{
        let pool = $pool.clone();
        move |key: String| {
            let pool = pool.clone();
            async move {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let query = sqlx::query_scalar::<_, Vec<u8>>($sql)
                    .bind(format!("bentocache:{key}"))
                    .bind(now.as_millis() as i64);
                let found = query.fetch_optional(&pool).await;
                assert!(found.is_ok_and(|value| value.is_some()), "the bare library found nothing");
            }
        }
    }};
}

pub(crate) async fn run() -> Result<()> {
    let server = PostgresServer::start();
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&server.url()).await?;
    let store = Store::new().l2(postgres(pool.clone()));
    gets("PostgreSQL", store, bare!(pool, POSTGRES)).await?;

    let server = MariaDbServer::start();
    let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS).connect(&server.url()).await?;
    let store = Store::new().l2(mysql(pool.clone()));
    gets("MariaDB", store, bare!(pool, OTHERS)).await?;

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("cache.db");
    let store = Store::new().l2(open_sqlite(&file));
    // As many connections as `open_sqlite` has.
    let options = SqliteConnectOptions::new().filename(&file);
    let pool = SqlitePoolOptions::new().max_connections(4).connect_lazy_with(options);
    gets("SQLite", store, bare!(pool, OTHERS)).await
}

async fn gets<B>(
    name: &str,
    store: Store,
    bare: impl Fn(String) -> B + Clone + Send + 'static,
) -> Result<()>
where
    B: Future<Output = ()> + Send,
{
    let cache = BentoCache::builder().store("bench", store).build().await?;
    let value = "x".repeat(100);
    let all = (0..KEYS).map(|i| (format!("k{i}"), value.clone()));
    cache.set_many(all).await?;
    for tasks in [1, 64, 512] {
        let cache = cache.clone();
        let get = move |key: String| {
            let cache = cache.clone();
            async move {
                let found = cache.get::<String>(key).suppress_l2_errors(false).await;
                assert!(matches!(found, Ok(Some(_))), "the cache found nothing: {found:?}");
            }
        };
        compare(&format!("{name}, get, {tasks} tasks"), tasks, CALLS, get, bare.clone()).await;
    }
    Ok(())
}
