//! Attempts to connect that are given up. Alone in its program, because it counts threads.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bentocache_core::{BusDriver, ErrorKind, Topic};
use bentocache_rabbitmq::RabbitMqBus;
use bentocache_testkit::server::wait_for;
use tokio::net::TcpListener;

/// How many threads of this process the library has: one for each connection.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let names =
        tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin-io-loop")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_connections_and_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://{}", listener.local_addr().unwrap());
    let silent = tokio::spawn(async move {
        let mut connections = Vec::new();
        while connections.len() < 4 {
            connections.push(listener.accept().await.unwrap());
        }
        (listener, connections)
    });
    let bus = RabbitMqBus::new(url).connect_timeout(Duration::from_millis(300));
    let topic = Topic::new("bentocache.notifications:test", "app:");
    let error = bus.publish(topic, "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("within 300ms"), "{error}");
    wait_for("another attempt", || threads() == 1);
    // It tries on, and no attempt leaves a thread behind: the servers' ends are still open.
    let connections = silent.await.unwrap();
    wait_for("the attempts to end", || threads() <= 1);
    drop(bus);
    wait_for("the last attempt to end", || threads() == 0);
    drop(connections);
}
