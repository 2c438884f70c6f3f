//! Reads, and writes, that come at the same time travel together.

use bentocache_driver::L2Driver;
use bentocache_redis::Redis;
use std::sync::Arc;
use testservers::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_at_once_get_their_own_values_with_few_commands() {
    const READERS: usize = 1_000;
    let server = RedisServer::start();
    let redis = Arc::new(Redis::new(server.url()));
    for at in (0..READERS).step_by(2) {
        redis.set(&format!("k{at}"), format!("v{at}").into(), None).await.expect("stored");
    }
    server.cli(&["lpush", "k1", "a list"]);
    server.cli(&["config", "resetstat"]);
    let readers = (0..READERS).map(|at| {
        let redis = redis.clone();
        tokio::spawn(async move { redis.get(&format!("k{at}")).await })
    });
    for (at, reader) in readers.collect::<Vec<_>>().into_iter().enumerate() {
        let value = reader.await.expect("no panic").expect("an answer");
        let expected = at.is_multiple_of(2).then(|| format!("v{at}"));
        assert_eq!(value.as_deref(), expected.as_deref().map(str::as_bytes), "k{at}");
    }
    let stats = server.cli(&["info", "commandstats"]);
    let calls = |command: &str| {
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        let calls = line.and_then(|line| line.split(['=', ',']).nth(1)).unwrap_or("0");
        calls.parse::<usize>().expect("a number")
    };
    let commands = calls("get") + calls("mget");
    assert!(commands < READERS / 2, "{commands} commands for {READERS} readers");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_writers_at_once_is_told_what_became_of_its_own_value() {
    const WRITERS: usize = 200;
    let server = RedisServer::start();
    server.cli(&["acl", "setuser", "writer", "on", ">pw", "~yes*", "+@all"]);
    let url = server.url().replace("redis://", "redis://writer:pw@");
    let redis = Arc::new(Redis::new(url));
    let key = |at: usize| format!("{}{at}", if at.is_multiple_of(3) { "no" } else { "yes" });
    let writers = (0..WRITERS).map(|at| {
        let (redis, key) = (redis.clone(), key(at));
        tokio::spawn(async move { redis.set(&key, format!("v{at}").into(), None).await })
    });
    for (at, writer) in writers.collect::<Vec<_>>().into_iter().enumerate() {
        let stored = writer.await.expect("no panic");
        assert_eq!(stored.is_err(), at.is_multiple_of(3), "{}: {stored:?}", key(at));
        let expected = if stored.is_ok() { format!("v{at}") } else { String::new() };
        assert_eq!(server.cli(&["get", &key(at)]), expected, "{}", key(at));
    }
}
