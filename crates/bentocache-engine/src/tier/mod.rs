//! The first tier as the engine uses it.

pub(crate) mod local;
