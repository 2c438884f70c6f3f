//! PgBouncer in transaction mode between the cache and PostgreSQL.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, DriverError, ErrorKind, L2Driver, Topic};
use bentocache_sql::{DatabaseDriver, SqlAdapter};
use bentocache_sqlx::{PgNotifyBus, PostgresDriver, Sqlx, postgres};
use bytes::Bytes;
use testservers::PgBouncer;

use crate::common::{self, PATIENCE, pg_pool, table};

const TTL: Option<Duration> = Some(Duration::from_secs(600));

fn pooler() -> &'static PgBouncer {
    static POOLER: LazyLock<PgBouncer> = LazyLock::new(|| PgBouncer::before(common::postgres()));
    &POOLER
}

fn through_the_pooler() -> PostgresDriver {
    let pool = pg_pool(&pooler().url());
    DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool).transaction_pooling()))
}

/// Calls from many tasks, so that every connection of the pooler is used.
async fn traffic(driver: Arc<PostgresDriver>) -> Vec<DriverError> {
    let tasks: Vec<_> = (0..12_u8)
        .map(|task| {
            let driver = Arc::clone(&driver);
            tokio::spawn(async move {
                let (key, value) = (format!("k{task}"), Bytes::from(vec![task; 500]));
                for _ in 0..20 {
                    driver.set(&key, value.clone(), TTL).await?;
                    assert_eq!(driver.get(&key).await?, Some(value.clone()));
                    assert_eq!(driver.pull(&key).await?, Some(value.clone()));
                    assert_eq!(driver.delete(&[&key]).await?, 0);
                }
                Ok(())
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
    let driver = Arc::new(through_the_pooler().table_name(table()));
    driver.connect().await.unwrap();
    let errors = traffic(driver).await;
    assert!(errors.is_empty(), "{}", errors[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_that_the_pooler_mixes_up_name_it() {
    let name = table();
    through_the_pooler().table_name(&name).connect().await.unwrap();
    let driver = Arc::new(postgres(pg_pool(&pooler().url())).table_name(&name));
    let start = Instant::now();
    let error = loop {
        if let Some(error) = traffic(Arc::clone(&driver)).await.pop() {
            break error;
        }
        assert!(start.elapsed() < PATIENCE, "nothing is mixed up");
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    for words in ["prepared statement", "PgBouncer", "transaction_pooling()"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_through_a_pooler_in_transaction_mode_names_it() {
    // One of its own, because the connection that listened is given to others.
    let pooler = PgBouncer::before(common::postgres());
    let bus = PgNotifyBus::new(pg_pool(&pooler.url()));
    let Err(error) = bus.subscribe(Topic::new(&table(), "")).await else {
        panic!("it would hear nothing")
    };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("PgBouncer"), "{error}");
}
