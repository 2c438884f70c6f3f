//! The types that a user holds: the cache, its stores, handles, and requests.

pub(crate) mod bento;
pub(crate) mod blocking;
pub(crate) mod cache;
mod operations;
pub mod request;
pub(crate) mod typed;
