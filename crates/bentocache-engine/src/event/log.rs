//! Events as log lines, with the same words and fields for every operation.
//!
//! Failures, and changes of a driver's state, are not here: they are logged where their cause is
//! known.

use std::borrow::Cow;

use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::{Level, debug, trace};

use super::EventKind;

/// Whether anybody may read debug lines. It is one relaxed load; the lines of a target that is
/// filtered out are rejected later.
#[inline(always)]
pub(crate) fn may_be_read() -> bool {
    Level::DEBUG <= STATIC_MAX_LEVEL && Level::DEBUG <= LevelFilter::current()
}

/// Whether debug lines of this crate are read.
pub(crate) fn is_read() -> bool {
    tracing::enabled!(Level::DEBUG)
}

/// The log of a store.
#[derive(Clone, Copy)]
pub(crate) struct Log<'a> {
    pub(crate) store: &'a str,
    /// The prefix of all keys of the store.
    pub(crate) root: &'a str,
    pub(crate) log_keys: bool,
}

impl<'a> Log<'a> {
    /// Writes the event.
    pub(crate) fn write(self, kind: &EventKind<'_>) {
        use EventKind as E;
        let store = self.store;
        match kind {
            E::Hit { key, tier, graced } => {
                let tier = tier.as_str();
                debug!(store = %store, key = &*self.key(key), tier, graced, "hit");
            }
            E::Miss { key } => debug!(store = %store, key = &*self.key(key), "miss"),
            E::Written { key } => debug!(store = %store, key = &*self.key(key), "written"),
            E::Deleted { key } => debug!(store = %store, key = &*self.key(key), "deleted"),
            E::Touched { key } => debug!(store = %store, key = &*self.key(key), "touched"),
            E::Expired { key } => debug!(store = %store, key = &*self.key(key), "expired"),
            E::Cleared { namespace } => {
                debug!(store = %store, namespace = self.name(namespace), "cleared");
            }
            E::TagExpired { tag } => debug!(store = %store, tag = self.name(tag), "tag expired"),
            E::TagInvalidated { tag } => {
                debug!(store = %store, tag = self.name(tag), "tag invalidated");
            }
            E::FactorySucceeded { key, background, took } => {
                debug!(store = %store, key = &*self.key(key), background, ?took,
                    "factory succeeded");
            }
            E::FactoryTimeout { key, hard } => {
                debug!(store = %store, key = &*self.key(key), hard, "factory timeout");
            }
            E::LockTimeout { key } => debug!(store = %store, key = &*self.key(key), "lock timeout"),
            E::L2Skipped { operation } => debug!(store = %store, operation, "L2 call skipped"),
            E::RecoveryQueued { queued } => debug!(store = %store, queued, "change queued"),
            E::RecoveryDone { queued } => debug!(store = %store, queued, "queued change done"),
            E::Evicted { key } => trace!(store = %store, key = &*self.key(key), "evicted"),
            E::FactoryFailed { .. }
            | E::LockFailed { .. }
            | E::DecodeFailed { .. }
            | E::L2Failed { .. }
            | E::BreakerOpened
            | E::BreakerClosed
            | E::BusPublished { .. }
            | E::BusReceived { .. }
            | E::BusRejected
            | E::BusLost
            | E::BusRestored
            | E::RecoveryDropped { .. }
            | E::Refused { .. } => {}
        }
    }

    /// A key of an event, with the store's prefix, if keys may be logged.
    fn key(self, key: &str) -> Cow<'a, str> {
        if self.log_keys { [self.root, key].concat().into() } else { HIDDEN.into() }
    }

    /// A namespace or a tag, if keys may be logged.
    fn name(self, name: &str) -> &str {
        if self.log_keys { name } else { HIDDEN }
    }
}

/// Stands for a key that must not be logged.
pub(crate) const HIDDEN: &str = "(hidden)";
