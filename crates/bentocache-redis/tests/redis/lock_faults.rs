//! Locks whose release fails.

use std::time::{Duration, Instant};

use bentocache_driver::{ErrorKind, LockDriver};
use bentocache_redis::RedisLock;
use testservers::{FaultProxy, RedisServer};

const LEASE: Duration = Duration::from_secs(60);
/// The time limit for another node to get the lock after the link is restored; the lease is much
/// longer.
const SOON: Duration = Duration::from_secs(2);

/// The other node's wait for the lease.
async fn wait_for(other: &RedisLock, key: &str) -> Duration {
    let start = Instant::now();
    while !other.acquire(key, "other", LEASE).await.expect("an answer") {
        assert!(start.elapsed() < SOON * 5, "the lease was not released");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_over_a_cut_connection_is_repeated() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let owner = RedisLock::new(format!("redis://{}", proxy.addr()));
    let other = RedisLock::new(server.url());
    assert!(owner.acquire("a", "owner", LEASE).await.unwrap());
    proxy.refuse().await.unwrap();
    owner.release("a", "owner").await.unwrap_err();
    assert!(!other.acquire("a", "other", LEASE).await.unwrap());
    proxy.pass().await.unwrap();
    let waited = wait_for(&other, "a").await;
    assert!(waited < SOON, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_nobody_waits_for_any_more_is_repeated() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr()).await.unwrap();
    let owner = RedisLock::new(format!("redis://{}", proxy.addr()));
    let other = RedisLock::new(server.url());
    assert!(owner.acquire("a", "owner", LEASE).await.unwrap());
    // The command is lost, and the caller stops waiting before there is an outcome.
    proxy.freeze();
    let release = owner.release("a", "owner");
    tokio::time::timeout(Duration::from_millis(100), release).await.unwrap_err();
    proxy.refuse().await.unwrap();
    proxy.pass().await.unwrap();
    let waited = wait_for(&other, "a").await;
    assert!(waited < SOON, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_release_takes_no_lease() {
    let server = RedisServer::start();
    for (user, missing) in [("script", "-eval -evalsha"), ("delete", "-del"), ("renew", "-pexpire")]
    {
        let rules = ["acl", "setuser", user, "on", ">pw", "~*", "+@all"];
        let rules: Vec<_> = rules.into_iter().chain(missing.split(' ')).collect();
        server.cli(&rules);
        let url = server.url().replace("redis://", &format!("redis://{user}:pw@"));
        let error = RedisLock::new(url).acquire("a", "token", LEASE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{user}: {error}");
        assert!(error.to_string().contains("ACL SETUSER"), "{error}");
    }
    let other = RedisLock::new(server.url());
    assert!(other.acquire("a", "other", LEASE).await.unwrap(), "the key is blocked");
}
