//! The lock: lets one node of many run a factory.

use std::future::Future;
use std::time::Duration;

use crate::DriverError;

/// A lease on a key, shared between processes. It saves work; nothing relies on it for correctness.
///
/// The engine makes the tokens, renews the lease while the factory runs and releases it on every
/// path. All three operations compare the token in the same step in which they act.
pub trait LockDriver: Send + Sync + 'static {
    /// A short name for errors and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// Takes the lease if nobody has it; returns whether it did.
    ///
    /// # Errors
    /// When the service cannot tell. The engine goes on without the lock.
    fn acquire(
        &self,
        key: &str,
        token: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Prolongs the lease to that long from now if `token` still has it; returns whether it did.
    ///
    /// # Errors
    /// When the service cannot tell.
    fn renew(
        &self,
        key: &str,
        token: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Gives the lease back if `token` still has it; returns whether it did.
    ///
    /// # Errors
    /// When the service cannot tell. The lease then ends by itself.
    fn release(
        &self,
        key: &str,
        token: &str,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Ends what the driver runs and holds.
    ///
    /// # Errors
    /// When something could not be ended in order; it is ended all the same.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}
