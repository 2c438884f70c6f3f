//! Cancelled attempts to connect. Alone in its binary, because it counts resources of the process.
#![allow(clippy::unwrap_used)]

use std::any::Any;
use std::collections::HashSet;
use std::time::Duration;

use bentocache_driver::{BusDriver, ErrorKind, Topic};
use bentocache_rabbitmq::RabbitMqBus;
use testservers::wait_for;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

/// The number of the library's threads in this process: one per connection.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let names =
        tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin-io-loop")).count()
}

/// The number of TCP sockets of this process. Runtimes have other sockets, and a library may start
/// a runtime.
fn sockets() -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("Linux");
    let inode = |line: &str| Some(format!("socket:[{}]", line.split_whitespace().nth(9)?));
    let tcp: HashSet<String> = table.lines().skip(1).filter_map(inode).collect();
    let files = std::fs::read_dir("/proc/self/fd").expect("Linux");
    let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.filter(|target| tcp.contains(&*target.to_string_lossy())).count()
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// A server that greets as told and then says nothing more, against a bus.
async fn nothing_is_left<G>(greet: G, bus: impl FnOnce(String) -> RabbitMqBus)
where
    G: AsyncFn(TcpStream) -> Box<dyn Any>,
{
    let before = (sockets(), tasks());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bus = bus(listener.local_addr().unwrap().to_string());
    let bus = bus.connect_timeout(Duration::from_millis(300));
    let mut connections = Vec::new();
    let silent = async {
        while connections.len() < 4 {
            connections.push(greet(listener.accept().await.unwrap().0).await);
        }
    };
    let fails = async {
        let topic = Topic::new("bentocache.notifications:test", "app:");
        let error = bus.publish(topic, "1".into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("within 300ms"), "{error}");
    };
    // It tries on, and no attempt leaves a thread behind: the servers' ends are still open.
    tokio::join!(silent, fails);
    wait_for("the attempts to end", || threads() <= 1);
    drop(bus);
    wait_for("the last attempt to end", || threads() == 0);
    // The server's own, and those that the system has accepted for it.
    drop((connections, listener));
    // Not exactly what was there before: something of the former case may still have been ending.
    wait_for("everything to be given back", || sockets() <= before.0 && tasks() <= before.1);
}

/// Attempts at a port where nobody listens.
async fn nothing_is_left_of_refusals() {
    let before = tasks();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bus = RabbitMqBus::new(format!("amqp://{}", listener.local_addr().unwrap()));
    drop(listener);
    let topic = Topic::new("bentocache.notifications:test", "app:");
    let error = bus.publish(topic, "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    drop(bus);
    wait_for("the tasks to end", || tasks() <= before);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_are_given_up_leave_nothing() {
    nothing_is_left_of_refusals().await;
    let silent = async |stream| Box::new(stream) as Box<dyn Any>;
    nothing_is_left(silent, |addr| RabbitMqBus::new(format!("amqp://{addr}"))).await;
    #[cfg(feature = "tls")]
    {
        use testservers::Certificates;
        use tls::acceptor;

        let certificates = Certificates::make();
        let secure = |addr| {
            let bus = RabbitMqBus::new(format!("amqps://{addr}"));
            bus.root_certificate(certificates.authority())
        };
        nothing_is_left(silent, secure).await;
        // One that falls silent after the handshake of TLS.
        let acceptor = acceptor(&certificates);
        let greeting = async |stream| {
            Box::new(acceptor.accept(stream).await.expect("a handshake")) as Box<dyn Any>
        };
        nothing_is_left(greeting, secure).await;
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::sync::Arc;

    use testservers::Certificates;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    pub(crate) fn acceptor(certificates: &Certificates) -> TlsAcceptor {
        let certificate = CertificateDer::from_pem_slice(certificates.certificate().as_bytes());
        let key = PrivateKeyDer::from_pem_slice(certificates.key().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.unwrap()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}
