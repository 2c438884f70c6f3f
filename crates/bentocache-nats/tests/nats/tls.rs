//! TLS, with certificates of a private authority. This process installs no cryptography provider.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Instant;

use bentocache_driver::{BusDriver, BusEvent, DriverError, ErrorKind};
use bentocache_nats::NatsBus;
use bentocache_testkit::unique;
use tempfile::TempDir;
use testservers::{Certificates, NatsServer};

use crate::common::{self, PATIENCE, hears_again, lost, restored, topic};

static CERTIFICATES: LazyLock<Certificates> = LazyLock::new(Certificates::make);

/// A directory with the certificates, because the library reads them from files.
fn files() -> (TempDir, impl Fn(&str) -> PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    CERTIFICATES.write(directory.path());
    let path = directory.path().to_owned();
    (directory, move |name| path.join(name))
}

fn trusting(url: String, authority: PathBuf) -> NatsBus {
    NatsBus::new(url).options(move |options| options.add_root_certificates(authority.clone()))
}

/// The error of a first call, which must not show the password.
async fn refused(bus: NatsBus) -> DriverError {
    let error = bus.publish(topic(), "1".into()).await.unwrap_err();
    assert!(!format!("{error:?} {error} {bus:?}").contains("s3cret"), "{error:?}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_want_tls_get_it() {
    let server = NatsServer::start_with_tls(&CERTIFICATES, &["--user", "u", "--pass", "s3cret"]);
    let (_directory, file) = files();
    // Also when the URL does not speak of it.
    for scheme in ["tls", "nats"] {
        let url = format!("{scheme}://u:s3cret@{}", server.addr());
        let bus = trusting(url, file("ca.crt"));
        let mut stream = bus.subscribe(topic()).await.unwrap();
        assert_eq!(hears_again(&bus, &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_reported_over_tls() {
    let server = NatsServer::start_with_tls(&CERTIFICATES, &[]);
    let (_directory, file) = files();
    let url = format!("tls://{}", server.addr());
    let bus = trusting(url.clone(), file("ca.crt"));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for _ in 0..2 {
        server.kill();
        lost(&mut stream).await;
        let error = bus.publish(topic(), "1".into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        server.restart();
        restored(&mut stream).await;
        // Confirmed: what anybody publishes now arrives.
        let other = trusting(url.clone(), file("ca.crt"));
        let message = unique("by another");
        other.publish(topic(), message.clone().into()).await.unwrap();
        assert_eq!(common::next(&mut stream).await, BusEvent::Message(message.into()));
        assert_eq!(hears_again(&bus, &mut stream).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_trusted() {
    let server = NatsServer::start_with_tls(&CERTIFICATES, &["--user", "u", "--pass", "s3cret"]);
    let other = tempfile::tempdir().unwrap();
    Certificates::make().write(other.path());
    // With what the system trusts, which may be nothing, and with another authority.
    for scheme in ["tls", "nats"] {
        let url = format!("{scheme}://u:s3cret@{}", server.addr());
        for bus in [NatsBus::new(&url), trusting(url, other.path().join("ca.crt"))] {
            let error = refused(bus).await;
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            let said = error.to_string();
            assert!(said.contains("not trusted") && said.contains("add_root_cert"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_the_host_is_checked() {
    let server = NatsServer::start_with_tls(&CERTIFICATES, &["--user", "u", "--pass", "s3cret"]);
    let (_directory, file) = files();
    let url = format!("tls://u:s3cret@localhost:{}", server.addr().port());
    let error = refused(trusting(url, file("ca.crt"))).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let said = error.to_string();
    assert!(said.contains("localhost") && said.contains("write a name that is on it"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_says_so() {
    let server = NatsServer::start_with(&["--user", "u", "--pass", "s3cret"]);
    let (_directory, file) = files();
    let error =
        refused(trusting(format!("tls://u:s3cret@{}", server.addr()), file("ca.crt"))).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_want_a_certificate() {
    let server = NatsServer::start_with_tls(&CERTIFICATES, &["--tlsverify"]);
    let (_directory, file) = files();
    let url = format!("tls://{}", server.addr());
    // It refuses after the handshake: when the connection is gone first, the reason is not heard.
    let start = Instant::now();
    while !refused(trusting(url.clone(), file("ca.crt")))
        .await
        .to_string()
        .contains("add_client_certificate")
    {
        assert!(start.elapsed() < PATIENCE, "the reason is never heard");
    }
    let (authority, certificate, key) = (file("ca.crt"), file("server.crt"), file("server.key"));
    let bus = NatsBus::new(url).options(move |options| {
        let options = options.add_root_certificates(authority.clone());
        options.add_client_certificate(certificate.clone(), key.clone())
    });
    let mut stream = bus.subscribe(topic()).await.unwrap();
    assert_eq!(hears_again(&bus, &mut stream).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_missing_are_named() {
    let server = NatsServer::start_with_tls(&CERTIFICATES, &[]);
    let (_directory, file) = files();
    let url = format!("tls://{}", server.addr());
    let error = refused(trusting(url, file("nowhere.crt"))).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
}
