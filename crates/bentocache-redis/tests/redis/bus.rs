//! The conformance suite for a bus, on a server and on a cluster.

use bentocache_redis::RedisBus;
use testservers::FaultProxy;

use crate::common::{cluster, server};

bentocache_testkit::bus_suite! {
    mod single;
    open = async || RedisBus::new(server().url()),
    link = async || {
        let proxy = FaultProxy::start(server().addr()).await.expect("a proxy");
        (RedisBus::new(format!("redis://{}", proxy.addr())), proxy)
    },
}

bentocache_testkit::bus_suite! {
    mod clustered;
    open = async || RedisBus::cluster(cluster().urls()),
    // A proxy cannot stand before nodes that announce their own addresses: see `bus_faults.rs`.
    without = [link],
}
