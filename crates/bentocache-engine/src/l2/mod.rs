//! L2: shared between processes, asynchronous, and sometimes out of reach.
//!
//! [`L2`] is the only way to the driver. Reads return the driver's data with an overlay: the state
//! after all queued changes have been replayed. All changes follow one protocol: give up the queued
//! write of the same key, wait behind a queued clear, call the driver, and then either remove the
//! queued change that this one made unnecessary, or join the queue. The engine gets one of a few
//! results ([`Outcome`]).
//!
//! - [`tier`]: reads, single calls of the driver, parts of the store
//! - [`remote`]: the driver behind a timeout and the [`breaker`]
//! - [`queue`]: the queued changes, as plain state
//! - [`replay`]: their replay
//! - [`change`]: the protocol of changes
//! - [`background`]: writes whose callers do not wait
//! - [`add`]: `add`, which one caller wins
//! - [`mark`]: markers and buckets of tags
//! - [`health`]: a round trip to each part of the store
//! - [`touch`]: another life for a stored document
//! - `sealed`: the driver behind the encryption of values
//! - [`stored`]: the times in a stored document

mod add;
mod background;
mod breaker;
mod change;
mod health;
mod mark;
mod queue;
mod remote;
mod replay;
#[cfg(feature = "encryption")]
mod sealed;
mod stored;
mod tier;
mod touch;
mod trouble;

pub(crate) use self::background::Ticket;
pub(crate) use self::change::{MOST_ATTEMPTS, NewDocument, OlderDocument, Outcome, Rule};
pub(crate) use self::mark::{Mark, Marker};
pub(crate) use self::queue::BusPosition;
pub(crate) use self::remote::Budget;
pub(crate) use self::replay::ReplayEffects;
#[cfg(feature = "encryption")]
pub(crate) use self::sealed::Sealed;
pub(crate) use self::tier::{L2, SCAN};
pub(crate) use self::touch::{NewLife, Span, Touched};
