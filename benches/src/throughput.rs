//! Calls per second of many tasks, through the cache and without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::median;

/// The calls are about the keys `k0`, `k1`, … in turns.
pub(crate) const KEYS: usize = 1_000;
const ROUNDS: usize = 9;

/// Calls per second of both, in turns.
pub(crate) async fn compare<A, B>(
    name: &str,
    tasks: usize,
    calls: usize,
    ours: impl Fn(String) -> A + Clone + Send + 'static,
    bare: impl Fn(String) -> B + Clone + Send + 'static,
) where
    A: Future<Output = ()> + Send,
    B: Future<Output = ()> + Send,
{
    let (mut ratios, mut rates, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let rate = throughput(tasks, calls, ours.clone()).await;
        let bare_rate = throughput(tasks, calls, bare.clone()).await;
        ratios.push(rate / bare_rate);
        rates.push(rate);
        bare_rates.push(bare_rate);
    }
    println!(
        "  {name:28} {:>9.0} /s  against {:>9.0} /s  ratio {:.2}",
        median(&mut rates),
        median(&mut bare_rates),
        median(&mut ratios)
    );
}

/// Calls per second of that many tasks together.
async fn throughput<C>(
    tasks: usize,
    calls: usize,
    call: impl Fn(String) -> C + Clone + Send + 'static,
) -> f64
where
    C: Future<Output = ()> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut set = tokio::task::JoinSet::new();
    let start = Instant::now();
    for _ in 0..tasks {
        let (next, call) = (next.clone(), call.clone());
        set.spawn(async move {
            loop {
                let i = next.fetch_add(1, Relaxed);
                if i >= calls {
                    break;
                }
                call(format!("k{}", i % KEYS)).await;
            }
        });
    }
    while set.join_next().await.is_some() {}
    calls as f64 / start.elapsed().as_secs_f64()
}
