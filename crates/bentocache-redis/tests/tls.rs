//! TLS, with certificates of an authority of its own. Nothing in this process installs a provider
//! of cryptography.
#![cfg(feature = "tls")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bentocache_core::{BusDriver, ErrorKind, L2Driver, Topic};
use bentocache_redis::{Redis, RedisBus, RedisTracking};
use bentocache_testkit::server::RedisServer;
use bentocache_testkit::unique;
use common::{hears_again, next};

/// A directory with an authority, and a certificate of its for 127.0.0.1.
struct Certificates(PathBuf);

impl Certificates {
    fn make() -> Self {
        let directory = std::env::temp_dir().join(unique("bento-tls-"));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost")
            .expect("a file");
        let made = Self(directory);
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        made.openssl(
            &[
                "req",
                "-x509",
                "-days",
                "2",
                "-subj",
                "/CN=authority",
                "-out",
                "ca.crt",
                "-keyout",
                "ca.key",
            ],
            &key,
        );
        made.openssl(
            &["req", "-subj", "/CN=server", "-out", "server.csr", "-keyout", "server.key"],
            &key,
        );
        let sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext"];
        made.openssl(
            &["x509", "-req", "-days", "2", "-in", "server.csr", "-out", "server.crt"],
            &sign,
        );
        made
    }

    fn openssl(&self, arguments: &[&str], more: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments).args(more).current_dir(&self.0);
        let output = openssl.output().expect("the program `openssl`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(Path::new(&self.path(name))).expect("a file")
    }

    /// A server that speaks TLS only, wants a password, and a client certificate if asked to.
    fn server(&self, auth_clients: &str) -> (RedisServer, String) {
        let server = RedisServer::start_with(&[
            "--tls-cert-file",
            &self.path("server.crt"),
            "--tls-key-file",
            &self.path("server.key"),
            "--tls-ca-cert-file",
            &self.path("ca.crt"),
            "--tls-auth-clients",
            auth_clients,
            "--requirepass",
            "secret",
        ]);
        let port = server.port().to_string();
        server.cli(&["-a", "secret", "config", "set", "port", "0"]);
        assert_eq!(server.cli(&["-a", "secret", "config", "set", "tls-port", &port]), "OK");
        let url = format!("rediss://:secret@127.0.0.1:{port}");
        (server, url)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_driver_speaks_tls() {
    let certificates = Certificates::make();
    let (_server, url) = certificates.server("no");
    let authority = certificates.read("ca.crt");
    let redis = Redis::new(&url).root_certificate(authority.clone());
    redis.connect().await.unwrap();
    let bus = RedisBus::new(&url).root_certificate(authority.clone());
    let tracking = RedisTracking::new(&url).root_certificate(authority.clone());
    let topic = Topic::new("bentocache.notifications", "app:");
    let mut messages = bus.subscribe(topic).await.unwrap();
    let mut changes = tracking.subscribe(topic).await.unwrap();
    redis.set("app:a", "1".into(), None).await.unwrap();
    assert_eq!(redis.get("app:a").await.unwrap(), Some("1".into()));
    next(&mut changes).await;
    assert_eq!(hears_again(&bus, topic, &mut messages).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_trusted() {
    let certificates = Certificates::make();
    let (_server, url) = certificates.server("no");
    let other = Certificates::make();
    for redis in [Redis::new(&url), Redis::new(&url).root_certificate(other.read("ca.crt"))] {
        let error = redis.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let error = Redis::new(format!("{url}#insecure")).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let error = Redis::new(&url).root_certificate("nonsense").connect().await.unwrap_err();
    assert_ne!(error.to_string(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_want_a_certificate() {
    let certificates = Certificates::make();
    let (_server, url) = certificates.server("yes");
    let redis = Redis::new(&url).root_certificate(certificates.read("ca.crt"));
    redis.connect().await.unwrap_err();
    let redis = Redis::new(&url)
        .root_certificate(certificates.read("ca.crt"))
        .client_certificate(certificates.read("server.crt"), certificates.read("server.key"));
    redis.connect().await.unwrap();
    redis.set("a", "1".into(), None).await.unwrap();
}
