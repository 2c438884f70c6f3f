//! What every bus must do, with a connection of the driver's and one of the application's.
#![allow(clippy::unwrap_used)]

mod common;

use bentocache_nats::NatsBus;
use common::server;

bentocache_testkit::bus_suite! {
    mod connected;
    open = async || NatsBus::new(server().url()),
}

bentocache_testkit::bus_suite! {
    mod given;
    open = async || NatsBus::from_client(async_nats::connect(server().url()).await.unwrap()),
}
