//! What leaves this process: entries in L2 and messages on the bus.
//!
//! Both formats are shared with the Node library, so that processes of either kind can use one
//! Redis. Nothing here does input or output, and nothing here trusts its input: bytes from outside
//! decode, or they are [`Malformed`].
//!
//! - [`codec`]: how values become bytes
//! - [`document`]: an entry, its value and what is known about it
//! - [`frame`]: the binary form of an entry, for what is not plain JSON
//! - `faithful`: what would be read back as something else
//! - `round_trip`: what cannot be read back at all
//! - `trail`, `undecodable`: where and why decoding failed
//! - [`message`]: what processes tell each other on the bus

use std::fmt;

pub mod codec;
pub mod document;
mod faithful;
pub mod frame;
pub mod message;
pub(crate) mod round_trip;
mod trail;
mod undecodable;

/// Bytes from outside that are not what they should be.
///
/// Carries a fixed reason and nothing of the bytes, which may be secret, so it is safe to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Malformed {
    /// What is wrong, in a few words.
    pub fn reason(&self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed: {}", self.0)
    }
}

impl std::error::Error for Malformed {}
