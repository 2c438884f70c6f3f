//! The two tiers as the engine uses them.

pub(crate) mod local;
pub(crate) mod remote;
pub(crate) mod timers;
