//! A bus that outlives the Tokio runtime that it was first used on.

use bentocache_rabbitmq::RabbitMqBus;
use bentocache_testkit::bus_outlives_its_runtime;

use crate::common::server;

#[test]
fn a_bus_outlives_its_runtime() {
    bus_outlives_its_runtime(|| RabbitMqBus::new(server().url()));
}
