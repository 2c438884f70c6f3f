//! Logs while there is no server: a change once, and nothing for each attempt.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::Duration;

use bentocache_driver::{BusDriver, Topic};
use bentocache_rabbitmq::RabbitMqBus;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the targets of warnings and errors.
struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        LOGGED.lock().unwrap().push(event.metadata().target().to_owned());
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_fail_are_told_once() {
    tracing::subscriber::set_global_default(Warnings).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}", listener.local_addr().unwrap());
    let bus = RabbitMqBus::new(url);
    // A server that closes the connection after the greeting, which the library treats as its own
    // error.
    let attempts = tokio::spawn(async move {
        for _ in 0..6 {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut greeting = [0; 8];
            connection.read_exact(&mut greeting).await.unwrap();
        }
    });
    let error = bus.publish(Topic::new("c", ""), "1".into()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    tokio::time::timeout(Duration::from_secs(30), attempts).await.unwrap().unwrap();
    let logged = LOGGED.lock().unwrap().clone();
    assert_eq!(logged, ["bentocache_rabbitmq::link"], "once, and by the driver");
}
