//! What every bus must do.

#[cfg(feature = "tls")]
use crate::common::certificates;
use crate::common::server;
use bentocache_rabbitmq::RabbitMqBus;
use testservers::FaultProxy;

bentocache_testkit::bus_suite! {
    mod plain;
    open = async || RabbitMqBus::new(server().url()),
    link = async || {
        let proxy = FaultProxy::start(server().addr()).await.expect("a proxy");
        let url = format!("amqp://guest:guest@{}/%2f", proxy.addr());
        (RabbitMqBus::new(url), proxy)
    },
}

#[cfg(feature = "tls")]
bentocache_testkit::bus_suite! {
    mod over_tls;
    open = async || {
        RabbitMqBus::new(server().tls_url()).root_certificate(certificates().authority())
    },
    link = async || {
        let proxy = FaultProxy::start(server().tls_addr()).await.expect("a proxy");
        let url = format!("amqps://guest:guest@{}/%2f", proxy.addr());
        (RabbitMqBus::new(url).root_certificate(certificates().authority()), proxy)
    },
}
