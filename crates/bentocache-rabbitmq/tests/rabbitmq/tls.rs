//! TLS, with certificates of an authority of its own. Nothing in this process installs a provider
//! of cryptography.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, breakable, certificates, in_time, next, restored, server, topic};
use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, ErrorKind};
use bentocache_rabbitmq::RabbitMqBus;
use testservers::{Certificates, FaultProxy};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// A bus that trusts the authority of the servers.
fn trusting(url: impl Into<String>) -> RabbitMqBus {
    RabbitMqBus::new(url).root_certificate(certificates().authority())
}

/// The same, which also shows who it is.
fn known(url: impl Into<String>) -> RabbitMqBus {
    let (certificate, key) = (certificates().certificate(), certificates().key());
    trusting(url).client_certificate(certificate, key)
}

/// The error of a first call, which must not show the password.
async fn refused(bus: RabbitMqBus) -> DriverError {
    let error = bus.publish(topic(), "1".into()).await.unwrap_err();
    assert!(!format!("{error:?} {error} {bus:?}").contains("guest"), "{error:?}");
    error
}

/// The number in the next message; `None` for a loss.
async fn next_number(stream: &mut BusStream) -> Option<usize> {
    match next(stream).await {
        BusEvent::Message(message) => Some(std::str::from_utf8(&message).unwrap().parse().unwrap()),
        BusEvent::Lost => None,
        event => panic!("{event:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_of_traffic() {
    let server = breakable().await;
    let bus = known(server.tls_url());
    let publisher = known(server.tls_url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let is_seen_over = Arc::clone(&is_over);
    let traffic = tokio::spawn(async move {
        let mut confirmed = Vec::new();
        for number in 0_usize.. {
            match publisher.publish(topic(), number.to_string().into()).await {
                Ok(()) => confirmed.push(number),
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            if is_seen_over.load(Relaxed) && confirmed.last() == Some(&number) {
                break;
            }
        }
        confirmed
    });
    for _ in 0..20 {
        next_number(&mut stream).await.expect("a message");
    }
    server.kill();
    while next_number(&mut stream).await.is_some() {}
    server.restart();
    restored(&mut stream).await;
    let mut heard = Vec::new();
    while heard.len() < 20 {
        heard.push(next_number(&mut stream).await.expect("a message"));
    }
    is_over.store(true, Relaxed);
    let confirmed = traffic.await.unwrap();
    while heard.last() != confirmed.last() {
        heard.push(next_number(&mut stream).await.expect("a message"));
    }
    // From the first one on that came after the gap, none is missing.
    let since: Vec<_> = confirmed.into_iter().filter(|number| *number >= heard[0]).collect();
    assert!(since.len() >= 19, "{since:?}");
    assert!(since.iter().all(|number| heard.contains(number)), "{since:?}, but {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_want_a_certificate() {
    let server = breakable().await;
    in_time(async || known(server.tls_url()).publish(topic(), "1".into()).await).await;
    // It refuses after the handshake: when the connection is gone first, the reason is not heard.
    let start = Instant::now();
    while !refused(trusting(server.tls_url())).await.to_string().contains("client_certificate") {
        assert!(start.elapsed() < PATIENCE, "the reason is never heard");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_opened_again() {
    let proxy = FaultProxy::start(server().tls_addr()).await.unwrap();
    let bus = trusting(format!("amqps://{}", proxy.addr())).heartbeat(Duration::from_secs(1));
    let mut stream = bus.subscribe(topic()).await.unwrap();
    proxy.cut();
    while next(&mut stream).await != BusEvent::Lost {}
    while next(&mut stream).await != BusEvent::Restored {}
    // A broken cable is noticed by missing heartbeats.
    proxy.freeze();
    while next(&mut stream).await != BusEvent::Lost {}
    proxy.pass().await.unwrap();
    while next(&mut stream).await != BusEvent::Restored {}
    in_time(async || bus.publish(topic(), "over again".into()).await).await;
    while next(&mut stream).await != BusEvent::Message("over again".into()) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_trusted() {
    let other = Certificates::make();
    let url = server().tls_url();
    // With what the system trusts, which may be nothing, and with another authority.
    for bus in [RabbitMqBus::new(&url), RabbitMqBus::new(&url).root_certificate(other.authority())]
    {
        let error = refused(bus).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("with root_certificate"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_the_host_is_checked() {
    let port = server().tls_addr().port();
    let error = refused(trusting(format!("amqps://guest:guest@localhost:{port}"))).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let said = error.to_string();
    assert!(said.contains("localhost") && said.contains("write a name that is on it"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_for_something_else_say_so() {
    let error = refused(trusting(server().url().replace("amqp:", "amqps:"))).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    // Its answer is an alert of TLS, which may get lost when it hangs up.
    let error = refused(RabbitMqBus::new(server().tls_url().replace("amqps:", "amqp:"))).await;
    assert!(error.to_string().contains("write amqps://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_up_during_the_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqps://guest:guest@{}", listener.local_addr().unwrap());
    let rude = tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut hello = [0; 1];
            connection.read_exact(&mut hello).await.unwrap();
        }
    });
    let error = refused(trusting(url)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("hung up while TLS"), "{error}");
    rude.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_certificate_says_so() {
    let url = server().tls_url();
    let (certificate, key) = (certificates().certificate(), certificates().key());
    let other = Certificates::make();
    let garbage = certificate.replace("MI", "IM");
    for (bus, option) in [
        (RabbitMqBus::new(&url).root_certificate("nonsense"), "root_certificate"),
        (RabbitMqBus::new(&url).root_certificate(garbage), "root_certificate"),
        (trusting(&url).client_certificate("nonsense", key), "client_certificate"),
        (trusting(&url).client_certificate(certificate, "guest"), "client_certificate"),
        (trusting(&url).client_certificate(certificate, other.key()), "client_certificate"),
        // Before anything is connected.
        (RabbitMqBus::new("amqps://nowhere.invalid").root_certificate(""), "root_certificate"),
    ] {
        let error = refused(bus).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(option), "{error}");
    }
    // For plain connections it is of no importance.
    let bus = RabbitMqBus::new(server().url()).root_certificate("nonsense");
    bus.publish(topic(), "1".into()).await.unwrap();
}
