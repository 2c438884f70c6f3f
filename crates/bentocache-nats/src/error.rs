//! What went wrong, and what to do about it.

use std::fmt;
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind};
use bentocache_core::{DriverError, ErrorKind};

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("nats: {message}"))
}

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "nats: the driver was disconnected")
}

pub(crate) fn too_large(what: &str, size: usize, limit: usize, advice: &str) -> DriverError {
    DriverError::new(
        ErrorKind::TooLarge,
        format!("nats: a {what} of {size} bytes; the limit is {limit} bytes: {advice}"),
    )
}

/// `doing` completes "cannot …".
pub(crate) fn unavailable(doing: &str, reason: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Unavailable, format!("nats: cannot {doing}: {reason}"))
}

/// No answer came in time.
pub(crate) fn late(doing: &str, limit: Duration) -> DriverError {
    DriverError::new(
        ErrorKind::Timeout,
        format!(
            "nats: cannot {doing}: the server has not answered within {limit:?}; if it runs, the \
             user may lack the right to publish to the channel, or to publish and subscribe to \
             _INBOX.>"
        ),
    )
}

/// The first connection failed. What the library says may come from the server or the system, but
/// never from the URL.
pub(crate) fn connect(error: ConnectError, limit: Duration) -> DriverError {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => config(
            "the server refuses the login; correct user, password or token, in the URL as in \
             nats://user:password@host, or with NatsBus::options",
        ),
        ConnectErrorKind::TimedOut => unavailable(
            "connect",
            format_args!("no connection within {limit:?}; is the address right?"),
        ),
        ConnectErrorKind::Dns => {
            unavailable("connect", "the host's name has no address; is it right?")
        }
        ConnectErrorKind::Tls => unavailable(
            "connect",
            "TLS failed; name the authority of the server's certificate with NatsBus::options and \
             add_root_certificates",
        )
        .with_source(error),
        _ => unavailable("connect", "is the server running, and the address right?")
            .with_source(error),
    }
}
