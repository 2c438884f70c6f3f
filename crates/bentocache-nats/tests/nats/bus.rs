//! The conformance suite for a bus, with a connection of the driver and one of the application.

use std::time::Duration;

use bentocache_nats::NatsBus;
use testservers::FaultProxy;

use crate::common::server;

bentocache_testkit::bus_suite! {
    mod connected;
    open = async || NatsBus::new(server().url()),
    link = async || {
        let (proxy, url) = proxied().await;
        (NatsBus::new(url), proxy)
    },
}

bentocache_testkit::bus_suite! {
    mod given;
    open = async || NatsBus::from_client(async_nats::connect(server().url()).await.unwrap()),
    link = async || {
        let (proxy, url) = proxied().await;
        // The application's own options decide when a silent server is noticed.
        let options = async_nats::ConnectOptions::new().ping_interval(Duration::from_secs(1));
        (NatsBus::from_client(options.connect(url).await.unwrap()), proxy)
    },
    // The client ends with it; see `runtimes.rs`.
    without = [runtimes],
}

async fn proxied() -> (FaultProxy, String) {
    let proxy = FaultProxy::start(server().addr()).await.unwrap();
    let url = format!("nats://{}", proxy.addr());
    (proxy, url)
}
