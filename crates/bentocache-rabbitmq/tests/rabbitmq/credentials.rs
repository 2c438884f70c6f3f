//! Passwords that change while the application runs.

use std::sync::{Arc, Mutex};

use crate::common::{in_time, lost, next, restored, server, topic};
use bentocache_driver::{BusDriver, BusEvent, ErrorKind, Topic};
use bentocache_rabbitmq::{Credentials, RabbitMqBus};
use bentocache_testkit::unique;

/// A user of this test's own, whose password is changed while a bus is used.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_needs_no_restart() {
    let user = unique("user_");
    server().ctl(&["add_user", &user, "hunter1"]);
    server().ctl(&["set_permissions", &user, ".*", ".*", ".*"]);
    let channel = unique("kit.");
    let topic = Topic::new(&channel, "app:");
    let password = Arc::new(Mutex::new("hunter1".to_owned()));
    let url = server().url().replace("guest:guest", "other:wrong");
    let (name, current) = (user.clone(), password.clone());
    let bus = RabbitMqBus::new(url).credentials(move || {
        let login = Credentials::new(&name, &*current.lock().unwrap());
        async move { Ok(login) }
    });
    let mut stream = bus.subscribe(topic).await.unwrap();
    bus.publish(topic, "a".into()).await.unwrap();
    assert_eq!(next(&mut stream).await, BusEvent::Message("a".into()));

    server().ctl(&["change_password", &user, "hunter2"]);
    server().ctl(&["close_all_user_connections", &user, "the password has changed"]);
    lost(&mut stream).await;
    let error = loop {
        if let Err(error) = bus.publish(topic, "b".into()).await
            && error.kind() == ErrorKind::Denied
        {
            break error;
        }
    };
    assert!(error.to_string().contains("provider of credentials"), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    "hunter2".clone_into(&mut password.lock().unwrap());
    restored(&mut stream).await;
    in_time(async || bus.publish(topic, "c".into()).await).await;
    assert_eq!(next(&mut stream).await, BusEvent::Message("c".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_says_why_and_is_asked_again() {
    let is_ready = Arc::new(Mutex::new(false));
    let asked = is_ready.clone();
    let bus = RabbitMqBus::new(server().url()).credentials(move || {
        let is_ready = *asked.lock().unwrap();
        async move {
            match is_ready {
                true => Ok(Credentials::new("guest", "guest")),
                false => Err("the vault is sealed".into()),
            }
        }
    });
    let error = bus.publish(topic(), "a".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let expected =
        "rabbitmq: cannot publish: the provider of credentials failed: the vault is sealed";
    assert_eq!(error.to_string(), expected);
    *is_ready.lock().unwrap() = true;
    in_time(async || bus.publish(topic(), "a".into()).await).await;
}
