//! What every bus must do.

#![cfg(feature = "postgres")]

mod common;

use bentocache_sqlx::PgNotifyBus;
use common::pg_pool;
use testservers::FaultProxy;

bentocache_testkit::bus_suite! {
    open = async || PgNotifyBus::new(pg_pool(&common::postgres().url())),
    link = async || {
        let server = common::postgres();
        let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
        (PgNotifyBus::new(pg_pool(&server.url_by(proxy.addr()))), proxy)
    },
}
