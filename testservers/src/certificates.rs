//! Certificates for servers that speak TLS.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A certificate for the address 127.0.0.1, and for no name, with the authority of its own that
/// signed it; made by the program `openssl`, from Debian's package `openssl`. Valid for two days.
///
/// A client may use the certificate, too, to show who it is.
#[derive(Debug)]
pub struct Certificates {
    authority: String,
    certificate: String,
    key: String,
}

const EXTENSIONS: &str = "subjectAltName=IP:127.0.0.1\n";

/// What makes a private key that is small and soon made.
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

impl Certificates {
    /// Makes them.
    ///
    /// # Panics
    /// When `openssl` is missing or fails.
    pub fn make() -> Self {
        let directory =
            std::env::temp_dir().join(bentocache_testkit::unique("bento-certificates-"));
        fs::create_dir_all(&directory).expect("a directory for the certificates");
        fs::write(directory.join("extensions"), EXTENSIONS).expect("a file");
        let openssl = |arguments: &[&str], more: &[&str]| {
            let mut openssl = Command::new("openssl");
            openssl.args(arguments).args(more).current_dir(&directory);
            let output = openssl.output().expect("the program `openssl`");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let authority = ["-subj", "/CN=authority", "-out", "ca.crt", "-keyout", "ca.key"];
        openssl(&[&["req", "-x509", "-days", "2"], &authority[..]].concat(), &KEY);
        let request = ["req", "-subj", "/CN=server", "-out", "server.csr", "-keyout", "server.key"];
        openssl(&request, &KEY);
        let sign = ["x509", "-req", "-days", "2", "-in", "server.csr", "-out", "server.crt"];
        let by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions"];
        openssl(&sign, &by);
        let made = Self::read(&directory);
        let _ = fs::remove_dir_all(&directory);
        made
    }

    /// Those that were written into a directory.
    ///
    /// # Panics
    /// When they are not there.
    pub fn read(directory: &Path) -> Self {
        let read = |name| fs::read_to_string(directory.join(name)).expect("a file");
        Self { authority: read("ca.crt"), certificate: read("server.crt"), key: read("server.key") }
    }

    /// The certificate of the authority, in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The server's certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The private key of the server's certificate, in PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Writes them into a directory: `ca.crt`, `server.crt` and `server.key`.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, directory: &Path) {
        for (name, text) in [
            ("ca.crt", &self.authority),
            ("server.crt", &self.certificate),
            ("server.key", &self.key),
        ] {
            fs::write(directory.join(name), text).expect("a file for a certificate");
        }
    }
}
