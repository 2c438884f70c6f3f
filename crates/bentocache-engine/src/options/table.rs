//! The options that a call can change, each written once: name, type, documentation, and what it
//! sets in the [`Policy`]. Each level of options (cache and store, call, factory) lists the names
//! that it offers: `option_setters!(owned_setter: ttl grace)`.

use super::Policy;
use crate::error::Result;

/// One option, as it was set on one level.
#[derive(Clone, Copy)]
pub(crate) enum Setting {
    Number(fn(&mut Policy, u64), u64),
    /// These two matter on a hit, which looks at nothing else.
    ForceFresh(bool),
    EarlyRefresh(f32),
}

impl Setting {
    pub(crate) fn apply(self, policy: &mut Policy) {
        match self {
            Self::Number(set, value) => set(policy, value),
            Self::ForceFresh(force) => policy.force_fresh = force,
            Self::EarlyRefresh(at) => policy.early_refresh = at,
        }
    }
}

/// A setting with a number of milliseconds.
pub(crate) fn time(ms: Result<u64>, set: fn(&mut Policy, u64)) -> Result<Setting> {
    Ok(Setting::Number(set, ms?))
}

/// A setting that is on or off.
pub(crate) fn flag(on: bool, set: fn(&mut Policy, u64)) -> Result<Setting> {
    Ok(Setting::Number(set, on.into()))
}

/// Writes the setters of these options with the macro before the colon.
macro_rules! option_setters {
    ($setter:ident: $($name:ident)*) => { $($crate::options::option_row!($setter $name);)* };
}

/// A setter of something that is put together, with a field `options`.
macro_rules! owned_setter {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),+) = $($value:expr),+) => {
        $(#[$doc])*
        pub fn $name(mut self, $($arg: $type),+) -> Self {
            $(self.options.set($value);)+
            self
        }
    };
}

/// A setter of something that is shared, with a field `overrides`.
macro_rules! shared_setter {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),+) = $($value:expr),+) => {
        $(#[$doc])*
        pub fn $name(&self, $($arg: $type),+) -> &Self {
            $(self.overrides.set($value);)+
            self
        }
    };
}

macro_rules! option_row {
    ($setter:ident ttl) => { $crate::options::$setter! {
        /// How long a value is fresh; `"forever"` for no end. With zero or less, nothing is stored,
        /// and what is stored is deleted. Default 30 minutes.
        ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(ttl.into().ttl_millis("ttl"), |p, ms| p.ttl = ms)
    }};
    ($setter:ident l1_ttl) => { $crate::options::$setter! {
        /// The longest time that a value is fresh in L1 before L2 is read again; `"none"` for its
        /// ttl, the default.
        l1_ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(ttl.into().ttl_millis("l1_ttl"), |p, ms| p.l1_ttl = ms)
    }};
    ($setter:ident grace) => { $crate::options::$setter! {
        /// How much longer than its ttl a value may be served when the source fails or is slow;
        /// `"off"` for not at all, the default. A read with grace off takes no stale value.
        grace(grace: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(grace.into().millis("grace", 0), |p, ms| p.grace = ms)
    }};
    ($setter:ident grace_backoff) => { $crate::options::$setter! {
        /// How long a stale value counts as fresh after a factory failed, so that a failing source
        /// is not called each time; 0 calls it each time. Default 10 seconds.
        grace_backoff(backoff: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(backoff.into().millis("grace_backoff", 0), |p, ms| p.grace_backoff = ms)
    }};
    ($setter:ident timeout) => { $crate::options::$setter! {
        /// The soft timeout: how long to wait for the factory when a stale value could be served.
        /// Default 0: the stale value is served at once and refreshed in the background. `"none"`
        /// waits.
        timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(timeout.into().millis("timeout", $crate::options::NEVER), |p, ms| p.timeout = ms)
    }};
    ($setter:ident hard_timeout) => { $crate::options::$setter! {
        /// How long to wait for a value in any case; then the call fails with
        /// [`Error::HardTimeout`](crate::Error::HardTimeout) and the factory goes on in the
        /// background. Default `"none"`.
        hard_timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(timeout.into().millis("hard_timeout", $crate::options::NEVER), |p, ms| p.hard_timeout = ms)
    }};
    ($setter:ident lock_timeout) => { $crate::options::$setter! {
        /// How long to wait for another caller's factory; then a stale value is served if there is
        /// one, else the call runs its own factory. A factory that runs for longer is replaced in
        /// both cases: it may no longer store its value. Default `"none"`.
        lock_timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(timeout.into().millis("lock_timeout", $crate::options::NEVER), |p, ms| p.lock_timeout = ms)
    }};
    ($setter:ident factory_timeout) => { $crate::options::$setter! {
        /// How long a factory may run. Then its future is dropped, the key is free, and everyone
        /// who waits gets a stale value or [`Error::FactoryTimeout`](crate::Error::FactoryTimeout).
        /// It counts as a failure of the factory. Default `"none"`.
        factory_timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(timeout.into().millis("factory_timeout", $crate::options::NEVER), |p, ms| p.factory_timeout = ms)
    }};
    ($setter:ident l2_timeout) => { $crate::options::$setter! {
        /// The longest wait for one call of L2: `soft` when a stale value could be served (default
        /// `"none"`), `hard` always (default 1 second). `clear` and `prune` scan the whole of L2:
        /// each may take up to one minute.
        l2_timeout(soft: impl Into<$crate::options::TimeSpan>, hard: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(soft.into().millis("l2_timeout", $crate::options::NEVER), |p, ms| p.l2_soft_timeout = ms),
            $crate::options::time(hard.into().millis("l2_timeout", $crate::options::NEVER), |p, ms| p.l2_hard_timeout = ms)
    }};
    ($setter:ident early_refresh) => { $crate::options::$setter! {
        /// Refresh ahead: when at most this share of the ttl is left (say 0.2) and the value is
        /// asked for with `get_or_set`, it is served and refreshed in the background, once. From 0,
        /// off, the default, to below 1.
        early_refresh(at: f32) = $crate::options::share(at)
    }};
    ($setter:ident jitter) => { $crate::options::$setter! {
        /// Up to this much is added at random to the ttl of what is written, so that values written
        /// together do not expire together. Default 0.
        jitter(jitter: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(jitter.into().millis("jitter", 0), |p, ms| p.jitter = ms)
    }};
    ($setter:ident tag_ttl) => { $crate::options::$setter! {
        /// The longest time that a value with tags is kept in any tier. The marker of an
        /// invalidated tag is kept one day longer. Default 30 days; 0 is refused.
        tag_ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time(ttl.into().above_0("tag_ttl"), |p, ms| p.tag_ttl = ms)
    }};
    ($setter:ident suppress_l2_errors) => { $crate::options::$setter! {
        /// Whether a failure of L2 counts as a miss, or is queued for recovery, instead of being an
        /// error. Default: true with an L1, else false.
        suppress_l2_errors(suppress: bool) =
            $crate::options::flag(suppress, |p, on| p.suppress_l2_errors = on != 0)
    }};
    ($setter:ident announce_fills) => { $crate::options::$setter! {
        /// Whether other processes are also told of what `get_or_set` stored after a miss, as the
        /// Node library does. Default false: they read L2 when they need the value.
        announce_fills(announce: bool) =
            $crate::options::flag(announce, |p, on| p.announce_fills = on != 0)
    }};
    ($setter:ident force_fresh) => { $crate::options::$setter! {
        /// Whether to run the factory even when a fresh value is stored.
        force_fresh(force: bool) = Ok($crate::options::Setting::ForceFresh(force))
    }};
    ($setter:ident skip_l1_write) => { $crate::options::$setter! {
        /// Whether to write nothing to L1.
        skip_l1_write(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_l1_write = on != 0)
    }};
    ($setter:ident skip_l2_write) => { $crate::options::$setter! {
        /// Whether to write nothing to L2.
        skip_l2_write(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_l2_write = on != 0)
    }};
    ($setter:ident skip_l2_read) => { $crate::options::$setter! {
        /// Whether to read nothing from L2.
        skip_l2_read(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_l2_read = on != 0)
    }};
    ($setter:ident skip_bus_notify) => { $crate::options::$setter! {
        /// Whether to tell other processes nothing.
        skip_bus_notify(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_bus_notify = on != 0)
    }};
}
pub(crate) use {option_row, option_setters, owned_setter, shared_setter};
