//! What every bus must do.

#![cfg(feature = "postgres")]

mod common;

use bentocache_sqlx::PgNotifyBus;
use common::pg_pool;

bentocache_testkit::bus_suite! {
    open = async || PgNotifyBus::new(pg_pool(&common::postgres().url())),
}
