//! The lock: lets one of many nodes run a factory.

use std::future::Future;
use std::time::Duration;

use crate::DriverError;

/// A lease on a key, shared between processes. It saves work; correctness does not depend on it.
///
/// The engine creates the tokens, renews the lease while the factory runs, and releases it on every
/// path. All three operations compare the token and act in one atomic step.
pub trait LockDriver: Send + Sync + 'static {
    /// A short name for errors and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// Acquires the lease if it is free; returns whether it did.
    ///
    /// # Errors
    /// If the service cannot tell. The engine continues without the lock.
    fn acquire(
        &self,
        key: &str,
        token: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Extends the lease to this time from now if `token` still holds it; returns whether it did.
    ///
    /// # Errors
    /// If the service cannot tell.
    fn renew(
        &self,
        key: &str,
        token: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Releases the lease if `token` still holds it; returns whether it did.
    ///
    /// # Errors
    /// If the service cannot tell. The lease then expires by itself.
    fn release(
        &self,
        key: &str,
        token: &str,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Ends the driver's tasks and connections.
    ///
    /// # Errors
    /// If a part could not be closed in order; it is closed nevertheless.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}
