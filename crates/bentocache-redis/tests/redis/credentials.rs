//! Passwords that change while the application runs.

use std::sync::{Arc, Mutex};

use bentocache_driver::{BusDriver, BusEvent, ErrorKind, L2Driver, Topic};
use bentocache_redis::{Credentials, Redis, RedisBus};
use testservers::{RedisCluster, RedisServer};

use crate::common::{hears_again, in_time, next};

fn set_password(server: &RedisServer, password: &str) {
    let password = format!(">{password}");
    let user = ["acl", "setuser", "cache", "on", "resetpass", &password, "~*", "&*", "+@all"];
    assert_eq!(server.cli(&user), "OK");
}

/// A provider, and the password that it gives.
macro_rules! provider {
    ($password:expr) => {{
        let password = Arc::clone(&$password);
        move || {
            let password = password.lock().expect("no panic").clone();
            async move { Ok(Credentials::new("cache", password)) }
        }
    }};
}

async fn a_changed_password_needs_no_restart(servers: &[RedisServer], redis: Redis, bus: RedisBus) {
    let password = Arc::new(Mutex::new("hunter1".to_owned()));
    let redis = redis.credentials(provider!(password));
    let bus = bus.credentials(provider!(password));
    servers.iter().for_each(|server| set_password(server, "hunter1"));
    let topic = Topic::new("any", "");
    let mut stream = bus.subscribe(topic).await.expect("a subscription");
    redis.set("a", "1".into(), None).await.expect("set");
    bus.publish(topic, "a".into()).await.expect("publish");
    assert_eq!(next(&mut stream).await, BusEvent::Message("a".into()));

    for server in servers {
        set_password(server, "hunter2");
        server.cli(&["client", "kill", "user", "cache"]);
    }
    let error = loop {
        // The connections are closed some moments later.
        if let Err(error) = redis.get("a").await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter1"), "{error}");
    "hunter2".clone_into(&mut password.lock().expect("no panic"));
    in_time(async || redis.set("a", "2".into(), None).await).await;
    assert_eq!(redis.get("a").await.expect("get"), Some("2".into()));
    while next(&mut stream).await != BusEvent::Restored {}
    hears_again(&bus, topic, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_server() {
    let server = RedisServer::start();
    // What the URL says does not count.
    let url = server.url().replace("redis://", "redis://other:wrong@");
    let (redis, bus) = (Redis::new(&url), RedisBus::new(&url));
    a_changed_password_needs_no_restart(&[server], redis, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster() {
    let cluster = RedisCluster::start(3);
    let (redis, bus) = (Redis::cluster(cluster.urls()), RedisBus::cluster(cluster.urls()));
    a_changed_password_needs_no_restart(cluster.nodes(), redis, bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_is_asked_again() {
    let server = RedisServer::start();
    set_password(&server, "hunter2");
    let ready = Arc::new(Mutex::new(false));
    let asked = Arc::clone(&ready);
    let redis = Redis::new(server.url()).credentials(move || {
        let is_ready = *asked.lock().expect("no panic");
        async move {
            if is_ready {
                Ok(Credentials::new("cache", "hunter2"))
            } else {
                Err("the vault is sealed".into())
            }
        }
    });
    let error = redis.connect().await.expect_err("no login");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("the vault is sealed"), "{error}");
    *ready.lock().expect("no panic") = true;
    in_time(async || redis.set("a", "1".into(), None).await).await;
    let shown = format!("{:?}", Credentials::new("cache", "hunter2"));
    assert!(!shown.contains("hunter2"), "{shown}");
}
