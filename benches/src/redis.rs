//! What the cache costs in front of Redis: throughput against the bare client on the same kind of
//! connection, and how soon another node knows of a change.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bentocache::redis::{Redis, RedisBus};
use bentocache::{BentoCache, Memory, Store};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use testservers::RedisServer;

use crate::Result;
use crate::throughput::{KEYS, compare};

/// Calls of one measurement.
const CALLS: usize = 50_000;

pub(crate) async fn run() -> Result<()> {
    let server = RedisServer::start();
    let url = server.url();
    let client = redis::Client::open(url.as_str())?;
    let bare = client.get_multiplexed_async_connection().await?;
    let cache =
        BentoCache::builder().store("bench", Store::new().l2(Redis::new(&url))).build().await?;
    let value = "x".repeat(100);
    for i in 0..KEYS {
        cache.set(format!("k{i}"), value.clone()).await?;
    }
    for tasks in [1, 64, 512] {
        let calls = if tasks == 1 { CALLS / 10 } else { CALLS };
        let (one, other, text) = (cache.clone(), bare.clone(), value.clone());
        let get = move |key: String| {
            let cache = one.clone();
            async move { drop(black_box(cache.get::<String>(key).await)) }
        };
        let bare_get = move |key: String| {
            let mut bare = other.clone();
            async move { drop(black_box(bare_get(&mut bare, &key).await)) }
        };
        compare(&format!("get, {tasks} tasks"), tasks, calls, get, bare_get).await;
        let (one, other) = (cache.clone(), bare.clone());
        let set = move |key: String| {
            let (cache, value) = (one.clone(), text.clone());
            async move { drop(black_box(cache.set(key, value).await)) }
        };
        let text = value.clone();
        let bare_set = move |key: String| {
            let (mut bare, value) = (other.clone(), text.clone());
            async move {
                let key = format!("bentocache:{key}");
                let set: Result<(), redis::RedisError> = bare.pset_ex(key, value, 1_800_000).await;
                drop(black_box(set));
            }
        };
        compare(&format!("set, {tasks} tasks"), tasks, calls, set, bare_set).await;
    }
    invalidation(&url).await
}

async fn bare_get(
    bare: &mut MultiplexedConnection,
    key: &str,
) -> Result<Option<Vec<u8>>, redis::RedisError> {
    bare.get(format!("bentocache:{key}")).await
}

/// From the return of a `set` on one node until another one has the new value.
async fn invalidation(url: &str) -> Result<()> {
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let store = Store::new().l1(Memory::new()).l2(Redis::new(url)).bus(RedisBus::new(url));
        nodes.push(BentoCache::builder().store("bench", store).build().await?);
    }
    let mut times = Vec::new();
    for i in 0..500_u64 {
        nodes[0].set("changing", i).await?;
        let start = Instant::now();
        while nodes[1].get::<u64>("changing").await? != Some(i) {
            assert!(start.elapsed() < Duration::from_secs(5), "the other node never knew");
            tokio::task::yield_now().await;
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
        // Its own L1 has it from now on.
        black_box(nodes[1].get::<u64>("changing").await?);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "  another node has a changed value after {:.2} ms (median), {:.2} ms (p99)",
        at(0.5),
        at(0.99)
    );
    Ok(())
}
