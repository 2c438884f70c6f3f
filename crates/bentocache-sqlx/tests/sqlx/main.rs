//! Databases through sqlx as L2 and bus, on servers that the tests start.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

mod bus;
mod bus_faults;
mod cache;
mod connections;
mod credentials;
mod faults;
mod interop;
mod l2;
mod locks;
mod node_tables;
mod open_transactions;
mod pooler;
mod processes;
mod rights;
mod roles;
mod size;
mod tables;
