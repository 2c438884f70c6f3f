//! The conformance suite for a lock, on a server and on a cluster.

use bentocache_redis::RedisLock;

use crate::common::{cluster, server};

bentocache_testkit::lock_suite! {
    mod single;
    open = async || RedisLock::new(server().url()),
}

bentocache_testkit::lock_suite! {
    mod clustered;
    open = async || RedisLock::cluster(cluster().urls()).prefix("app"),
}
