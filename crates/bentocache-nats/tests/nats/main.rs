//! NATS as the bus, on servers that the tests start.

#![allow(clippy::unwrap_used)]

mod common;

mod bus;
mod cache;
mod cluster;
mod credentials;
mod faults;
mod life;
mod runtimes;
mod tls;
