//! PgBouncer in transaction mode between the cache and PostgreSQL.

use std::sync::Arc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bentocache::driver::{DriverError, ErrorKind, L2Driver};
use bentocache_diesel::{Diesel, PostgresDriver, postgres};
use bentocache_sql::{DatabaseDriver, SqlAdapter};
use bytes::Bytes;
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use testservers::PgBouncer;

use crate::faults::PATIENCE;
use crate::{POSTGRES, pg_pool, table};

const TTL: Option<Duration> = Some(Duration::from_secs(600));

type Driver = PostgresDriver<Pool<AsyncPgConnection>>;

static POOLER: LazyLock<PgBouncer> = LazyLock::new(|| PgBouncer::before(&POSTGRES));

fn through_the_pooler() -> Driver {
    // The pool's own test of a connection is a prepared statement.
    let mut config = ManagerConfig::default();
    config.recycling_method = RecyclingMethod::Fast;
    let manager = AsyncDieselConnectionManager::new_with_config(POOLER.url(), config);
    let pool = Pool::builder(manager).max_size(5).build().unwrap();
    DatabaseDriver::new(SqlAdapter::new(Diesel::new(pool).transaction_pooling()))
}

/// Calls from many tasks of several processes' kind: each driver has a pool of its own.
async fn traffic(drivers: &[Arc<Driver>]) -> Vec<DriverError> {
    let tasks: Vec<_> = (0..12_u8)
        .map(|task| {
            let driver = Arc::clone(&drivers[usize::from(task) % drivers.len()]);
            tokio::spawn(async move {
                // None is the prefix of another: each task clears its own.
                let (key, value) = (format!("k{task:02}"), Bytes::from(vec![task; 500]));
                for _ in 0..20 {
                    driver.set(&key, value.clone(), TTL).await?;
                    assert_eq!(driver.get(&key).await?, Some(value.clone()));
                    assert_eq!(driver.pull(&key).await?, Some(value.clone()));
                    assert_eq!(driver.delete(&[&key]).await?, 0);
                }
                driver.clear(&key).await
            })
        })
        .collect();
    let mut errors = Vec::new();
    for task in tasks {
        errors.extend(task.await.unwrap().err());
    }
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_works_through_a_pooler_in_transaction_mode() {
    let name = table();
    let open = || Arc::new(through_the_pooler().table_name(&name));
    let drivers = [open(), open(), open()];
    drivers[0].connect().await.unwrap();
    for _ in 0..3 {
        let errors = traffic(&drivers).await;
        assert!(errors.is_empty(), "{:?}", errors[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_that_the_pooler_mixes_up_name_it() {
    let name = table();
    through_the_pooler().table_name(&name).connect().await.unwrap();
    let drivers = [Arc::new(postgres(pg_pool(&POOLER.url())).table_name(&name))];
    let start = Instant::now();
    let error = loop {
        if let Some(error) = traffic(&drivers).await.pop() {
            break error;
        }
        assert!(start.elapsed() < PATIENCE, "nothing is mixed up");
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    for words in ["prepared statement", "PgBouncer", "transaction_pooling()"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}
