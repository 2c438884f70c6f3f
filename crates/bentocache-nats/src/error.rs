//! Errors, with advice for operators.

use std::error::Error as _;
use std::time::Duration;
use std::{fmt, io};

use async_nats::rustls::Error as TlsError;
use async_nats::{AuthError, ConnectError, ConnectErrorKind};
use bentocache_driver::kit::{TlsAdvice, tls_reason};
use bentocache_driver::{DriverError, ErrorKind};

use crate::rights::Right;

const TLS: TlsAdvice = TlsAdvice {
    trust: "name the authority with NatsBus::options and add_root_certificates",
    identify: "name a certificate that it accepts with NatsBus::options and add_client_certificate",
    plain: "write nats:// into the URL, or let the server speak it",
};

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("nats: {message}"))
}

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "nats: the driver was disconnected")
}

/// The client has ended, but the driver did not end it.
pub(crate) fn ended() -> DriverError {
    DriverError::new(
        ErrorKind::Closed,
        "nats: the client was closed, or the Tokio runtime that it lived on is shut down; make a \
         client on a running runtime",
    )
}

pub(crate) fn too_large(what: &str, size: usize, limit: usize, advice: &str) -> DriverError {
    DriverError::new(
        ErrorKind::TooLarge,
        format!("nats: a {what} of {size} bytes; the limit is {limit} bytes: {advice}"),
    )
}

/// A fault that an operator must fix.
pub(crate) fn denied(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Denied, format!("nats: {message}"))
}

/// The user lacks a right.
pub(crate) fn lacks(right: Right, subject: &str) -> DriverError {
    let right = right.name();
    denied(format_args!(
        "cannot {right}: the server refuses the subject {subject:?}; let an administrator give the \
         user the right to {right} there, as the guide shows"
    ))
}

/// `doing` completes "cannot …".
pub(crate) fn unavailable(doing: &str, reason: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Unavailable, format!("nats: cannot {doing}: {reason}"))
}

/// The reason why a call on a connection waits.
pub(crate) const UNCONFIRMED: &str = "the server has not answered; if it runs, the user may lack the right to publish to the \
     channel, or to publish and subscribe to _INBOX.>";
/// The reason why a call without a connection waits.
pub(crate) const OPENING: &str = "the server is not connected yet; is it running, the address right, and does it speak NATS at \
     that port?";

/// A timeout.
pub(crate) fn late(doing: &str, limit: Duration) -> DriverError {
    let message = format!("nats: cannot {doing} within {limit:?}: {UNCONFIRMED}");
    DriverError::new(ErrorKind::Timeout, message)
}

/// The first connection failed. The library's message may come from the server or the system, but
/// never from the URL.
pub(crate) fn connect(error: ConnectError, limit: Duration) -> DriverError {
    if let Some(words) = tls(&error).map(ToString::to_string) {
        let made = tls_reason(&words, &TLS).map_or_else(
            || unavailable("connect", format_args!("TLS has failed: {words}")),
            denied,
        );
        return made.with_source(error);
    }
    let provider = error.source().and_then(|source| source.downcast_ref::<AuthError>());
    if let Some(failed) = provider.map(ToString::to_string) {
        let reason = failed.strip_prefix("AuthError(").and_then(|said| said.strip_suffix(')'));
        return unavailable("connect", reason.unwrap_or(&failed));
    }
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => denied(
            "the server refuses the login; correct user, password or token, in the URL as in \
             nats://user:password@host, with NatsBus::credentials, or with NatsBus::options",
        ),
        ConnectErrorKind::TimedOut => unavailable(
            "connect",
            format_args!("no connection within {limit:?}; is the address right?"),
        ),
        ConnectErrorKind::Dns => {
            unavailable("connect", "the host's name has no address; is it right?")
        }
        ConnectErrorKind::Tls => {
            let reason = error.source().map(ToString::to_string).unwrap_or_default();
            config(format_args!(
                "TLS cannot be set up ({reason}); are the files of certificates and keys there that \
                 NatsBus::options names, and in PEM?"
            ))
            .with_source(error)
        }
        _ => unavailable("connect", "is the server running, and the address right?")
            .with_source(error),
    }
}

/// The TLS error that caused another error.
fn tls(error: &ConnectError) -> Option<&TlsError> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}
