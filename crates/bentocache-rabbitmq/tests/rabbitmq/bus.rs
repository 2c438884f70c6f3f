//! What every bus must do.

#[cfg(feature = "tls")]
use crate::common::certificates;
use crate::common::server;
use bentocache_rabbitmq::RabbitMqBus;

bentocache_testkit::bus_suite! {
    mod plain;
    open = async || RabbitMqBus::new(server().url()),
}

#[cfg(feature = "tls")]
bentocache_testkit::bus_suite! {
    mod over_tls;
    open = async || {
        RabbitMqBus::new(server().tls_url()).root_certificate(certificates().authority())
    },
}
