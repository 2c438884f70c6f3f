//! One program for all tests on the emulator, so that they share it.
#![allow(clippy::unwrap_used)]

mod cache;
mod common;
mod faults;
mod items;
mod l2;
mod obstacle;
mod table;
