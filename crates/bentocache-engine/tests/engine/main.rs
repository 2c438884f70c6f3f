//! What the cache does, by feature. One binary: each further one would compile the engine's generic
//! code again.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

mod common;
#[path = "common/races.rs"]
mod races;

mod blocking;
mod bus;
mod bus_in_process;
mod clear;
mod clear_levels;
mod clocks;
mod context;
mod delete;
mod early_refresh;
mod error_texts;
mod events;
mod expire;
mod factory_timeout;
mod fences;
mod flights;
mod get;
mod grace;
mod has;
mod health;
mod hostile_input;
mod keys;
mod life;
mod local;
mod lock;
mod logs;
mod many;
mod memory;
mod namespaces;
mod nesting;
mod not_found;
mod options;
mod outage;
mod outage_calls;
mod parts;
mod pull;
mod readable;
mod recovery;
mod recovery_races;
mod replay;
mod runtime_ended;
mod runtimes;
mod set;
mod shutdown;
mod source;
mod stats;
mod stores;
mod tags;
mod tags_evicted;
mod tags_outage;
mod timeouts;
