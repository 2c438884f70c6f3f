//! What every L2 must do, on the three databases.

use std::time::Duration;

use bentocache_sqlx::{mysql, open_sqlite, postgres};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use testservers::FaultProxy;

use crate::common::{self, MOST, mysql_pool, pg_pool, table};

/// How long a pool waits for a connection to a server that is gone.
const WAIT: Duration = Duration::from_secs(2);

bentocache_testkit::l2_suite! {
    mod on_postgres;
    open = {
        let table = table();
        let pool = pg_pool(&common::postgres().url());
        async move || postgres(pool.clone()).table_name(&table).max_value(MOST)
    },
    link = async || {
        let server = common::postgres();
        let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
        let pool = PgPoolOptions::new().acquire_timeout(WAIT);
        let pool = pool.connect_lazy(&server.url_by(proxy.addr())).expect("a URL");
        (postgres(pool).table_name(table()), proxy)
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
    link = async || {
        let server = common::mariadb();
        let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
        let pool = MySqlPoolOptions::new().acquire_timeout(WAIT);
        let pool = pool.connect_lazy(&server.url_by(proxy.addr())).expect("a URL");
        (mysql(pool).table_name(table()), proxy)
    },
    without = [long_keys],
}

bentocache_testkit::l2_suite! {
    mod on_sqlite;
    open = {
        let directory = tempfile::tempdir().expect("a directory");
        async move || open_sqlite(directory.path().join("cache.db")).max_value(MOST)
    },
    without = [link],
}
