//! TLS: the trusted authorities, and opening a connection.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::Failure;

/// The options of the setters, in PEM.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    pub(crate) root_certificate: Option<Vec<u8>>,
    /// Certificate and key.
    pub(crate) client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Checks the given certificates and key.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let roots = match &self.root_certificate {
            Some(pem) => given(pem)?,
            // The authorities of the system are read when they are needed.
            None => RootCertStore::empty(),
        };
        self.config(roots).map(drop)
    }

    /// Runs the TLS handshake.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Failure::config("a certificate cannot be for the host in the URL; correct its name")
        })?;
        let roots = match &self.root_certificate {
            Some(pem) => given(pem)?,
            // Read from files for each connection, so that changes take effect.
            None => spawn_blocking(of_the_system).await??,
        };
        let connector = TlsConnector::from(Arc::new(self.config(roots)?));
        connector.connect(name, stream).await.map_err(|wrong| match wrong.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Failure::unavailable(
                "the server has hung up while TLS was set up; does it speak TLS on that port, \
                 which is 5671 by default?",
            )
            .into(),
            _ => wrong,
        })
    }

    fn config(&self, roots: RootCertStore) -> Result<ClientConfig, Failure> {
        // Passed explicitly, so that it does not matter whether the process has no default provider
        // or several are compiled in. A provider that the application installed has precedence.
        let provider = CryptoProvider::get_default()
            .map_or_else(|| Arc::new(ring::default_provider()), Arc::clone);
        let wrong = |wrong| Failure::config(format!("TLS cannot be set up: {wrong}"));
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.client_certificate else {
            return Ok(builder.with_no_client_auth());
        };
        let certificates = certificates(certificate, "client_certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            // No part of the key.
            Failure::config("client_certificate has no private key in PEM")
        })?;
        builder
            .with_client_auth_cert(certificates, key)
            .map_err(|wrong| Failure::config(format!("client_certificate cannot be used: {wrong}")))
    }
}

/// The authorities in a PEM text.
fn given(pem: &[u8]) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "root_certificate")? {
        roots.add(certificate).map_err(|wrong| {
            Failure::config(format!("root_certificate cannot be used: {wrong}"))
        })?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], option: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(Failure::config(format!("{option} has no certificate in PEM"))),
    }
}

/// The authorities that the system trusts.
fn of_the_system() -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    // Some systems contain invalid ones.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Failure::denied(
            "the system trusts no authority of certificates; install its list, such as Debian's \
             package `ca-certificates`, or name the server's authority with root_certificate",
        ));
    }
    Ok(roots)
}
