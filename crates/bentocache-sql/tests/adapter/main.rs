//! `DatabaseDriver` over the adapter of the example.

#![allow(clippy::unwrap_used)]

mod gather;
mod strict;
mod suite;
#[path = "../../examples/adapter/tree.rs"]
mod tree;
