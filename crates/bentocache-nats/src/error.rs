//! What went wrong, and what to do about it.

use std::error::Error as _;
use std::time::Duration;
use std::{fmt, io};

use async_nats::rustls::{AlertDescription, CertificateError, Error as TlsError};
use async_nats::{AuthError, ConnectError, ConnectErrorKind};
use bentocache_driver::{DriverError, ErrorKind};

use crate::rights::Right;

pub(crate) fn config(message: impl fmt::Display) -> DriverError {
    DriverError::new(ErrorKind::Config, format!("nats: {message}"))
}

pub(crate) fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "nats: the driver was disconnected")
}

/// The client has gone, and not by this driver.
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

/// What an operator has to repair.
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

/// What a call waits for on a connection.
pub(crate) const UNCONFIRMED: &str = "the server has not answered; if it runs, the user may lack the right to publish to the \
     channel, or to publish and subscribe to _INBOX.>";
/// What a call waits for without one.
pub(crate) const OPENING: &str = "the server is not connected yet; is it running, the address right, and does it speak NATS at \
     that port?";

/// No answer came in time.
pub(crate) fn late(doing: &str, limit: Duration) -> DriverError {
    let message = format!("nats: cannot {doing} within {limit:?}: {UNCONFIRMED}");
    DriverError::new(ErrorKind::Timeout, message)
}

/// The first connection failed. What the library says may come from the server or the system, but
/// never from the URL.
pub(crate) fn connect(error: ConnectError, limit: Duration) -> DriverError {
    if let Some(made) = tls(&error).map(explain) {
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

/// The error of TLS that is the reason of another.
fn tls(error: &ConnectError) -> Option<&TlsError> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

/// Reason and remedy.
fn explain(error: &TlsError) -> DriverError {
    match error {
        // The signature is bad when another authority has the same name, its predecessor perhaps.
        TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => denied(
            "the server's certificate is signed by an authority that is not trusted; name the \
             authority with NatsBus::options and add_root_certificates",
        ),
        TlsError::InvalidCertificate(
            wrong @ (CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }),
        ) => denied(format_args!(
            "the server's certificate is for another host ({wrong}); write a name that is on it \
             into the URL"
        )),
        TlsError::InvalidCertificate(
            wrong @ (CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }),
        ) => denied(format_args!(
            "the server's certificate is out of date ({wrong}); renew it, or correct the clock"
        )),
        TlsError::InvalidCertificate(wrong) => denied(format_args!(
            "the server's certificate cannot be trusted ({wrong}); give the server another"
        )),
        TlsError::InvalidMessage(_) => denied(
            "the server does not speak TLS; write nats:// into the URL, or let the server speak it",
        ),
        TlsError::PeerIncompatible(wrong) => denied(format_args!(
            "the server's TLS is too old or too limited ({wrong:?}); let it speak TLS 1.2 or 1.3"
        )),
        TlsError::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::HandshakeFailure
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate),
        ) => denied(format_args!(
            "the server refuses TLS with this side ({alert:?}); name a certificate that it accepts \
             with NatsBus::options and add_client_certificate"
        )),
        wrong => unavailable("connect", format_args!("TLS has failed: {wrong}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_repairs_is_denied() {
        for error in [
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer),
            TlsError::InvalidCertificate(CertificateError::NotValidForName),
            TlsError::InvalidCertificate(CertificateError::Revoked),
            TlsError::InvalidCertificate(CertificateError::Expired),
            TlsError::InvalidCertificate(CertificateError::NotValidYet),
            TlsError::AlertReceived(AlertDescription::CertificateRequired),
        ] {
            let made = explain(&error);
            assert_eq!(made.kind(), ErrorKind::Denied, "{made}");
        }
        for error in
            [TlsError::AlertReceived(AlertDescription::InternalError), TlsError::DecryptError]
        {
            let made = explain(&error);
            assert_eq!(made.kind(), ErrorKind::Unavailable, "{made}");
        }
    }
}
