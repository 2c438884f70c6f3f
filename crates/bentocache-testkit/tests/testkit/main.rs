//! The suites and the drivers of the kit.

#![allow(clippy::unwrap_used)]

mod chaos;
mod conformance;
mod defaults;
mod link_mutants;
mod mutants;
mod runtime_mutants;
