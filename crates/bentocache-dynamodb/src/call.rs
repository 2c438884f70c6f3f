//! One request, with retries.

use std::error::Error;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{self, timeout::TimeoutConfig};
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use bentocache_driver::kit::Backoff;
use bentocache_driver::{DriverError, LastTrouble};
use tokio::time::timeout;

use crate::error::{Failure, Retry};

/// The most attempts of a request.
const TRIES: u32 = 8;

/// The client and its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) table: String,
    pub(crate) timeout: Duration,
    /// The reason of retries.
    pub(crate) trouble: LastTrouble,
}

/// A call: the end of the sentence "cannot …", and whether a repetition is harmless.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) doing: &'static str,
    repeats: bool,
}

impl Call {
    /// A call that must not be repeated.
    pub(crate) const fn once(doing: &'static str) -> Self {
        Self { doing, repeats: false }
    }

    pub(crate) const fn again(doing: &'static str) -> Self {
        Self { doing, repeats: true }
    }
}

impl Caller {
    /// The options of each request: the driver itself retries.
    pub(crate) fn settings(&self) -> config::Builder {
        config::Builder::new()
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(self.timeout).build())
    }

    /// The error of a call that failed.
    pub(crate) fn told(&self, call: Call, failure: &Failure) -> DriverError {
        failure.error(call.doing, &self.table)
    }

    /// Sends a request until it succeeds or a retry cannot help.
    pub(crate) async fn send<T, E, Sent>(
        &self,
        call: Call,
        request: impl Fn() -> Sent,
    ) -> Result<T, DriverError>
    where
        E: ProvideErrorMetadata + Error + 'static,
        Sent: Future<Output = Result<T, SdkError<E>>>,
    {
        self.try_send(call, request).await.map_err(|failure| self.told(call, &failure))
    }

    /// The same; `None` if the condition of the request was not met.
    pub(crate) async fn send_if<T, E, Sent>(
        &self,
        call: Call,
        request: impl Fn() -> Sent,
    ) -> Result<Option<T>, DriverError>
    where
        E: ProvideErrorMetadata + Error + 'static,
        Sent: Future<Output = Result<T, SdkError<E>>>,
    {
        match self.try_send(call, request).await {
            Ok(answer) => Ok(Some(answer)),
            Err(failure) if failure.is("ConditionalCheckFailedException") => Ok(None),
            Err(failure) => Err(self.told(call, &failure)),
        }
    }

    /// The same, with the plain failure.
    pub(crate) async fn try_send<T, E, Sent>(
        &self,
        call: Call,
        request: impl Fn() -> Sent,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + Error + 'static,
        Sent: Future<Output = Result<T, SdkError<E>>>,
    {
        let mut tries = Tries::default();
        loop {
            let failure = match timeout(self.timeout, request()).await {
                Ok(Ok(answer)) => {
                    self.trouble.is_over();
                    return Ok(answer);
                }
                Ok(Err(error)) => Failure::new(&error),
                Err(_) => Failure::late(self.timeout),
            };
            let may = match failure.retry {
                Retry::Always => true,
                Retry::IfHarmless => call.repeats,
                Retry::Never => false,
            };
            if failure.is("ConditionalCheckFailedException") {
                self.trouble.is_over();
            } else {
                self.trouble.note(&*failure.reason);
            }
            if !may || !tries.next().await {
                return Err(failure);
            }
        }
    }
}

/// The attempts of one request.
pub(crate) struct Tries(Backoff);

impl Default for Tries {
    fn default() -> Self {
        Self(Backoff::new(Duration::from_millis(25), Duration::from_secs(1)))
    }
}

impl Tries {
    /// Waits before the next attempt; `false` at once if there were enough.
    pub(crate) async fn next(&mut self) -> bool {
        if self.0.failures() + 1 >= TRIES {
            return false;
        }
        self.0.pause().await;
        true
    }
}
