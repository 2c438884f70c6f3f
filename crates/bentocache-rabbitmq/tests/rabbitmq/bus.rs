//! What every bus must do.

use crate::common::server;
use bentocache_rabbitmq::RabbitMqBus;

bentocache_testkit::bus_suite! {
    open = async || RabbitMqBus::new(server().url()),
}
