//! Drivers that outlive the Tokio runtime that they were first used on.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

use bentocache_sqlx::{PgNotifyBus, mysql, open_sqlite, postgres};
use bentocache_testkit::{bus_outlives_its_runtime, l2_outlives_its_runtime};
use common::{mysql_pool, pg_pool, table};

#[test]
fn a_driver_on_postgres_outlives_its_runtime() {
    let url = common::postgres().url();
    l2_outlives_its_runtime(|| postgres(pg_pool(&url)).table_name(table()));
}

#[test]
fn a_driver_on_mariadb_outlives_its_runtime() {
    let url = common::mariadb().url();
    l2_outlives_its_runtime(|| mysql(mysql_pool(&url)).table_name(table()));
}

#[test]
fn a_driver_on_sqlite_outlives_its_runtime() {
    let directory = tempfile::tempdir().unwrap();
    l2_outlives_its_runtime(|| open_sqlite(directory.path().join("cache.db")));
}

#[test]
fn the_bus_on_postgres_outlives_its_runtime() {
    let url = common::postgres().url();
    bus_outlives_its_runtime(|| PgNotifyBus::new(pg_pool(&url)));
}
