//! What went wrong, and what to do about it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use bentocache_core::{DriverError, ErrorKind};

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "dynamodb: the driver was disconnected")
}

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("dynamodb: {message}"))
}

pub(crate) fn refused(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Refused, format!("dynamodb: {message}"))
}

pub(crate) fn too_large(what: &str, size: usize, limit: usize) -> DriverError {
    DriverError::new(
        ErrorKind::TooLarge,
        format!("dynamodb: a {what} of {size} bytes; the limit is {limit} bytes"),
    )
}

/// Part of a batch was left out again and again.
pub(crate) fn left_out(doing: &str) -> DriverError {
    DriverError::new(ErrorKind::Unavailable, format!("dynamodb: cannot {doing}: {THROTTLED}"))
}

const THROTTLED: &str = "the table or the account is throttled; raise the table's capacity or \
                         switch it to on-demand";

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) reason: String,
    pub(crate) retry: Retry,
    /// The code of the service's answer.
    pub(crate) code: Option<String>,
}

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It was not carried out.
    Always,
    /// It may have been carried out.
    IfHarmless,
    Never,
}

impl Failure {
    pub(crate) fn late(limit: Duration) -> Self {
        let reason = format!("no answer within {limit:?}; is the endpoint right?");
        Self { kind: ErrorKind::Timeout, reason, retry: Retry::IfHarmless, code: None }
    }

    /// `doing` completes "cannot …".
    pub(crate) fn error(&self, doing: &str) -> DriverError {
        DriverError::new(self.kind, format!("dynamodb: cannot {doing}: {}", self.reason))
    }

    pub(crate) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    pub(crate) fn new<E>(error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let (kind, reason, retry) = match error {
            SdkError::ServiceError(answer) => {
                let code = answer.err().code().unwrap_or("no code");
                let (kind, reason, retry) =
                    explain(code, answer.err().message(), answer.raw().status().as_u16());
                return Self { kind, reason, retry, code: Some(code.to_owned()) };
            }
            SdkError::TimeoutError(_) => {
                (ErrorKind::Timeout, "no answer in time".to_owned(), Retry::IfHarmless)
            }
            SdkError::ConstructionFailure(_) => (
                ErrorKind::Config,
                format!("{}; set region and credentials", root(error)),
                Retry::Never,
            ),
            _ => (
                ErrorKind::Unavailable,
                format!("{}; are region, endpoint and credentials right?", root(error)),
                Retry::IfHarmless,
            ),
        };
        Self { kind, reason, retry, code: None }
    }
}

fn explain(code: &str, message: Option<&str>, status: u16) -> (ErrorKind, String, Retry) {
    use ErrorKind::{Config, TooLarge, Unavailable};
    let said = || format!("the service says {code}: {}", message.unwrap_or("no more"));
    match code {
        "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "RequestLimitExceeded"
        | "LimitExceededException" => (Unavailable, THROTTLED.to_owned(), Retry::Always),
        "ReplicatedWriteConflictException" => (Unavailable, said(), Retry::Always),
        "ResourceNotFoundException" => (
            Config,
            "there is no such table in the region; create it with DynamoDb::create_table, or \
             correct table, region or endpoint"
                .to_owned(),
            Retry::Never,
        ),
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "MissingAuthenticationTokenException" => {
            (Config, format!("{}; correct the credentials or their rights", said()), Retry::Never)
        }
        "ExpiredTokenException" => {
            (Unavailable, "the credentials have expired; renew them".to_owned(), Retry::Never)
        }
        // Not the message, in which there may be a value.
        "ValidationException" if message.is_some_and(|message| message.contains("size")) => (
            TooLarge,
            "the item is larger than the 400 KiB of the service".to_owned(),
            Retry::Never,
        ),
        "ValidationException" => (
            Config,
            "the service refuses the request; is the table's only key a partition key named `key` \
             of type string?"
                .to_owned(),
            Retry::Never,
        ),
        _ if status >= 500 => (Unavailable, said(), Retry::IfHarmless),
        _ => (Unavailable, said(), Retry::Never),
    }
}

/// What is at the bottom of an error.
fn root(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}
