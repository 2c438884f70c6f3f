//! What every bus must do.

use bentocache_sqlx::PgNotifyBus;
use testservers::FaultProxy;

use crate::common::{self, pg_pool};

bentocache_testkit::bus_suite! {
    open = async || PgNotifyBus::new(pg_pool(&common::postgres().url())),
    link = async || {
        let server = common::postgres();
        let proxy = FaultProxy::start(server.addr()).await.expect("a proxy");
        (PgNotifyBus::new(pg_pool(&server.url_by(proxy.addr()))), proxy)
    },
}
