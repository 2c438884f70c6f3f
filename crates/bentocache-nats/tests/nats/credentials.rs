//! Passwords that change while the application runs.

use std::sync::{Arc, Mutex};

use bentocache_driver::{BusDriver, BusEvent, ErrorKind};
use bentocache_nats::{Credentials, NatsBus};
use testservers::NatsServer;

use crate::common::{hears_again, in_time, lost, next, restored, topic};

fn with_password(password: &str) -> String {
    format!("authorization: {{ users: [ {{ user: cache, password: {password} }} ] }}")
}

fn bus(server: &NatsServer, password: &Arc<Mutex<String>>) -> NatsBus {
    // What the URL says does not count.
    let url = server.url().replace("nats://", "nats://other:wrong@");
    let password = password.clone();
    NatsBus::new(url).credentials(move || {
        let password = password.lock().unwrap().clone();
        async move { Ok(Credentials::new("cache", password)) }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_needs_no_restart() {
    let server = NatsServer::start_configured(&with_password("hunter1"));
    let password = Arc::new(Mutex::new("hunter1".to_owned()));
    let bus = bus(&server, &password);
    let mut stream = bus.subscribe(topic()).await.unwrap();
    bus.publish(topic(), "a".into()).await.unwrap();
    assert_eq!(next(&mut stream).await, BusEvent::Message("a".into()));
    for new in ["hunter2", "hunter3"] {
        new.clone_into(&mut password.lock().unwrap());
        // The server ends the connections of users that have changed.
        server.configure(&with_password(new));
        lost(&mut stream).await;
        restored(&mut stream).await;
        hears_again(&bus, &mut stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_learns_late_is_asked_again() {
    let server = NatsServer::start_configured(&with_password("hunter1"));
    let password = Arc::new(Mutex::new("hunter1".to_owned()));
    let bus = bus(&server, &password);
    bus.publish(topic(), "a".into()).await.unwrap();
    server.configure(&with_password("hunter2"));
    let error = loop {
        // The connection is closed some moments later.
        if let Err(error) = bus.publish(topic(), "b".into()).await {
            break error;
        }
    };
    assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    "hunter2".clone_into(&mut password.lock().unwrap());
    in_time(async || bus.publish(topic(), "c".into()).await).await;
    let mut stream = bus.subscribe(topic()).await.unwrap();
    hears_again(&bus, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_says_why_and_is_asked_again() {
    let server = NatsServer::start_with(&["--auth", "s3cret"]);
    let is_ready = Arc::new(Mutex::new(false));
    let asked = is_ready.clone();
    let bus = NatsBus::new(server.url()).credentials(move || {
        let is_ready = *asked.lock().unwrap();
        async move {
            if is_ready {
                Ok(Credentials::token("s3cret"))
            } else {
                Err("the vault is sealed".into())
            }
        }
    });
    let error = bus.publish(topic(), "a".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let expected = "nats: cannot connect: the provider of credentials failed: the vault is sealed";
    assert_eq!(error.to_string(), expected);
    *is_ready.lock().unwrap() = true;
    in_time(async || bus.publish(topic(), "a".into()).await).await;
    let shown = format!("{:?}", Credentials::token("s3cret"));
    assert!(!shown.contains("s3cret"), "{shown}");
}
