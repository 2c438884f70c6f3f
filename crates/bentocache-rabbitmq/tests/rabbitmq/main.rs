//! One program for all tests on servers, so that they share them.
#![allow(clippy::unwrap_used)]

mod bus;
mod cache;
mod common;
mod credentials;
mod faults;
mod life;
#[cfg(feature = "tls")]
mod tls;
