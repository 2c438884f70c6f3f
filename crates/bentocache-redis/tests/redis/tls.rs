//! TLS, with certificates of a private authority. This process installs no cryptography provider.

use std::fs;
use std::path::PathBuf;

use bentocache_driver::{BusDriver, ErrorKind, L2Driver, Topic};
use bentocache_redis::{Redis, RedisBus};
use bentocache_testkit::unique;
use testservers::{Certificates, RedisServer};

use crate::common::{hears_again, next};

/// Certificates, and a directory in which the server finds them.
struct Files {
    certificates: Certificates,
    directory: PathBuf,
}

impl Files {
    fn make() -> Self {
        let directory = std::env::temp_dir().join(unique("bento-tls-"));
        fs::create_dir_all(&directory).expect("a directory");
        let certificates = Certificates::make();
        certificates.write(&directory);
        Self { certificates, directory }
    }

    fn authority(&self) -> &str {
        self.certificates.authority()
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
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

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_driver_speaks_tls() {
    let files = Files::make();
    let (_server, url) = files.server("no");
    let authority = files.authority();
    let redis = Redis::new(&url).root_certificate(authority);
    redis.connect().await.unwrap();
    let bus = RedisBus::new(&url).root_certificate(authority);
    let tracking = Redis::new(&url).root_certificate(authority).read_only_tracking();
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
    let files = Files::make();
    let (_server, url) = files.server("no");
    let other = Certificates::make();
    for redis in [Redis::new(&url), Redis::new(&url).root_certificate(other.authority())] {
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
    let files = Files::make();
    let (_server, url) = files.server("yes");
    let redis = Redis::new(&url).root_certificate(files.authority());
    redis.connect().await.unwrap_err();
    let redis = Redis::new(&url)
        .root_certificate(files.authority())
        .client_certificate(files.certificates.certificate(), files.certificates.key());
    redis.connect().await.unwrap();
    redis.set("a", "1".into(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_up_ports_and_certificates_get_advice() {
    let files = Files::make();
    let (server, url) = files.server("no");
    let plain = RedisServer::start();
    let tls_to_plain = plain.url().replace("redis://", "rediss://");
    let plain_to_tls = url.replace("rediss://", "redis://");
    let (wanting, wanting_url) = files.server("yes");
    // Each way to the server has its own path of errors.
    let open: [fn(&str) -> Redis; 3] = [
        |url| Redis::new(url),
        |url| Redis::cluster([url]),
        |url| Redis::sentinel([url], "primary"),
    ];
    for open in open {
        for (redis, advice) in [
            (open(&plain_to_tls), "rediss://"),
            (open(&tls_to_plain).root_certificate(files.authority()), "redis://"),
            (open(&url), "root_certificate"),
            (open(&wanting_url).root_certificate(files.authority()), "client_certificate"),
        ] {
            let error = redis.connect().await.unwrap_err();
            assert!(error.to_string().contains(advice), "{advice}: {error}");
        }
    }
    drop((server, wanting));
}

#[tokio::test]
async fn a_client_certificate_with_another_key_is_a_setting() {
    let [one, two] = [Certificates::make(), Certificates::make()];
    let redis = || Redis::new("rediss://localhost");
    for redis in [
        redis().client_certificate(one.certificate(), two.key()),
        redis().client_certificate(one.certificate(), "nonsense"),
        redis().client_certificate("nonsense", one.key()),
        Redis::cluster(["rediss://localhost"]).client_certificate(one.certificate(), two.key()),
    ] {
        let error = redis.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("client certificate"), "{error}");
    }
}
