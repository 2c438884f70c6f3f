//! What every second tier must do, on the three databases.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]

mod common;

use bentocache_sqlx::{mysql, open_sqlite, postgres};
use common::{MOST, mysql_pool, pg_pool, table};

bentocache_testkit::l2_suite! {
    mod on_postgres;
    open = {
        let table = table();
        let pool = pg_pool(&common::postgres().url());
        async move || postgres(pool.clone()).table_name(&table).max_value(MOST)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_mariadb;
    open = {
        let table = table();
        let pool = mysql_pool(&common::mariadb().url());
        async move || mysql(pool.clone()).table_name(&table).max_value(MOST)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_sqlite;
    open = {
        let directory = tempfile::tempdir().expect("a directory");
        async move || open_sqlite(directory.path().join("cache.db")).max_value(MOST)
    },
}
