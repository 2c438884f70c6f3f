//! Sends the requests of a trace to the cache, many at once, and measures each.

use std::cell::Cell;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bentocache::driver::L1Driver;
use bentocache::{BentoCache, BoxError};
use examples::count;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use crate::input::{BATCHES, Counts, Format, Input, Request};
use crate::report::{Memory, Report};
use crate::stack::{ANSWERED, Answered, Scratch, Source, Stack, TraceTime};
use crate::{Args, Clock};

/// Plays the whole trace, or what of it there was when `stop` became true.
pub(crate) async fn play(
    args: &Args,
    input: Input,
    scratch: Option<&Scratch>,
    bar: &ProgressBar,
    stop: watch::Receiver<bool>,
) -> Result<Report, BoxError> {
    let clock = clock(args.clock, input.format)?;
    let (name, format) = (input.name.clone(), input.format);
    let mut memory = Memory::at_start();
    let stack = Stack::open(args, clock, scratch).await?;

    let (sender, receiver) = mpsc::channel(BATCHES);
    let lined = Arc::new(Counts::default());
    let counts = lined.clone();
    // A thread of its own, which nobody waits for: it may hang in a read of standard input.
    std::thread::Builder::new().name("trace".into()).spawn(move || input.read(&sender, &counts))?;
    let feed = Arc::new(Feed::new(receiver, stack.clock.clone(), stop));
    let results = Arc::new(Results::default());

    let started = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..args.concurrency {
        let worker = Worker {
            cache: stack.cache.clone(),
            source: stack.source.clone(),
            feed: feed.clone(),
            results: results.clone(),
        };
        workers.spawn(ANSWERED.scope(Cell::new(None), worker.run()));
    }
    let done = async {
        while let Some(worker) = workers.join_next().await {
            worker?;
        }
        Ok::<_, BoxError>(())
    };
    watched(done, &results, &feed, bar, &mut memory).await?;
    let took = started.elapsed();

    memory.at_end();
    let l1_entries = stack.l1.len();
    let stopped = feed.is_stopped();
    // Refreshes in the background end here, and are counted.
    stack.cache.disconnect_all().await?;
    Ok(Report {
        name,
        format,
        clock,
        args: args.clone(),
        took,
        covered: stack.clock.as_ref().map(|clock| clock.covered()),
        stopped,
        lined: lined.get(),
        requests: results.requests.load(Relaxed),
        wrong: results.wrong.load(Relaxed),
        error: results.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        errors: results.errors.load(Relaxed),
        answered: stack.seen.answered(),
        latencies: results.latencies().clone(),
        source_calls: stack.source.calls(),
        written: stack.seen.written.load(Relaxed),
        evicted: stack.seen.evicted.load(Relaxed),
        l2_failures: stack.seen.l2_failures.load(Relaxed),
        l2_failure: stack.seen.l2_failure.get().cloned(),
        breaker_openings: stack.seen.breaker_openings.load(Relaxed),
        l1_entries,
        memory,
    })
}

/// Whose time it is, now that the format is known.
fn clock(asked: Clock, format: Format) -> Result<Clock, BoxError> {
    match (asked, format) {
        (Clock::Auto, Format::Log) => Ok(Clock::Log),
        (Clock::Auto, _) => Ok(Clock::Real),
        (Clock::Log, Format::Keys) => {
            Err("a list of keys has no times; use --clock real, or a number of requests a second"
                .into())
        }
        (clock, _) => Ok(clock),
    }
}

/// Shows the progress and samples the memory until it is done.
async fn watched(
    done: impl Future<Output = Result<(), BoxError>>,
    results: &Results,
    feed: &Feed,
    bar: &ProgressBar,
    memory: &mut Memory,
) -> Result<(), BoxError> {
    let mut done = std::pin::pin!(done);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            result = &mut done => return result,
            _ = tick.tick() => {
                let requests = results.requests.load(Relaxed);
                bar.set_message(format!("{} requests", count(requests)));
                bar.tick();
                memory.sample(feed.taken.load(Relaxed));
            }
        }
    }
}

/// Hands the requests out in order, one at a time.
struct Feed {
    state: Mutex<State>,
    taken: AtomicU64,
    clock: Option<Arc<TraceTime>>,
    stop: watch::Receiver<bool>,
}

struct State {
    batches: mpsc::Receiver<Vec<Request>>,
    batch: std::vec::IntoIter<Request>,
    stop: watch::Receiver<bool>,
}

impl Feed {
    fn new(
        batches: mpsc::Receiver<Vec<Request>>,
        clock: Option<Arc<TraceTime>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let state = State { batches, batch: Vec::new().into_iter(), stop: stop.clone() };
        Self { state: Mutex::new(state), taken: AtomicU64::new(0), clock, stop }
    }

    /// The next request, `None` at the end.
    async fn next(&self) -> Option<Request> {
        let mut state = self.state.lock().await;
        if self.is_stopped() {
            return None;
        }
        let request = loop {
            if let Some(request) = state.batch.next() {
                break request;
            }
            let State { batches, batch, stop } = &mut *state;
            tokio::select! {
                next = batches.recv() => *batch = next?.into_iter(),
                Ok(_) = stop.wait_for(|&stop| stop) => return None,
            }
        };
        let number = self.taken.fetch_add(1, Relaxed);
        if let Some(clock) = &self.clock {
            clock.advance(number, request.at);
        }
        Some(request)
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }
}

/// One of the tasks that send requests.
struct Worker {
    cache: BentoCache,
    source: Arc<Source>,
    feed: Arc<Feed>,
    results: Arc<Results>,
}

impl Worker {
    async fn run(self) {
        let mut timings = Timings { kept: Vec::new(), results: &self.results };
        while let Some(request) = self.feed.next().await {
            timings.keep(self.ask(&request.key).await);
        }
    }

    /// Asks for a key, checks the answer, and says by what it was answered and how long that took.
    async fn ask(&self, key: &str) -> (Option<Answered>, Duration) {
        let id = Source::id(key);
        let source = self.source.clone();
        let started = Instant::now();
        let answer =
            self.cache.get_or_set(key, move |_| async move { source.load(id).await }).await;
        let took = started.elapsed();
        match answer {
            Ok(record) if record.id == id => {}
            Ok(_) => drop(self.results.wrong.fetch_add(1, Relaxed)),
            Err(error) => self.results.failed(&error),
        }
        self.results.requests.fetch_add(1, Relaxed);
        (ANSWERED.with(Cell::take), took)
    }
}

/// What came of the requests.
struct Results {
    requests: AtomicU64,
    /// Answers that were another key's value. There must be none.
    wrong: AtomicU64,
    errors: AtomicU64,
    /// The first of them.
    error: StdMutex<Option<String>>,
    latencies: StdMutex<Latencies>,
}

/// Nanoseconds per kind of answer, in the order of [`Answered`].
pub(crate) type Latencies = [Histogram<u64>; Answered::ALL.len()];

impl Default for Results {
    fn default() -> Self {
        const LONGEST: u64 = 3_600_000_000_000;
        // The limits are constants that fit.
        #[allow(clippy::unwrap_used)]
        let latencies = Answered::ALL.map(|_| Histogram::new_with_bounds(1, LONGEST, 2).unwrap());
        Self {
            requests: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            error: StdMutex::new(None),
            latencies: StdMutex::new(latencies),
        }
    }
}

impl Results {
    fn latencies(&self) -> MutexGuard<'_, Latencies> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &bentocache::Error) {
        self.errors.fetch_add(1, Relaxed);
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.to_string());
    }
}

/// Keeps a worker's timings for a while, so that workers seldom meet at the lock.
struct Timings<'a> {
    kept: Vec<(Option<Answered>, Duration)>,
    results: &'a Results,
}

impl Timings<'_> {
    fn keep(&mut self, timing: (Option<Answered>, Duration)) {
        self.kept.push(timing);
        if self.kept.len() == 256 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut latencies = self.results.latencies();
        for (answered, took) in self.kept.drain(..) {
            if let Some(answered) = answered {
                let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                latencies[answered as usize].saturating_record(ns);
            }
        }
    }
}

impl Drop for Timings<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
