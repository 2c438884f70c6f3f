//! What the words of a TLS library mean.

/// What a user does about a TLS failure, in the terms of a driver. Each completes "…; ".
#[derive(Debug, Clone, Copy)]
pub struct TlsAdvice {
    /// How the driver learns which authority to trust: "name the authority with `root_certificate`".
    pub trust: &'static str,
    /// How the driver shows who it is: "set `client_certificate`".
    pub identify: &'static str,
    /// How to connect without TLS: "use redis://".
    pub plain: &'static str,
}

/// The reason and the remedy for a TLS failure that an operator has to repair.
///
/// `words` is what rustls says. Clients that hide its errors mostly pass on its words. `None` for words
/// that are of something else, or of a failure that may pass.
///
/// ```
/// use bentocache_driver::kit::{TlsAdvice, tls_reason};
///
/// const ADVICE: TlsAdvice = TlsAdvice {
///     trust: "name the authority with root_certificate",
///     identify: "set client_certificate",
///     plain: "use redis://",
/// };
/// let reason = tls_reason("invalid peer certificate: UnknownIssuer", &ADVICE).unwrap();
/// assert!(reason.contains("not trusted; name the authority with root_certificate"), "{reason}");
/// assert_eq!(tls_reason("connection refused", &ADVICE), None);
/// ```
pub fn tls_reason(words: &str, advice: &TlsAdvice) -> Option<String> {
    let TlsAdvice { trust, identify, plain } = *advice;
    // The first that fits. Errors of rustls with and without details have different words.
    let reasons: [(&[&str], &str, &str); 11] = [
        (
            // The signature is bad when another authority has the same name, its predecessor perhaps.
            &["UnknownIssuer", "BadSignature"],
            "the server's certificate is signed by an authority that is not trusted",
            trust,
        ),
        (
            &["not valid for name", "NotValidForName"],
            "the server's certificate is for another host",
            "write a name that is on it into the URL",
        ),
        (
            &["certificate expired", "certificate: Expired"],
            "the server's certificate has expired",
            "renew it, or correct the clock of this machine",
        ),
        (
            &["certificate not valid yet", "NotValidYet"],
            "the server's certificate is not valid yet",
            "correct the clock of this machine",
        ),
        (
            &["invalid peer certificate"],
            "the server's certificate cannot be trusted",
            "give the server another",
        ),
        (&["CertificateRequired"], "the server wants a certificate of the client", identify),
        (&["CertificateExpired"], "the certificate of the client has expired", identify),
        (
            &["alert: DecryptError"],
            "the certificate of the client and its key do not belong together",
            identify,
        ),
        (
            &[
                "BadCertificate",
                "CertificateUnknown",
                "HandshakeFailure",
                "UnknownCA",
                "UnsupportedCertificate",
            ],
            "the server refuses the certificate of the client, or that there is none",
            identify,
        ),
        (&["corrupt message"], "the server does not speak TLS at this port", plain),
        (
            &["peer is incompatible"],
            "the server's TLS is too old or too limited",
            "let it speak TLS 1.2 or 1.3",
        ),
    ];
    let fits = |known: &&str| words.contains(known);
    let (_, reason, remedy) = reasons.iter().find(|(known, ..)| known.iter().any(fits))?;
    Some(format!("{reason}; {remedy} (TLS says: {words})"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

    use super::*;

    const ADVICE: TlsAdvice =
        TlsAdvice { trust: "trust it", identify: "identify yourself", plain: "be plain" };

    fn reason(error: &Error) -> Option<String> {
        tls_reason(&error.to_string(), &ADVICE)
    }

    #[test]
    fn certificates_of_the_server_are_explained() {
        use CertificateError::*;
        let now = UnixTime::now();
        let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(1));
        let expected = ServerName::try_from("host").unwrap();
        for (wrong, advice) in [
            (UnknownIssuer, "not trusted; trust it"),
            (BadSignature, "not trusted; trust it"),
            (NotValidForName, "another host"),
            (NotValidForNameContext { expected, presented: Vec::new() }, "a name that is on it"),
            (Expired, "renew it"),
            (ExpiredContext { time: now, not_after: long_ago }, "renew it"),
            (NotValidYet, "clock"),
            (NotValidYetContext { time: long_ago, not_before: now }, "clock"),
            (Revoked, "give the server another"),
        ] {
            let error = Error::InvalidCertificate(wrong);
            let reason = reason(&error).unwrap_or_else(|| panic!("{error}"));
            assert!(reason.contains(advice), "{reason}");
            assert!(reason.contains(&error.to_string()), "{reason}");
        }
    }

    #[test]
    fn refusals_of_the_client_are_explained() {
        use AlertDescription::*;
        for alert in [
            BadCertificate,
            CertificateExpired,
            CertificateRequired,
            CertificateUnknown,
            DecryptError,
            HandshakeFailure,
            UnknownCA,
            UnsupportedCertificate,
        ] {
            let reason =
                reason(&Error::AlertReceived(alert)).unwrap_or_else(|| panic!("{alert:?}"));
            assert!(reason.contains("; identify yourself (TLS says: "), "{reason}");
        }
    }

    #[test]
    fn other_protocols_are_explained() {
        let plain = Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert!(reason(&plain).unwrap().contains("does not speak TLS at this port; be plain"));
        let old = Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13);
        assert!(reason(&old).unwrap().contains("TLS 1.2 or 1.3"));
    }

    #[test]
    fn what_may_pass_has_no_advice() {
        for error in [Error::AlertReceived(AlertDescription::InternalError), Error::DecryptError] {
            assert_eq!(reason(&error), None, "{error}");
        }
        assert_eq!(tls_reason("Connection refused", &ADVICE), None);
    }
}
