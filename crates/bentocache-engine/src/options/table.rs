//! The options that a call can change. Each is written once: name, type, documentation, and the
//! field that it sets in the [`Policy`]. Each level of options (cache and store, call, factory)
//! lists the names that it offers: `option_setters!(owned_setter: ttl grace)`.

use super::policy::Policy;
use crate::error::Result;

/// One option, as set on one level.
#[derive(Clone, Copy)]
pub(crate) enum Setting {
    Number(fn(&mut Policy, u64), u64),
    /// A hit reads only these.
    ForceFresh(bool),
    SkipL1Read(bool),
    L1Ttl(u64),
    EarlyRefresh(f32),
}

impl Setting {
    pub(crate) fn apply(self, policy: &mut Policy) {
        match self {
            Self::Number(set, value) => set(policy, value),
            Self::ForceFresh(force) => policy.force_fresh = force,
            Self::SkipL1Read(skip) => policy.skip_l1_read = skip,
            Self::L1Ttl(ttl) => policy.l1_ttl = ttl,
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

/// Generates the setters of these options with the macro before the colon.
macro_rules! option_setters {
    ($setter:ident: $($name:ident)*) => { $($crate::options::option_row!($setter $name);)* };
}

/// A setter of a builder or request, with a field `options`.
macro_rules! owned_setter {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),+) = $($value:expr),+) => {
        $(#[$doc])*
        pub fn $name(mut self, $($arg: $type),+) -> Self {
            $(self.options.set($value);)+
            self
        }
    };
}

/// A setter of a shared context, with a field `overrides`.
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
        /// and the stored value is deleted. Default 30 minutes.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("10m");
        /// ```
        ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::ttl(ttl, "ttl"), |p, ms| p.ttl = ms)
    }};
    ($setter:ident l1_ttl) => { $crate::options::$setter! {
        /// The longest time that a value is fresh in L1 before L2 is read again; `"none"` for its
        /// ttl, the default. With 0, a read asks L2 each time, and what L1 has serves only when L2
        /// fails.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("1h").l1_ttl("1m");
        /// ```
        l1_ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::ttl(ttl, "l1_ttl").map($crate::options::Setting::L1Ttl)
    }};
    ($setter:ident l2_ttl) => { $crate::options::$setter! {
        /// The longest time that a value is kept in L2, its fresh and its stale time together;
        /// `"none"`, the default, for its ttl and grace. The stored value says so itself, so no
        /// other process keeps it longer. L1 of the process that stores it keeps it for its whole
        /// ttl, unless it has to be compared with L2 before. 0 is rejected: see
        /// [`skip_l2_write`](crate::request::Set::skip_l2_write).
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("1d").l2_ttl("1h");
        /// ```
        l2_ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit_above_0(ttl, "l2_ttl"), |p, ms| p.l2_ttl = ms)
    }};
    ($setter:ident sliding) => { $crate::options::$setter! {
        /// Sliding expiry: a value that nobody reads for this long is gone, also under grace. A
        /// value that is read at least every three quarters of this time, on any node, stays until
        /// its ttl is over. `"off"`, the default, has no such end; 0 is rejected.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("12h").sliding("20m");
        /// ```
        #[doc(alias("idle", "time_to_idle", "tti", "sliding_expiration"))]
        sliding(idle: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit_above_0(idle, "sliding"), |p, ms| p.sliding = ms)
    }};
    ($setter:ident grace) => { $crate::options::$setter! {
        /// How long after its ttl a value may still be served if the source fails or is slow.
        /// `"off"`, the default, never serves it. A read with grace off returns no stale value.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("10m").grace("6h");
        /// ```
        #[doc(alias("swr", "stale-while-revalidate", "stale-if-error"))]
        grace(grace: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(grace, "grace", 0), |p, ms| p.grace = ms)
    }};
    ($setter:ident grace_backoff) => { $crate::options::$setter! {
        /// How long a stale value counts as fresh after a factory failed, so that a failing source
        /// is not called each time. 0 calls it each time. Default 10 seconds.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().grace("6h").grace_backoff("30s");
        /// ```
        grace_backoff(backoff: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(backoff, "grace_backoff", 0), |p, ms| p.grace_backoff = ms)
    }};
    ($setter:ident timeout) => { $crate::options::$setter! {
        /// The soft timeout: how long a call waits for the factory if it could serve a stale value.
        /// Default 0: the call serves the stale value at once, and the factory refreshes it in the
        /// background (stale-while-revalidate). `"none"` waits for the factory.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().grace("6h").timeout("200ms");
        /// ```
        timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(timeout, "timeout", $crate::options::NEVER), |p, ms| p.timeout = ms)
    }};
    ($setter:ident hard_timeout) => { $crate::options::$setter! {
        /// The longest time that a call waits for a value. Then it fails with
        /// [`Error::HardTimeout`](crate::Error::HardTimeout), and the factory continues in the
        /// background. Default `"none"`.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().hard_timeout("2s");
        /// ```
        hard_timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(timeout, "hard_timeout", $crate::options::NEVER), |p, ms| p.hard_timeout = ms)
    }};
    ($setter:ident lock_timeout) => { $crate::options::$setter! {
        /// How long a call waits for the factory of another caller. Then it serves a stale value if
        /// there is one, or runs its own factory. In both cases the slow factory is replaced and
        /// may no longer store its value. Default `"none"`.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().lock_timeout("5s");
        /// ```
        lock_timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(timeout, "lock_timeout", $crate::options::NEVER), |p, ms| p.lock_timeout = ms)
    }};
    ($setter:ident factory_timeout) => { $crate::options::$setter! {
        /// How long a factory may run. Then its future is dropped, the key is free, and every
        /// waiting caller gets a stale value or
        /// [`Error::FactoryTimeout`](crate::Error::FactoryTimeout). This counts as a failure of the
        /// factory. Default `"none"`.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().factory_timeout("10s");
        /// ```
        factory_timeout(timeout: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(timeout, "factory_timeout", $crate::options::NEVER), |p, ms| p.factory_timeout = ms)
    }};
    ($setter:ident l2_timeout) => { $crate::options::$setter! {
        /// The longest time that one operation waits for L2, all its L2 calls together; in
        /// `get_or_set`, the calls before the factory share one limit, and the calls after it
        /// another. `soft` applies if a stale value could be served (default `"none"`), `hard`
        /// always (default 1 second). `clear` and `prune` scan the whole of L2 and have their own
        /// limit of one minute.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().grace("6h").l2_timeout("100ms", "1s");
        /// ```
        l2_timeout(soft: impl Into<$crate::options::TimeSpan>, hard: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(soft, "l2_timeout", $crate::options::NEVER), |p, ms| p.l2_soft_timeout = ms),
            $crate::options::time($crate::options::limit(hard, "l2_timeout", $crate::options::NEVER), |p, ms| p.l2_hard_timeout = ms)
    }};
    ($setter:ident early_refresh) => { $crate::options::$setter! {
        /// Early refresh: if at most this share of the ttl is left (for example 0.2), a
        /// `get_or_set` serves the value and refreshes it once in the background. From 0, which is
        /// off and the default, to below 1.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("10m").early_refresh(0.2);
        /// ```
        early_refresh(at: f32) = $crate::options::share(at)
    }};
    ($setter:ident jitter) => { $crate::options::$setter! {
        /// A random time of up to this length is added to the ttl of each written value, so that
        /// values written together do not expire together. Default 0.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().ttl("10m").jitter("1m");
        /// ```
        jitter(jitter: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit(jitter, "jitter", 0), |p, ms| p.jitter = ms)
    }};
    ($setter:ident tag_ttl) => { $crate::options::$setter! {
        /// The longest time that a value with tags is kept in any tier. The marker of an
        /// invalidated tag is kept one day longer. Default 30 days; 0 is rejected.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().tag_ttl("7d");
        /// ```
        tag_ttl(ttl: impl Into<$crate::options::TimeSpan>) =
            $crate::options::time($crate::options::limit_above_0(ttl, "tag_ttl"), |p, ms| p.tag_ttl = ms)
    }};
    ($setter:ident suppress_l2_errors) => { $crate::options::$setter! {
        /// Whether a failed L2 read counts as a miss, and a failed L2 change is queued for replay,
        /// instead of returning an error. Default: true with an L1, else false.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().suppress_l2_errors(false);
        /// ```
        suppress_l2_errors(suppress: bool) =
            $crate::options::flag(suppress, |p, on| p.suppress_l2_errors = on != 0)
    }};
    ($setter:ident announce_fills) => { $crate::options::$setter! {
        /// Whether other processes are also notified of values that `get_or_set` stored after a
        /// miss, as the Node library does. Default false: they read L2 when they need the value.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().announce_fills(true);
        /// ```
        announce_fills(announce: bool) =
            $crate::options::flag(announce, |p, on| p.announce_fills = on != 0)
    }};
    ($setter:ident force_fresh) => { $crate::options::$setter! {
        /// Whether to run the factory even when a fresh value is stored.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// let request = cache.get_or_set("a", |_| async { Ok::<_, std::io::Error>(1) });
        /// let value = request.force_fresh(true).await?;
        /// # Ok(()) }
        /// ```
        force_fresh(force: bool) = Ok($crate::options::Setting::ForceFresh(force))
    }};
    ($setter:ident skip_l1_read) => { $crate::options::$setter! {
        /// Whether to read nothing from L1: what is stored in L2 decides. The value that is found
        /// is put into L1 nevertheless.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// let value = cache.get::<i32>("a").skip_l1_read(true).await?;
        /// # Ok(()) }
        /// ```
        skip_l1_read(skip: bool) = Ok($crate::options::Setting::SkipL1Read(skip))
    }};
    ($setter:ident skip_l1_write) => { $crate::options::$setter! {
        /// Whether to store nothing in L1. A `set` still removes the old entry from L1, because it
        /// is out of date.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// cache.set("a", 1).skip_l1_write(true).await?;
        /// # Ok(()) }
        /// ```
        skip_l1_write(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_l1_write = on != 0)
    }};
    ($setter:ident skip_l2_write) => { $crate::options::$setter! {
        /// Whether to write nothing to L2.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// cache.set("a", 1).skip_l2_write(true).await?;
        /// # Ok(()) }
        /// ```
        skip_l2_write(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_l2_write = on != 0)
    }};
    ($setter:ident skip_l2_read) => { $crate::options::$setter! {
        /// Whether to read nothing from L2.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// let value = cache.get::<i32>("a").skip_l2_read(true).await?;
        /// # Ok(()) }
        /// ```
        skip_l2_read(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_l2_read = on != 0)
    }};
    ($setter:ident l2_write_in_background) => { $crate::options::$setter! {
        /// Whether a write returns as soon as L1 has the value, and L2 gets it in the background.
        /// Default false. The writes of a key reach L2 in their order, this process never reads
        /// anything older, and [`flush`](crate::Cache::flush) waits for them. A process that is
        /// killed loses the writes that are under way.
        ///
        /// ```
        /// # use bentocache::{Store};
        /// let store = Store::new().l2_write_in_background(true);
        /// ```
        l2_write_in_background(background: bool) =
            $crate::options::flag(background, |p, on| p.l2_write_in_background = on != 0)
    }};
    ($setter:ident skip_bus_notify) => { $crate::options::$setter! {
        /// Whether to skip the notification of other processes.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// cache.set("a", 1).skip_bus_notify(true).await?;
        /// # Ok(()) }
        /// ```
        skip_bus_notify(skip: bool) =
            $crate::options::flag(skip, |p, on| p.skip_bus_notify = on != 0)
    }};
}
pub(crate) use {option_row, option_setters, owned_setter, shared_setter};
