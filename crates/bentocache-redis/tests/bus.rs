//! What every bus must do, on a server and on a cluster.

mod common;

use bentocache_redis::RedisBus;
use common::{cluster, server};

bentocache_testkit::bus_suite! {
    mod single;
    open = async || RedisBus::new(server().url()),
}

bentocache_testkit::bus_suite! {
    mod clustered;
    open = async || RedisBus::cluster(cluster().urls()),
}
