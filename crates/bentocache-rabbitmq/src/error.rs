//! Errors, with advice for operators.

use std::time::Duration;
use std::{fmt, io};

#[cfg(feature = "tls")]
use bentocache_driver::kit::{TlsAdvice, tls_reason};
use bentocache_driver::{DriverError, ErrorKind};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind as Kind};

#[cfg(feature = "tls")]
const TLS: TlsAdvice = TlsAdvice {
    trust: "name the authority with root_certificate",
    identify: "name a certificate that it accepts with client_certificate",
    plain: "write amqp://, or the port for TLS, which is 5671 by default",
};

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("rabbitmq: {message}"))
}

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "rabbitmq: the driver was disconnected")
}

/// The task of the connection was dropped.
pub(crate) fn ended() -> DriverError {
    DriverError::new(
        ErrorKind::Closed,
        "rabbitmq: the Tokio runtime that the connection lived on is shut down; call again from a \
         running runtime",
    )
}

pub(crate) fn too_large(what: &str, size: usize, limit: usize, advice: &str) -> DriverError {
    DriverError::new(
        ErrorKind::TooLarge,
        format!("rabbitmq: a {what} of {size} bytes; the limit is {limit} bytes: {advice}"),
    )
}

/// The reason why a call on a connection waits.
pub(crate) const UNCONFIRMED: &str = "the server has not answered; it may be out of memory or of disk space, which stops all \
     publishers";
/// The reason why a call without a connection waits.
pub(crate) const OPENING: &str = "the server is not connected yet; is it running, the address right, and does it speak AMQP at \
     that port?";

/// A timeout.
pub(crate) fn late(doing: &str, limit: Duration) -> DriverError {
    let message = format!("rabbitmq: cannot {doing} within {limit:?}: {UNCONFIRMED}");
    DriverError::new(ErrorKind::Timeout, message)
}

/// The kind and the reason of an error, for an error that is returned more than once.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    kind: ErrorKind,
    reason: String,
}

impl Failure {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Unavailable, reason: reason.into() }
    }

    /// A fault that an operator must fix.
    pub(crate) fn denied(reason: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Denied, reason: reason.into() }
    }

    /// Invalid settings of the driver.
    #[cfg(feature = "tls")]
    pub(crate) fn config(reason: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Config, reason: reason.into() }
    }

    /// The server accepted no connection within this time.
    pub(crate) fn late(limit: Duration) -> Self {
        Self::unavailable(format!("no connection within {limit:?}; is the address right?"))
    }

    /// No connection could be opened.
    pub(crate) fn dialling(error: &io::Error) -> Self {
        Self::within(error).unwrap_or_else(|| {
            Self::unavailable(format!("{error}; is the server running, and the address right?"))
        })
    }

    /// The login failed.
    pub(crate) fn connecting(error: &Error) -> Self {
        if let Kind::ProtocolError(said) = error.kind() {
            let reason = match said.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                    "wrong user or password; correct them in the URL, or let the provider of \
                     credentials do so"
                }
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                    "the server refuses the virtual host to the user; name another at the end of \
                     the URL, %2f for the default one, or let an administrator set the permissions"
                }
                _ => return Self::new(error),
            };
            return Self::denied(reason);
        }
        let advice = "write amqps://, or the port for plain connections, which is 5672 by default";
        match error.kind() {
            Kind::ParsingError(_) => {
                Self::denied(format!("what answers is no RabbitMQ, or wants TLS; {advice}"))
            }
            // The answer of a TLS port may get lost.
            Kind::IOError(error) if Self::within(error).is_none() && is_hangup(error) => {
                Self::unavailable(format!(
                    "the server has hung up during the login; if the port is for TLS, {advice}"
                ))
            }
            _ => Self::new(error),
        }
    }

    pub(crate) fn new(error: &Error) -> Self {
        let Kind::ProtocolError(said) = error.kind() else {
            return match error.kind() {
                Kind::IOError(error) => Self::dialling(error),
                _ => Self::unavailable(format!(
                    "the connection is gone ({error}); it is being opened again"
                )),
            };
        };
        let text = said.get_message();
        match said.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::denied(format!(
                "the server says {text}; let an administrator give the user the rights to \
                 configure, write and read"
            )),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::denied(format!(
                "the server says {text}; somebody else has an exchange of that name: delete it, \
                 or give the store another name"
            )),
            _ => Self::unavailable(format!("the server says {text}")),
        }
    }

    /// The TLS error in an error of a connection.
    fn within(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        #[cfg(feature = "tls")]
        if let Some(wrong) = inner.downcast_ref::<tokio_rustls::rustls::Error>() {
            let words = wrong.to_string();
            let passes = || Self::unavailable(format!("TLS has failed: {words}"));
            return Some(tls_reason(&words, &TLS).map_or_else(passes, Self::denied));
        }
        inner.downcast_ref().cloned()
    }

    /// `doing` completes "cannot …".
    pub(crate) fn error(&self, doing: &str) -> DriverError {
        DriverError::new(self.kind, format!("rabbitmq: cannot {doing}: {}", self.reason))
    }
}

fn is_hangup(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
}
