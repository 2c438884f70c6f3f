//! The types that a user holds: the cache, its stores, handles, and requests.

pub(crate) mod bento;
pub(crate) mod blocking;
pub(crate) mod cache;
pub(crate) mod key;
mod operations;
pub mod request;
pub(crate) mod typed;
