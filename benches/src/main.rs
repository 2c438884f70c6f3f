//! What the cache costs: `cargo run --release -p benches [NAME...]`, or `cargo xtask bench`.
//!
//! Machines differ and are busy, so nearly everything is a ratio: the two sides take turns in short
//! rounds, and the median of the rounds' ratios is shown, with the medians of the times. The
//! benchmarks: `hit`, `tags`, `miss`, `waiters`, `memory`, `ratio`, which replays the access traces
//! that are named after it, and `redis` and `sql`, which start the servers that they need.

mod ratio;
mod redis;
mod sql;
mod throughput;

use std::future::Future;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Error, Memory, Store};
use quick_cache::sync::Cache as Quick;
use tokio::runtime::Runtime;

const ROUNDS: usize = 31;
const KEYS: usize = 100_000;
const OPS: usize = 100_000;

type Result<T, E = bentocache::BoxError> = std::result::Result<T, E>;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runtime = Runtime::new()?;
    println!(
        "{} {}, {} threads",
        std::env::consts::OS,
        std::env::consts::ARCH,
        std::thread::available_parallelism()?
    );
    // In a task of the runtime, as in a service.
    runtime.block_on(runtime.spawn(run(wanted)))??;
    Ok(())
}

async fn run(wanted: Vec<String>) -> Result<()> {
    let (files, wanted): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(String::as_str).partition(|name| Path::new(name).is_file());
    let runs = |name: &str| wanted.is_empty() || wanted.contains(&name);
    // First, while the process is small.
    if runs("memory") {
        println!("\nmemory: resident bytes per entry beyond key and value");
        memory().await?;
    }
    if runs("hit") {
        println!("\nhit: {KEYS} keys, zipf, one task; against a bare quick_cache");
        hit("u64", |i| i as u64).await?;
        hit("String of 32 bytes", |i| format!("{i:032}")).await?;
        hit("Arc of 1 kB", |i| Arc::<[u8]>::from(vec![i as u8; 1024])).await?;
    }
    if runs("tags") {
        println!("\ntags: a hit of a tagged entry; against one without tags");
        tags().await?;
    }
    if runs("miss") {
        println!("\nmiss: get_or_set on new keys, L1 only; against the bare factory");
        miss().await?;
    }
    if runs("waiters") {
        println!("\nwaiters: callers on one cold key with a factory of 50 ms");
        waiters(10_000).await?;
        waiters(100_000).await?;
    }
    if runs("ratio") {
        println!("\nratio: requests of a trace that L1 answers");
        ratio::run(&files)?;
    }
    if runs("redis") {
        println!("\nredis: through the cache, L2 only; against the bare client");
        redis::run().await?;
    }
    if runs("sql") {
        println!("\nsql: through the cache, L2 only; against the bare library");
        sql::run().await?;
    }
    Ok(())
}

async fn cache(items: usize) -> Result<BentoCache> {
    let memory = Memory::new().max_items(items);
    Ok(BentoCache::builder().store("bench", Store::new().l1(memory)).build().await?)
}

async fn hit<T>(name: &str, value: impl Fn(usize) -> T + Send + Sync) -> Result<()>
where
    T: bentocache::CacheValue,
{
    let cache = cache(KEYS * 2).await?;
    let quick = Quick::<String, T>::new(KEYS * 2);
    let keys: Vec<String> = (0..KEYS).map(|i| format!("user:{i}")).collect();
    for (i, key) in keys.iter().enumerate() {
        cache.set(key, value(i)).ttl("1h").await?;
        quick.insert(key.clone(), value(i));
    }
    let order = zipf(KEYS, OPS);
    let bare = || async {
        for &i in &order {
            black_box(quick.get(&keys[i]));
        }
    };
    let get = || async {
        for &i in &order {
            let value: Option<T> = cache.get(&keys[i]).await.unwrap_or(None);
            black_box(value);
        }
    };
    let get_or_set = || async {
        for &i in &order {
            let value = cache.get_or_set(&keys[i], |_| async { Err::<T, _>("a miss") });
            black_box(value.await.ok());
        }
    };
    compare(&format!("get, {name}"), OPS, &get, &bare).await;
    compare(&format!("get_or_set, {name}"), OPS, &get_or_set, &bare).await;
    Ok(())
}

async fn tags() -> Result<()> {
    let cache = cache(KEYS * 2).await?;
    let all = ["one", "two", "three"];
    let mut keys = Vec::new();
    for count in 0..=3 {
        let keys_of: Vec<String> = (0..KEYS / 4).map(|i| format!("{count}:{i}")).collect();
        for key in &keys_of {
            cache.set(key, 1u64).tags(all.into_iter().take(count)).await?;
        }
        keys.push(keys_of);
    }
    let order = zipf(KEYS / 4, OPS);
    let read = |keys: &'static [String]| {
        let (cache, order) = (cache.clone(), order.clone());
        move || {
            let (cache, order) = (cache.clone(), order.clone());
            async move {
                for &i in &order {
                    let value: Option<u64> = cache.get(&keys[i]).await.unwrap_or(None);
                    black_box(value);
                }
            }
        }
    };
    // Only for the length of the program: the closures above ask for 'static.
    let keys: &'static [Vec<String>] = Vec::leak(keys);
    let untagged = read(&keys[0]);
    for (count, keys) in keys.iter().enumerate().skip(1) {
        compare(&format!("{count} tags"), OPS, &read(keys), &untagged).await;
    }
    Ok(())
}

async fn miss() -> Result<()> {
    const MISSES: usize = 20_000;
    let cache = cache(MISSES * (ROUNDS + 1)).await?;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let factory = || async { Ok::<_, Error>(1u64) };
    let bare = || async {
        for _ in 0..MISSES {
            black_box(factory().await.ok());
        }
    };
    let through = || async {
        for _ in 0..MISSES {
            let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            black_box(cache.get_or_set(format!("k{i}"), move |_| factory()).await.ok());
        }
    };
    compare("get_or_set, cold", MISSES, &through, &bare).await;
    Ok(())
}

async fn waiters(count: usize) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let cache = cache(10).await?;
        let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let start = Instant::now();
        for _ in 0..count {
            let (cache, runs) = (cache.clone(), runs.clone());
            tasks.spawn(async move {
                let factory = move |_| async move {
                    runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok::<_, Error>(1u64)
                };
                cache.get_or_set("cold", factory).await
            });
        }
        while tasks.join_next().await.is_some() {}
        times.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(runs.load(std::sync::atomic::Ordering::Relaxed), 1, "one factory run");
    }
    println!("  {count:>7} callers served after {:>6.1} ms (median of 5)", median(&mut times));
    Ok(())
}

async fn memory() -> Result<()> {
    const ENTRIES: usize = 1_000_000;
    let keys: Vec<String> = (0..ENTRIES).map(|i| format!("user:{i:07}")).collect();
    let before = resident();
    let cache = cache(ENTRIES * 11 / 10).await?;
    for (i, key) in keys.iter().enumerate() {
        cache.set(key, i as u64).await?;
    }
    match (before, resident()) {
        (Some(before), Some(after)) => {
            let payload = (keys[0].len() + 8) as f64;
            let bytes = (after - before) as f64 / ENTRIES as f64 - payload;
            println!("  {ENTRIES} entries: {bytes:.0} bytes each");
        }
        _ => println!("  not known on this system"),
    }
    Ok(())
}

/// The resident memory of this process in bytes, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Runs both in turns; prints the median time of an operation of each, and the median ratio.
async fn compare<A, B, FA, FB>(name: &str, ops: usize, ours: &A, theirs: &B)
where
    A: Fn() -> FA,
    B: Fn() -> FB,
    FA: Future<Output = ()>,
    FB: Future<Output = ()>,
{
    let (mut a, mut b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        ours().await;
        let middle = Instant::now();
        theirs().await;
        let end = Instant::now();
        // The first round warms up.
        if round > 0 {
            let nanos = |time: Duration| time.as_nanos() as f64 / ops as f64;
            let (ours, theirs) = (nanos(middle - start), nanos(end - middle));
            a.push(ours);
            b.push(theirs);
            ratios.push(ours / theirs);
        }
    }
    let (a, b) = (median(&mut a), median(&mut b));
    println!("  {name:<32} {a:>9.1} ns  against {b:>9.1} ns  ratio {:>5.2}", median(&mut ratios));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Indices below `keys`, the lower ones more often: log-uniform, close to zipf with exponent 1.
fn zipf(keys: usize, count: usize) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(1);
    let index = |random: &mut fastrand::Rng| (keys as f64).powf(random.f64()) as usize - 1;
    (0..count).map(|_| index(&mut random).min(keys - 1)).collect()
}
