//! The formats of all data that leaves this process: entries in L2 and messages on the bus.
//!
//! Both formats are shared with the Node library, so that processes of both kinds can use one
//! Redis. This module does no I/O and trusts no input: bytes from outside decode, or they are
//! [`Malformed`].
//!
//! - [`codec`]: the encoding of values as bytes
//! - [`compression`]: compression of large values
//! - [`document`]: an entry, its value and its metadata
//! - [`frame`]: the binary form of an entry, for values that are not plain JSON
//! - `faithful`: values that would read back as something else
//! - `round_trip`: types that cannot be read back at all
//! - `seal`: encryption of stored values
//! - `trail`, `undecodable`: where and why decoding failed
//! - `marker`: the content of a tag's marker
//! - [`message`]: messages between processes on the bus
//! - [`snapshot`]: the file in which L1 outlives its process

use std::error::Error;
use std::fmt;

pub mod codec;
pub mod compression;
pub mod document;
mod faithful;
pub mod frame;
pub(crate) mod marker;
pub mod message;
pub(crate) mod round_trip;
#[cfg(feature = "encryption")]
pub(crate) mod seal;
pub mod snapshot;
mod trail;
mod undecodable;

/// Any error of a value's own serialization code.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Bytes from outside that do not match their format.
///
/// It has a fixed reason and no part of the bytes, which may be secret, so it is safe to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Malformed {
    /// The reason, in a few words.
    pub fn reason(&self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed: {}", self.0)
    }
}

impl Error for Malformed {}
