//! Functions of the caller that are told of factory errors, or decide about them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::Error;

type ErrorHook = Arc<dyn Fn(&Error) + Send + Sync>;
type ErrorTest = Arc<dyn Fn(&Error) -> bool + Send + Sync>;

/// One hook, as set on one level.
#[derive(Clone)]
pub(crate) enum Hook {
    OnFactoryError(ErrorHook),
    StaleIf(ErrorTest),
    ExpectedErrors(ErrorTest),
}

/// The hooks of one level, or of a call.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    on_factory_error: Option<ErrorHook>,
    stale_if: Option<ErrorTest>,
    expected_errors: Option<ErrorTest>,
}

impl Hooks {
    pub(crate) fn set(&mut self, hook: Hook) {
        match hook {
            Hook::OnFactoryError(hook) => self.on_factory_error = Some(hook),
            Hook::StaleIf(test) => self.stale_if = Some(test),
            Hook::ExpectedErrors(test) => self.expected_errors = Some(test),
        }
    }

    /// These hooks, with those of `lower` where these are not set.
    pub(crate) fn or(self, lower: &Self) -> Self {
        Self {
            on_factory_error: self.on_factory_error.or_else(|| lower.on_factory_error.clone()),
            stale_if: self.stale_if.or_else(|| lower.stale_if.clone()),
            expected_errors: self.expected_errors.or_else(|| lower.expected_errors.clone()),
        }
    }

    pub(crate) fn has_stale_if(&self) -> bool {
        self.stale_if.is_some()
    }

    /// Whether there is a hook that a failure of a factory calls.
    pub(crate) fn has_failure_hook(&self) -> bool {
        self.on_factory_error.is_some() || self.stale_if.is_some()
    }

    /// Calls the hook for a factory failure.
    pub(crate) fn report(&self, store: &str, error: &Error) {
        let Some(hook) = &self.on_factory_error else { return };
        contained(store, "on_factory_error", || hook(error));
    }

    /// Whether a stale value may be served in place of this error of a factory.
    pub(crate) fn allow_stale(&self, store: &str, error: &Error) -> bool {
        if error.is_not_found() {
            return false;
        }
        let Some(test) = &self.stale_if else { return true };
        contained(store, "stale_if", || test(error)).unwrap_or(true)
    }

    /// Whether this error of a factory is an answer rather than a fault.
    pub(crate) fn expect(&self, store: &str, error: &Error) -> bool {
        if error.is_not_found() {
            return true;
        }
        let Some(test) = &self.expected_errors else { return false };
        contained(store, "expected_errors", || test(error)).unwrap_or(false)
    }
}

/// Runs a hook and contains its panic.
fn contained<R>(store: &str, hook: &'static str, run: impl FnOnce() -> R) -> Option<R> {
    let result = catch_unwind(AssertUnwindSafe(run));
    if result.is_err() {
        tracing::error!(store, "the hook `{hook}` panicked");
    }
    result.ok()
}

/// The setter of a hook, for a builder or request whose field `options` keeps it.
macro_rules! hook_setter {
    (on_factory_error) => {
        /// A hook for every failure of a factory, in the foreground and in the background. The hook
        /// of a call replaces that of the store. A panic in it is contained.
        ///
        /// ```
        /// # use bentocache::Store;
        /// let store = Store::new().on_factory_error(|error| eprintln!("{error}"));
        /// ```
        pub fn on_factory_error(
            mut self,
            hook: impl Fn(&$crate::error::Error) + Send + Sync + 'static,
        ) -> Self {
            self.options.hook($crate::options::Hook::OnFactoryError(std::sync::Arc::new(hook)));
            self
        }
    };
    (stale_if) => {
        /// For which errors of the factory a stale value may be served, by default for all. For the
        /// others, the caller gets the error, and the stale value stays for later calls.
        ///
        /// ```
        /// # use bentocache::Store;
        /// // Only an unreachable source is a reason to serve an old value.
        /// let store = Store::new()
        ///     .grace("6h")
        ///     .stale_if(|error| error.is_timeout() || error.factory::<std::io::Error>().is_some());
        /// ```
        #[doc(alias("stale-if-error"))]
        pub fn stale_if(
            mut self,
            test: impl Fn(&$crate::error::Error) -> bool + Send + Sync + 'static,
        ) -> Self {
            self.options.hook($crate::options::Hook::StaleIf(std::sync::Arc::new(test)));
            self
        }
    };
    (expected_errors) => {
        /// Which errors of the factory are answers, such as "not found", rather than faults: they
        /// are logged at debug level instead of as warnings. By default only
        /// [`Failure::not_found`](crate::Failure::not_found).
        ///
        /// ```
        /// # use bentocache::Store;
        /// # #[derive(Debug)] enum DbError { NoRow, Down }
        /// # impl std::fmt::Display for DbError {
        /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
        /// # }
        /// # impl std::error::Error for DbError {}
        /// let store = Store::new().expected_errors(|error| {
        ///     matches!(error.factory::<DbError>(), Some(DbError::NoRow))
        /// });
        /// ```
        pub fn expected_errors(
            mut self,
            test: impl Fn(&$crate::error::Error) -> bool + Send + Sync + 'static,
        ) -> Self {
            self.options.hook($crate::options::Hook::ExpectedErrors(std::sync::Arc::new(test)));
            self
        }
    };
}
pub(crate) use hook_setter;
