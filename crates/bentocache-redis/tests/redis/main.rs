//! Redis as L2, bus and lock, on servers that the tests start.

#![allow(clippy::unwrap_used)]

mod common;
mod node;

mod background_writes;
mod batches;
mod bus;
mod bus_faults;
mod cache;
mod credentials;
mod encryption;
mod eviction;
mod failover;
mod faults;
mod gather;
mod health;
mod interop;
mod interop_differences;
mod interop_mixed;
mod keys;
mod l2;
mod late_writes;
mod link;
mod lock;
mod lock_faults;
mod moved;
mod nat;
mod nodes;
mod outage;
mod processes;
mod rights;
mod roles;
mod runtimes;
mod settings;
mod shards;
mod snapshot;
#[cfg(feature = "tls")]
mod tls;
mod tracking;
mod trouble;
mod versions;
