//! Errors, with advice for operators.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use bentocache_driver::kit::{TlsAdvice, tls_reason};
use bentocache_driver::{DriverError, ErrorKind};

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

/// A part of a batch was left unprocessed repeatedly.
pub(crate) fn left_out(doing: &str, table: &str) -> DriverError {
    let message = format!("dynamodb, table {table:?}: cannot {doing}: {THROTTLED}");
    DriverError::new(ErrorKind::Unavailable, message)
}

pub(crate) const THROTTLED: &str = "the table or the account is throttled; raise the table's capacity or \
                         switch it to on-demand";

/// The reason why a request failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) reason: String,
    pub(crate) retry: Retry,
    /// The code of the service's answer.
    pub(crate) code: Option<String>,
}

/// Whether the same request may be sent again:
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// it was not executed.
    Always,
    /// it may have been executed.
    IfHarmless,
    Never,
}

impl Failure {
    pub(crate) fn late(limit: Duration) -> Self {
        let reason = format!("no answer within {limit:?}; is the endpoint right?");
        Self { kind: ErrorKind::Timeout, reason, retry: Retry::IfHarmless, code: None }
    }

    /// `doing` completes "cannot …".
    pub(crate) fn error(&self, doing: &str, table: &str) -> DriverError {
        let reason = &self.reason;
        let message = format!("dynamodb, table {table:?}: cannot {doing}: {reason}");
        DriverError::new(self.kind, message)
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
                let code = answer.err().code().unwrap_or(NO_CODE);
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
            _ if lacks_credentials(error) => (
                ErrorKind::Denied,
                format!(
                    "there are no credentials ({}); set them with DynamoDb::credentials, in the \
                     environment, the profile, or the role of the machine",
                    root(error)
                ),
                Retry::Never,
            ),
            SdkError::ResponseError(_) => (
                ErrorKind::Denied,
                format!("what answers at the endpoint is no DynamoDB ({})", root(error)),
                Retry::Never,
            ),
            _ => match endpoint_advice(&root(error)) {
                Some(reason) => (ErrorKind::Denied, reason, Retry::Never),
                None => (
                    ErrorKind::Unavailable,
                    format!("{}; are region, endpoint and credentials right?", root(error)),
                    Retry::IfHarmless,
                ),
            },
        };
        Self { kind, reason, retry, code: None }
    }
}

/// The meaning of texts of the HTTP and TLS libraries that a retry cannot fix.
fn endpoint_advice(words: &str) -> Option<String> {
    const TLS: TlsAdvice = TlsAdvice {
        trust: "add the authority to those of the system",
        identify: "use an endpoint that wants none",
        plain: "write http:// into the URL of the endpoint",
    };
    if words.contains("invalid HTTP version") {
        return Some(format!(
            "the endpoint does not answer in HTTP; if it expects TLS, write https:// in its URL \
             ({words})"
        ));
    }
    tls_reason(words, &TLS)
}

/// The code for an answer without one: it does not come from the service.
const NO_CODE: &str = "no code";

fn explain(code: &str, message: Option<&str>, status: u16) -> (ErrorKind, String, Retry) {
    use ErrorKind::{Denied, Full, TooLarge, Unavailable};
    let said = || format!("the service says {code}: {}", message.unwrap_or("no more"));
    let says = |words: &str| message.is_some_and(|message| message.contains(words));
    match code {
        "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "RequestLimitExceeded" => (Unavailable, THROTTLED.to_owned(), Retry::Always),
        "ReplicatedWriteConflictException" => (Unavailable, said(), Retry::Always),
        "LimitExceededException" => (
            Full,
            format!("{}; have the limit of the account raised, or use less of it", said()),
            Retry::Always,
        ),
        "ItemCollectionSizeLimitExceededException" => (
            Full,
            format!("{}; the table has an index of its own: use another table", said()),
            Retry::Never,
        ),
        "ResourceNotFoundException" => (
            Denied,
            "there is no such table in the region; create it with DynamoDb::create_table, or \
             correct table, region or endpoint"
                .to_owned(),
            Retry::Never,
        ),
        // A signature is valid for some minutes.
        "InvalidSignatureException" | "RequestTimeTooSkewed" | "RequestExpired"
            if code != "InvalidSignatureException"
                || says("expired")
                || says("not yet current") =>
        {
            (
                Denied,
                format!(
                    "{}; the clock of this machine differs from the service's: correct it, such \
                     as by NTP",
                    said()
                ),
                Retry::Never,
            )
        }
        "ExpiredTokenException" | "ExpiredToken" => {
            (Denied, format!("{}; renew the credentials", said()), Retry::Never)
        }
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignatureException"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OptInRequired" => {
            (Denied, format!("{}; correct the credentials or their rights", said()), Retry::Never)
        }
        // Not the message, which may contain a value.
        "ValidationException" if says("size") => (
            TooLarge,
            "the item is larger than the 400 KiB of the service".to_owned(),
            Retry::Never,
        ),
        "ValidationException" => (
            Denied,
            "the service refuses the request; is the table's only key a partition key named `key` \
             of type string?"
                .to_owned(),
            Retry::Never,
        ),
        _ if status >= 500 => (Unavailable, said(), Retry::IfHarmless),
        NO_CODE | "UnknownOperationException" => (
            Denied,
            format!("what answers at the endpoint is no DynamoDB (status {status}); correct it"),
            Retry::Never,
        ),
        _ => (Unavailable, said(), Retry::Never),
    }
}

/// Whether the request was never sent, because it could not be signed.
fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.into_iter().any(|error| {
        let text = error.to_string();
        // The library has no public type for all of them.
        ["credential", "identity resolver"].iter().any(|words| text.contains(words))
    })
}

/// The root cause of an error.
fn root(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_about_the_endpoint_are_explained() {
        for (words, advice) in [
            ("received corrupt message of type InvalidContentType", "http://"),
            ("invalid HTTP version parsed", "https://"),
            ("invalid peer certificate: UnknownIssuer", "authority"),
        ] {
            let reason = endpoint_advice(words).unwrap();
            assert!(reason.contains(advice) && reason.contains(words), "{reason}");
        }
        assert_eq!(endpoint_advice("Connection refused"), None);
    }

    #[test]
    fn codes_have_a_kind_and_advice() {
        use ErrorKind::{Denied, Full, TooLarge, Unavailable};
        for (code, message, kind, advice) in [
            ("ThrottlingException", "", Unavailable, "on-demand"),
            ("LimitExceededException", "", Full, "account"),
            ("ResourceNotFoundException", "", Denied, "create_table"),
            ("AccessDeniedException", "", Denied, "rights"),
            ("UnrecognizedClientException", "", Denied, "credentials"),
            ("ExpiredTokenException", "", Denied, "renew"),
            ("InvalidSignatureException", "does not match", Denied, "credentials"),
            ("InvalidSignatureException", "Signature expired: 1 is now 2", Denied, "clock"),
            ("InvalidSignatureException", "Signature not yet current: 1", Denied, "clock"),
            ("ValidationException", "Item size has exceeded", TooLarge, "400 KiB"),
            ("ValidationException", "a value", Denied, "partition key"),
            (NO_CODE, "", Denied, "no DynamoDB"),
            ("InternalServerError", "", Unavailable, "InternalServerError"),
        ] {
            let status = if code == "InternalServerError" { 500 } else { 400 };
            let (made, reason, _) = explain(code, Some(message), status);
            assert_eq!(made, kind, "{code}: {reason}");
            assert!(reason.contains(advice), "{code}: {reason}");
            assert!(!reason.contains("a value"), "{reason}");
        }
    }
}
