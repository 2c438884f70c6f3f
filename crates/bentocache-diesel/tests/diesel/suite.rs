//! What every L2 must do.

use bentocache_diesel::{mysql, postgres, sqlite};
use testservers::FaultProxy;

use crate::{MARIADB, MOST, POSTGRES, mysql_pool, pg_pool, sqlite_pool, table};

bentocache_testkit::l2_suite! {
    mod on_postgres;
    open = {
        let (table, pool) = (table(), pg_pool(&POSTGRES.url()));
        async move || postgres(pool.clone()).table_name(&table).max_value(MOST)
    },
    link = async || {
        let proxy = FaultProxy::start(POSTGRES.addr()).await.unwrap();
        let pool = pg_pool(&POSTGRES.url_by(proxy.addr()));
        (postgres(pool).table_name(table()), proxy)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_mariadb;
    open = {
        let (table, pool) = (table(), mysql_pool(&MARIADB.url()));
        async move || mysql(pool.clone()).table_name(&table).max_value(MOST)
    },
    link = async || {
        let proxy = FaultProxy::start(MARIADB.addr()).await.unwrap();
        // Otherwise it would find the server's socket and leave out the proxy.
        let pool = mysql_pool(&format!("{}?prefer_socket=false", MARIADB.url_by(proxy.addr())));
        (mysql(pool).table_name(table()), proxy)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_sqlite;
    open = {
        let directory = tempfile::tempdir().unwrap();
        let pool = sqlite_pool(&directory.path().join("cache.db"));
        async move || {
            let _ = &directory;
            sqlite(pool.clone()).max_value(MOST)
        }
    },
    without = [link],
}
