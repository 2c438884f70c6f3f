//! Drivers that outlive the Tokio runtime that they were first used on.

use bentocache_diesel::{mysql, postgres, sqlite};
use bentocache_testkit::l2_outlives_its_runtime;

use crate::{MARIADB, POSTGRES, mysql_pool, pg_pool, table};

#[test]
fn a_driver_on_postgres_outlives_its_runtime() {
    l2_outlives_its_runtime(|| postgres(pg_pool(&POSTGRES.url())).table_name(table()));
}

#[test]
fn a_driver_on_mariadb_outlives_its_runtime() {
    l2_outlives_its_runtime(|| mysql(mysql_pool(&MARIADB.url())).table_name(table()));
}

#[test]
fn a_driver_on_sqlite_outlives_its_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cache.db");
    l2_outlives_its_runtime(|| sqlite(crate::sqlite_pool(&file)));
}
