//! How many requests of a trace L1 answers, against others of the same size: `ratio
//! FILE...`, with one key a line, or without a file a trace that is made up.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::path::Path;

use bentocache::Memory;
use bentocache::driver::{L1Driver, NEVER};
use bentocache_testkit::entry;
use lru::LruCache;
use quick_cache::unsync::Cache as Quick;

use crate::{Result, zipf};

/// The sizes, as shares of the different keys.
const SHARES: [f64; 3] = [0.001, 0.01, 0.1];

pub(crate) fn run(files: &[&str]) -> Result<()> {
    let mut means = [0.0; 4];
    let mut traces: Vec<(String, Vec<String>)> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)?;
        let name = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        traces.push((name, text.lines().map(str::to_owned).collect()));
    }
    if traces.is_empty() {
        let keys = zipf(100_000, 1_000_000);
        traces.push(("zipf".into(), keys.iter().map(ToString::to_string).collect()));
    }
    println!("  {:<12} {:>7}  memory  quick_cache     lru  optimum", "trace", "entries");
    for (name, keys) in &traces {
        let trace = Trace::new(keys);
        for share in SHARES {
            let size = ((trace.different as f64 * share) as usize).max(1);
            let ratios =
                [trace.memory(size), trace.quick(size), trace.lru(size), trace.optimum(size)]
                    .map(|hits| hits as f64 * 100.0 / keys.len() as f64);
            show(name, &size.to_string(), ratios);
            for (mean, ratio) in means.iter_mut().zip(ratios) {
                *mean += ratio / (traces.len() * SHARES.len()) as f64;
            }
        }
    }
    show("mean", "", means);
    Ok(())
}

fn show(name: &str, size: &str, [memory, quick, lru, optimum]: [f64; 4]) {
    println!("  {name:<12} {size:>7} {memory:>6.2}% {quick:>11.2}% {lru:>6.2}% {optimum:>7.2}%");
}

struct Trace<'a> {
    keys: &'a [String],
    /// The same as numbers, which are counted from 0.
    numbers: Vec<usize>,
    different: usize,
}

impl<'a> Trace<'a> {
    fn new(keys: &'a [String]) -> Self {
        let mut known = HashMap::new();
        let numbers = keys.iter().map(|key| {
            let next = known.len();
            *known.entry(key).or_insert(next)
        });
        Self { keys, numbers: numbers.collect(), different: known.len() }
    }

    /// Counts the hits of a cache that is asked for each key, and given it if it has it not.
    fn hits(&self, mut is_hit: impl FnMut(usize, usize) -> bool) -> usize {
        self.numbers.iter().enumerate().filter(|(at, key)| is_hit(*at, **key)).count()
    }

    fn memory(&self, size: usize) -> usize {
        let memory = Memory::new().max_items(size);
        self.hits(|at, _| {
            let found = memory.get(&self.keys[at]).is_some();
            if !found {
                memory.insert(entry(&self.keys[at], "", NEVER), 0);
            }
            found
        })
    }

    fn quick(&self, size: usize) -> usize {
        let mut cache = Quick::new(size);
        self.hits(|_, key| {
            let found = cache.get(&key).is_some();
            if !found {
                cache.insert(key, ());
            }
            found
        })
    }

    fn lru(&self, size: usize) -> usize {
        let mut cache = LruCache::new(NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN));
        self.hits(|_, key| cache.put(key, ()).is_some())
    }

    /// What is needed again the latest has to go (Belady).
    fn optimum(&self, size: usize) -> usize {
        let mut next = vec![usize::MAX; self.numbers.len()];
        let mut seen = vec![usize::MAX; self.different];
        for (at, key) in self.numbers.iter().enumerate().rev() {
            next[at] = std::mem::replace(&mut seen[*key], at);
        }
        let mut held = BTreeSet::new();
        let mut needed: HashMap<usize, usize> = HashMap::new();
        self.hits(|at, key| {
            let found = needed.remove(&key);
            if let Some(needed) = found {
                held.remove(&(needed, key));
            }
            held.insert((next[at], key));
            needed.insert(key, next[at]);
            if held.len() > size
                && let Some((_, key)) = held.pop_last()
            {
                needed.remove(&key);
            }
            found.is_some()
        })
    }
}
