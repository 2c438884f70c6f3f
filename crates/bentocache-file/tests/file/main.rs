//! A directory as L2.

#![allow(clippy::unwrap_used)]

mod common;

mod abandon;
mod clear_and_keys;
mod conformance;
mod crash;
mod damage;
mod directory;
mod keys_and_values;
mod life;
mod link;
mod processes;
mod prune;
mod size;
