//! What every L2 must do, on a server, under a prefix and on a cluster.

use bentocache_redis::Redis;
use bentocache_testkit::unique;
use testservers::FaultProxy;

use crate::common::{MOST, cluster, server};

bentocache_testkit::l2_suite! {
    mod single;
    open = async || Redis::new(server().url()).max_value(MOST),
    link = async || {
        let proxy = FaultProxy::start(server().addr()).await.expect("a proxy");
        (Redis::new(format!("redis://{}", proxy.addr())), proxy)
    },
}

bentocache_testkit::l2_suite! {
    mod prefixed;
    open = {
        let prefix = unique("app");
        async move || Redis::new(server().url()).prefix(&prefix).max_value(MOST)
    },
    // As without a prefix.
    without = [link],
}

bentocache_testkit::l2_suite! {
    mod clustered;
    open = async || Redis::cluster(cluster().urls()).max_value(MOST),
    // A proxy cannot stand before nodes that announce their own addresses: see `shards.rs`.
    without = [link],
}
