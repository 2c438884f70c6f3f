//! The types that a user holds: the cache, its stores, handles, and requests.

pub(crate) mod add;
pub(crate) mod bento;
pub(crate) mod blocking;
pub(crate) mod cache;
mod call_options;
mod inspect;
mod invalidate;
pub(crate) mod kept;
pub(crate) mod key;
pub(crate) mod keys;
pub(crate) mod local;
mod operations;
pub mod request;
mod scoped;
mod span;
mod touch;
pub(crate) mod typed;
