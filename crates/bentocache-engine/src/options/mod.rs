//! Options: set partially on several levels, merged into one policy per call.

mod hooks;
mod policy;
mod table;

use std::time::Duration;

pub(crate) use bentocache_driver::NEVER;
use bentocache_driver::kit::Backoff;
pub use bentocache_driver::{ByteSize, TimeSpan};

use crate::error::{Error, Result};
use crate::wire::codec::Codec;
#[cfg(feature = "encryption")]
use crate::wire::seal::KeyRing;

pub(crate) use self::hooks::{Hook, Hooks, hook_setter};
pub(crate) use self::policy::Policy;
pub(crate) use self::table::{
    Setting, flag, option_row, option_setters, owned_setter, shared_setter, time,
};

/// Milliseconds of a time, rounded up to at least 1 unless 0; `none` for no limit.
pub(crate) fn limit(time: impl Into<TimeSpan>, option: &'static str, none: u64) -> Result<u64> {
    Ok(time.into().limit(option)?.map_or(none, millis))
}

/// As [`limit`], but 0 is an error, too.
pub(crate) fn limit_above_0(time: impl Into<TimeSpan>, option: &'static str) -> Result<u64> {
    match limit(time, option, NEVER)? {
        0 => Err(Error::InvalidOption { option, given: "0".into(), expected: "a time above 0" }),
        ms => Ok(ms),
    }
}

/// As [`limit`], but a negative time counts as 0: a ttl in the past.
pub(crate) fn ttl(time: impl Into<TimeSpan>, option: &'static str) -> Result<u64> {
    Ok(time.into().ttl(option)?.map_or(NEVER, millis))
}

/// The lease of a lock, in milliseconds.
pub(crate) fn lock_lease(time: impl Into<TimeSpan>) -> Result<u64> {
    match limit(time, "lock_lease", NEVER)? {
        ms @ 100..=86_400_000 => Ok(ms),
        ms => Err(Error::InvalidOption {
            option: "lock_lease",
            given: if ms == NEVER { "no end".into() } else { format!("{ms} ms").into() },
            expected: "a time from 100 ms to a day",
        }),
    }
}

/// The number of factories that may run at the same time.
pub(crate) fn max_factories(most: usize) -> Result<usize> {
    match most {
        0 => Err(Error::InvalidOption {
            option: "max_factories",
            given: "0".into(),
            expected: "a number above 0; without the option there is no limit",
        }),
        most => Ok(most),
    }
}

/// A number of bytes.
pub(crate) fn bytes(size: impl Into<ByteSize>, option: &'static str) -> Result<u64> {
    Ok(size.into().bytes(option)?)
}

/// A duration in whole milliseconds, rounded up; [`NEVER`] if it does not fit.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(NEVER)
}

/// What tags belong to, as the option `tag_scope` accepts it: [`TagScope::NAMESPACE`] or
/// [`TagScope::STORE`], or the texts `"namespace"` and `"store"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagScope(std::result::Result<bool, Box<str>>);

impl TagScope {
    /// Each namespace has its own tags.
    pub const NAMESPACE: Self = Self(Ok(false));
    /// All namespaces of a store share their tags.
    pub const STORE: Self = Self(Ok(true));

    pub(crate) fn shares(self) -> Result<bool> {
        self.0.map_err(|given| Error::InvalidOption {
            option: "tag_scope",
            given,
            expected: "\"namespace\" or \"store\"",
        })
    }
}

impl From<&str> for TagScope {
    fn from(text: &str) -> Self {
        match text {
            "namespace" => Self::NAMESPACE,
            "store" => Self::STORE,
            other => Self(Err(other.into())),
        }
    }
}

/// The policy for L1 while the bus is down; see
/// [`Store::when_bus_is_down`](crate::Store::when_bus_is_down).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BusDown {
    /// Serve L1 as usual.
    #[default]
    Serve,
    /// Check entries against L2 if the last check is older than this.
    CheckAfter(Duration),
}

impl BusDown {
    /// How long an entry that cannot be checked is served, in ms.
    pub(crate) fn longest_unchecked(self) -> u64 {
        match self {
            Self::Serve => NEVER,
            Self::CheckAfter(age) => millis(age),
        }
    }
}

/// The options of one level. A `None` is inherited from the level below.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// Options that a call can change, in the order in which they were set.
    settings: Vec<Setting>,
    pub(crate) prefix: Option<String>,
    pub(crate) tag_check_interval: Option<u64>,
    pub(crate) tag_scope: Option<bool>,
    pub(crate) version: Option<u32>,
    pub(crate) lock_lease: Option<u64>,
    pub(crate) max_factories: Option<usize>,
    pub(crate) enabled: Option<bool>,
    pub(crate) log_keys: Option<bool>,
    pub(crate) codec: Option<Codec>,
    #[cfg(feature = "encryption")]
    pub(crate) encryption: Option<std::sync::Arc<KeyRing>>,
    pub(crate) breaker: Option<Option<BreakerOptions>>,
    pub(crate) recovery: Option<(usize, u64)>,
    pub(crate) recovery_max_bytes: Option<u64>,
    pub(crate) recovery_mode: Option<RecoveryMode>,
    pub(crate) bus_down: Option<BusDown>,
    pub(crate) hooks: Hooks,
    /// Codes of the advisor that are not reported, of all levels.
    pub(crate) silenced: Vec<String>,
    /// The first invalid text; `build` returns it.
    pub(crate) error: Option<Error>,
}

/// When the circuit breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BreakerOptions {
    pub(crate) open_for: u64,
    pub(crate) after_failures: u32,
}

/// How failed changes are queued and replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecoveryOptions {
    /// The largest number of changes.
    pub(crate) max_size: usize,
    /// The largest size in bytes, keys and values together.
    pub(crate) max_bytes: usize,
    pub(crate) retry_interval: u64,
    pub(crate) mode: RecoveryMode,
}

/// The treatment of a `set` that failed to reach L2, once L2 works again; see
/// [`Store::recovery_mode`](crate::Store::recovery_mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RecoveryMode {
    /// No invalidated value is restored. The set is stored in place of an older value that still
    /// exists. If nothing is stored, another node may have deleted the key meanwhile: then the set
    /// is stored only if the bus had no gap since, and dropped otherwise.
    #[default]
    Safe,
    /// The set is stored, unless a newer value exists. It may restore a key that another node
    /// deleted during the outage. For values whose loss is worse than that, such as sessions.
    LastWrite,
}

impl RecoveryOptions {
    /// The pauses between attempts to repeat what failed. Nodes agree within 5 seconds of the server's
    /// return.
    pub(crate) fn backoff(&self) -> Backoff {
        backoff(self.retry_interval, Duration::from_millis(3_750))
    }
}

/// Pauses of at least the interval, at first of a quarter more, later up to `longest`: nodes that failed
/// together must not come back together.
pub(crate) fn backoff(interval: u64, longest: Duration) -> Backoff {
    let interval = Duration::from_millis(interval);
    let first = interval + interval / 4;
    Backoff::new(first, first.max(longest)).jitter(0.2)
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        Self {
            max_size: 10_000,
            max_bytes: 64 << 20,
            retry_interval: 2_000,
            mode: RecoveryMode::Safe,
        }
    }
}

impl Options {
    pub(crate) fn recovery(&self) -> RecoveryOptions {
        let default = RecoveryOptions::default();
        let (max_size, retry_interval) =
            self.recovery.unwrap_or((default.max_size, default.retry_interval));
        let max_bytes = self
            .recovery_max_bytes
            .map_or(default.max_bytes, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let mode = self.recovery_mode.unwrap_or_default();
        RecoveryOptions { max_size, max_bytes, retry_interval, mode }
    }

    /// These options, with those of `lower` where these are not set.
    pub(crate) fn or(self, lower: &Self) -> Self {
        let settings = [&lower.settings[..], &self.settings].concat();
        let hooks = self.hooks.or(&lower.hooks);
        let silenced = [&lower.silenced[..], &self.silenced].concat();
        macro_rules! merge {
            ($($field:ident)*) => {
                Self {
                    settings,
                    hooks,
                    silenced,
                    #[cfg(feature = "encryption")]
                    encryption: self.encryption.or_else(|| lower.encryption.clone()),
                    $($field: self.$field.or_else(|| lower.$field.clone())),*
                }
            };
        }
        merge!(
            prefix tag_check_interval tag_scope version lock_lease enabled log_keys codec breaker
            recovery max_factories
            recovery_max_bytes recovery_mode bus_down error
        )
    }

    /// The policy of a call that sets no option.
    pub(crate) fn policy(&self, has_l1: bool) -> Policy {
        let mut policy = Policy::new(has_l1);
        self.settings.iter().for_each(|setting| setting.apply(&mut policy));
        policy
    }

    pub(crate) fn hook(&mut self, hook: Hook) {
        self.hooks.set(hook);
    }

    /// Keeps a setting, or its error, which `build` returns.
    pub(crate) fn set(&mut self, setting: Result<Setting>) {
        let setting = self.take(setting);
        self.settings.extend(setting);
    }

    /// Keeps the value of a setter, or its error, which `build` returns.
    pub(crate) fn take<T>(&mut self, value: Result<T>) -> Option<T> {
        value.map_err(|error| self.error.get_or_insert(error)).ok()
    }
}

/// The setting for a share of the ttl, at which early refresh starts.
pub(crate) fn share(value: f32) -> Result<Setting> {
    if (0.0..1.0).contains(&value) {
        return Ok(Setting::EarlyRefresh(value));
    }
    Err(Error::InvalidOption {
        option: "early_refresh",
        given: value.to_string().into(),
        expected: "a share of the ttl from 0 (off) to below 1, such as 0.2",
    })
}

/// The setters that the whole cache and each store share.
macro_rules! level_setters {
    ($type:ty) => {
        impl $type {
            $crate::options::option_setters! { owned_setter:
                ttl l1_ttl grace grace_backoff timeout hard_timeout lock_timeout factory_timeout
                l2_timeout early_refresh jitter tag_ttl suppress_l2_errors announce_fills
                l2_write_in_background l2_ttl sliding
            }

            /// The prefix of every key: `prefix:namespace:key`. Trailing colons are removed. It may
            /// be empty. Default `bentocache`.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().prefix("shop");
            /// ```
            pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
                self.options.prefix = Some(prefix.into());
                self
            }

            /// How many factories of a store may run at the same time, to protect the source. A
            /// factory for many keys is one, and those that run in the background count too. Who
            /// waits for a place waits within its own timeouts: it gets a stale value, or the error
            /// of the timeout. Calls that a running factory makes do not wait for a place, so
            /// nothing hangs. Default: no limit.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().max_factories(20).hard_timeout("5s");
            /// ```
            #[doc(alias("concurrency", "bulkhead", "semaphore"))]
            pub fn max_factories(mut self, most: usize) -> Self {
                let most = self.options.take($crate::options::max_factories(most));
                self.options.max_factories = most.or(self.options.max_factories);
                self
            }

            /// The circuit breaker of L2: after this many failures in a row, calls of L2 are
            /// skipped for `open_for`; then one call at a time probes it. Default: 1 second after 5
            /// failures. `"off"` makes every call.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().l2_circuit_breaker("10s", 5);
            /// ```
            pub fn l2_circuit_breaker(
                mut self,
                open_for: impl Into<TimeSpan>,
                after_failures: u32,
            ) -> Self {
                self.options.breaker = self
                    .options
                    .take($crate::options::limit(open_for, "l2_circuit_breaker", 0))
                    .map(|open_for| {
                        (open_for > 0).then_some($crate::options::BreakerOptions {
                            open_for,
                            after_failures: after_failures.max(1),
                        })
                    });
                self
            }

            /// How long the known state of a tag is relied on without a working bus, before L2 is
            /// read again. Default 1 second.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().tag_check_interval("500ms");
            /// ```
            pub fn tag_check_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
                self.options.tag_check_interval = self.options.take($crate::options::limit(
                    interval,
                    "tag_check_interval",
                    NEVER,
                ));
                self
            }

            /// Whether a tag belongs to the namespace of the handle that uses it, which is the default
            /// and what the Node library does, or to the whole store: then `delete_by_tag` through
            /// any handle invalidates the values of all namespaces.
            ///
            /// ```
            /// # use bentocache::{BentoCache, Memory, Store};
            /// # #[tokio::main(flavor = "current_thread")]
            /// # async fn main() -> Result<(), bentocache::Error> {
            /// let store = Store::new().l1(Memory::new()).tag_scope("store");
            /// let cache = BentoCache::builder().store("m", store).build().await?;
            /// cache.namespace("users").set("42", 1).tags(["team:1"]).await?;
            /// cache.delete_by_tag(["team:1"]).await?;
            /// assert!(cache.namespace("users").missing("42").await?);
            /// # Ok(()) }
            /// ```
            pub fn tag_scope(mut self, scope: impl Into<TagScope>) -> Self {
                self.options.tag_scope = self.options.take(scope.into().shares());
                self
            }

            /// The version of all values, as [`Cache::version`](crate::Cache::version).
            ///
            /// ```
            /// # use bentocache::{Memory, Store};
            /// let store = Store::new().l1(Memory::new()).version(2);
            /// ```
            pub fn version(mut self, version: u32) -> Self {
                self.options.version = Some(version);
                self
            }

            /// With a [`lock`](Store::lock): the lease time of a key. The node renews the lease
            /// while its factory runs. If the node crashes, other nodes wait this long. From 100 ms
            /// to a day; default 10 seconds.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().lock_lease("30s");
            /// ```
            pub fn lock_lease(mut self, lease: impl Into<TimeSpan>) -> Self {
                self.options.lock_lease = self.options.take($crate::options::lock_lease(lease));
                self
            }

            $crate::options::hook_setter!(on_factory_error);
            $crate::options::hook_setter!(stale_if);
            $crate::options::hook_setter!(expected_errors);

            /// `false` disables the cache: every read is a miss, factories run, nothing is stored,
            /// and no driver is called. For tests, and to find out whether the cache causes a
            /// problem.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().enabled(std::env::var("NO_CACHE").is_err());
            /// ```
            pub fn enabled(mut self, enabled: bool) -> Self {
                self.options.enabled = Some(enabled);
                self
            }

            /// The codec of values in L2. Default JSON, which the Node library reads too.
            ///
            /// ```
            /// # use bentocache::{Codec, Store};
            /// let store = Store::new().codec(Codec::json());
            /// ```
            pub fn codec(mut self, codec: Codec) -> Self {
                self.options.codec = Some(codec);
                self
            }

            /// Encrypts the values in L2, with their times and tags. Keys, expiry times and the
            /// markers of tags stay readable there. The Node library cannot read such values.
            /// Values that are not encrypted, or that no key of the ring decrypts, are misses.
            ///
            /// ```
            /// # use bentocache::{KeyRing, Store};
            /// # fn key(_: &str) -> String { "00".repeat(32) }
            /// let store = Store::new().encryption(KeyRing::new(1, key("CACHE_KEY")));
            /// ```
            #[cfg(feature = "encryption")]
            pub fn encryption(mut self, ring: $crate::KeyRing) -> Self {
                let ring = ring.checked().map_err(|(given, expected)| {
                    let given = given.into();
                    $crate::Error::InvalidOption { option: "encryption", given, expected }
                });
                let ring = self.options.take(ring);
                self.options.encryption = ring.map(std::sync::Arc::new);
                self
            }

            /// Whether keys may appear in logs and traces. Default false.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().log_keys(true);
            /// ```
            pub fn log_keys(mut self, log: bool) -> Self {
                self.options.log_keys = Some(log);
                self
            }

            /// Takes a finding off the list of [`advice`](crate::Cache::advice), and logs no warning
            /// for it. The guide `docs/advisor.md` lists the codes.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().silence_advice("l2-without-bus");
            /// ```
            pub fn silence_advice(mut self, code: impl Into<String>) -> Self {
                self.options.silenced.push(code.into());
                self
            }

            /// The recovery queue: how many changes that failed to reach L2 are kept, and the
            /// interval of their replay, with growing pauses of at most 5 seconds while it keeps
            /// failing. Default 10,000 and 2 seconds; a size of 0 keeps none. If the queue is full,
            /// the oldest write is given up, and invalidations are merged into a clear of their
            /// namespace.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().recovery(50_000, "1s");
            /// ```
            pub fn recovery(mut self, max_size: usize, interval: impl Into<TimeSpan>) -> Self {
                self.options.recovery = self
                    .options
                    .take($crate::options::limit(interval, "recovery", NEVER))
                    .map(|retry_interval| (max_size, retry_interval.max(1)));
                self
            }

            /// The largest memory for changes that wait for L2, and for messages that wait for the
            /// bus. Default `"64mb"`.
            ///
            /// ```
            /// # use bentocache::{Store};
            /// let store = Store::new().recovery_max_bytes("16mb");
            /// ```
            pub fn recovery_max_bytes(mut self, bytes: impl Into<ByteSize>) -> Self {
                self.options.recovery_max_bytes =
                    self.options.take($crate::options::bytes(bytes, "recovery_max_bytes"));
                self
            }

            /// The treatment of a `set` that failed to reach L2. Default [`RecoveryMode::Safe`].
            ///
            /// ```
            /// # use bentocache::{RecoveryMode, Store};
            /// let store = Store::new().recovery_mode(RecoveryMode::LastWrite);
            /// ```
            pub fn recovery_mode(mut self, mode: RecoveryMode) -> Self {
                self.options.recovery_mode = Some(mode);
                self
            }

            /// The policy for L1 while the bus is down, and for values with tags while L2 is
            /// unavailable and cannot return their markers. Default: serve as usual.
            ///
            /// ```
            /// # use bentocache::{BusDown, Store};
            /// let age = std::time::Duration::from_secs(10);
            /// let store = Store::new().when_bus_is_down(BusDown::CheckAfter(age));
            /// ```
            pub fn when_bus_is_down(mut self, policy: BusDown) -> Self {
                self.options.bus_down = Some(policy);
                self
            }
        }
    };
}
pub(crate) use level_setters;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_above_0_is_never_rounded_down_to_0() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_micros(1_500)), 2);
        assert_eq!(millis(Duration::MAX), NEVER);
    }

    #[test]
    fn bad_texts_name_the_option_and_the_text() {
        let error = limit("soon", "grace", 0).unwrap_err().to_string();
        assert!(error.contains("grace") && error.contains("soon"), "{error}");
        let error = bytes("ten", "max_size").unwrap_err().to_string();
        assert!(error.contains("max_size") && error.contains("ten"), "{error}");
    }

    #[test]
    fn below_0_is_a_ttl_of_0_and_an_error_elsewhere() {
        assert_eq!(ttl("-5m", "ttl").unwrap(), 0);
        assert!(limit("-5m", "timeout", NEVER).is_err());
    }
}
