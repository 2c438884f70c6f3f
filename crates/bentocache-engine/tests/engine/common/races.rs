//! What tests of races need: factories that a test holds, releases and counts; calls in the
//! background; an L2 that holds single calls; everything that invalidates a key; a wall
//! clock that is wrong.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bentocache::driver::{Capabilities, DriverError, L2Driver, Write};
use bentocache::{Cache, Context, Error, TimeSource, TokioTime};
use bentocache_testkit::{MapL2, Ops};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// What a source in trouble says.
#[derive(Debug, Clone, PartialEq)]
pub struct Down(pub u32);

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "down, error {}", self.0)
    }
}

impl std::error::Error for Down {}

pub type Work<T> = Pin<Box<dyn Future<Output = Result<T, Down>> + Send>>;

/// Where factories get their values. Counts its runs, and holds them if told to.
#[derive(Clone)]
pub struct Source(Arc<State>);

struct State {
    begun: watch::Sender<usize>,
    ended: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    gate: Semaphore,
    delay: Duration,
}

/// Ends a run, also one that is dropped or panics.
struct Running<'a>(&'a State);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
        self.0.ended.fetch_add(1, SeqCst);
    }
}

impl Source {
    fn with(permits: usize, delay: Duration) -> Self {
        Self(Arc::new(State {
            begun: watch::Sender::new(0),
            ended: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            gate: Semaphore::new(permits),
            delay,
        }))
    }

    /// One that answers at once.
    pub fn new() -> Self {
        Self::with(Semaphore::MAX_PERMITS / 2, Duration::ZERO)
    }

    /// One that answers after that time.
    pub fn slow(delay: Duration) -> Self {
        Self::with(Semaphore::MAX_PERMITS / 2, delay)
    }

    /// One whose runs begin and then wait to be released.
    pub fn held() -> Self {
        Self::with(0, Duration::ZERO)
    }

    /// Lets all runs go on, these and later ones.
    pub fn release(&self) {
        self.0.gate.add_permits(Semaphore::MAX_PERMITS / 4);
    }

    /// Lets one run go on.
    pub fn release_one(&self) {
        self.0.gate.add_permits(1);
    }

    /// Waits until that many runs have begun.
    pub async fn begun(&self, count: usize) {
        let mut begun = self.0.begun.subscribe();
        let waited = begun.wait_for(|begun| *begun >= count);
        let waited = tokio::time::timeout(Duration::from_secs(30), waited).await;
        assert!(waited.is_ok(), "{} runs have begun, not {count}", self.runs());
    }

    /// How many runs have begun.
    pub fn runs(&self) -> usize {
        *self.0.begun.borrow()
    }

    /// How many runs have ended or were dropped.
    pub fn ended(&self) -> usize {
        self.0.ended.load(SeqCst)
    }

    /// How many runs there were at once at most.
    pub fn most_at_once(&self) -> usize {
        self.0.most.load(SeqCst)
    }

    /// One run.
    pub async fn run(&self) {
        let state = &*self.0;
        let now = state.now.fetch_add(1, SeqCst) + 1;
        state.most.fetch_max(now, SeqCst);
        let _running = Running(state);
        state.begun.send_modify(|begun| *begun += 1);
        if !state.delay.is_zero() {
            tokio::time::sleep(state.delay).await;
        }
        state.gate.acquire().await.unwrap().forget();
    }

    /// A factory that gives this value.
    pub fn gives<T: Send + 'static>(
        &self,
        value: T,
    ) -> impl FnOnce(Context<T>) -> Work<T> + Send + 'static {
        let source = self.clone();
        move |_| {
            Box::pin(async move {
                source.run().await;
                Ok(value)
            })
        }
    }

    /// A factory that fails with that number.
    pub fn fails(&self, error: u32) -> impl FnOnce(Context<u32>) -> Work<u32> + Send + 'static {
        let source = self.clone();
        move |_| {
            Box::pin(async move {
                source.run().await;
                Err(Down(error))
            })
        }
    }
}

/// Starts a call in a task of its own. What a call does before its first wait happens when the
/// task is polled.
pub fn go<R>(request: R) -> JoinHandle<R::Output>
where
    R: IntoFuture,
    R::IntoFuture: Send + 'static,
    R::Output: Send + 'static,
{
    tokio::spawn(request.into_future())
}

/// Lets every task that is ready run, without any time passing.
pub async fn calm() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// The number of the source's error in this one.
pub fn down<T: fmt::Debug>(result: Result<T, Error>) -> u32 {
    let error = result.unwrap_err();
    error.factory::<Down>().unwrap_or_else(|| panic!("not the factory's error: {error}")).0
}

/// `get` that takes no stale value, whatever the store says.
pub async fn fresh(cache: &Cache, key: &str) -> Option<u32> {
    cache.get(key).grace("off").await.unwrap()
}

/// Tokio's time, but the wall clock goes wrong by this many milliseconds.
pub struct Skewed(pub TokioTime, pub i64);

impl TimeSource for Skewed {
    fn monotonic_ms(&self) -> u64 {
        self.0.monotonic_ms()
    }

    fn epoch_ms(&self) -> u64 {
        self.0.epoch_ms().saturating_add_signed(self.1)
    }
}

/// The calls to hold, before or after their work.
type NextHold = (Ops, bool, Arc<Hold>);

/// An L2 that holds the next call of a sort when told to; all other calls pass. (A
/// `Chaos` holds every call of the sort, also those that the test itself needs to pass.)
#[derive(Clone)]
pub struct Holding {
    pub map: MapL2,
    next: Arc<Mutex<Vec<NextHold>>>,
}

/// A call that is, or will be, held.
pub struct Hold {
    reached: Semaphore,
    released: Semaphore,
}

impl Hold {
    /// Waits until the call is held.
    pub async fn reached(&self) {
        let reached = tokio::time::timeout(Duration::from_secs(30), self.reached.acquire()).await;
        reached.expect("no call is held").unwrap().forget();
    }

    pub fn release(&self) {
        self.released.add_permits(1);
    }
}

impl Holding {
    pub fn new(map: &MapL2) -> Self {
        Self { map: map.clone(), next: Arc::default() }
    }

    /// Holds the next call of one of these sorts before it does its work.
    pub fn hold_next(&self, ops: Ops) -> Arc<Hold> {
        self.hold(ops, false)
    }

    /// Holds the next call of one of these sorts after it did its work.
    pub fn hold_next_after(&self, ops: Ops) -> Arc<Hold> {
        self.hold(ops, true)
    }

    fn hold(&self, ops: Ops, after: bool) -> Arc<Hold> {
        let hold = Arc::new(Hold { reached: Semaphore::new(0), released: Semaphore::new(0) });
        self.next.lock().unwrap().push((ops, after, hold.clone()));
        hold
    }

    async fn call<T>(&self, op: Ops, work: impl Future<Output = T>) -> T {
        let hold = {
            let mut next = self.next.lock().unwrap();
            let at = next.iter().position(|(ops, ..)| ops.contains(op));
            at.map(|at| next.remove(at))
        };
        let wait = async |hold: &Hold| {
            hold.reached.add_permits(1);
            hold.released.acquire().await.unwrap().forget();
        };
        match hold {
            None => work.await,
            Some((_, false, hold)) => {
                wait(&hold).await;
                work.await
            }
            Some((_, true, hold)) => {
                let result = work.await;
                wait(&hold).await;
                result
            }
        }
    }
}

impl L2Driver for Holding {
    fn name(&self) -> &'static str {
        "holding"
    }

    fn capabilities(&self) -> Capabilities {
        self.map.capabilities()
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.call(Ops::GET, self.map.get(key)).await
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        self.call(Ops::GET_MANY, self.map.get_many(keys)).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.call(Ops::SET, self.map.set(key, value, ttl)).await
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        self.call(Ops::SET_MANY, self.map.set_many(writes)).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.call(Ops::DELETE, self.map.delete(keys)).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.call(Ops::CLEAR, self.map.clear(prefix)).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.call(Ops::PULL, self.map.pull(key)).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.call(Ops::UPDATE, self.map.update(key, expected, value, remaining)).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        self.call(Ops::DELETE_IF, self.map.delete_if(key, value)).await
    }
}

/// What can invalidate a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Set,
    SetMany,
    Delete,
    DeleteMany,
    Expire,
    Clear,
    ClearNamespace,
    Tag,
    Pull,
}

impl Change {
    pub const ALL: [Self; 9] = [
        Self::Set,
        Self::SetMany,
        Self::Delete,
        Self::DeleteMany,
        Self::Expire,
        Self::Clear,
        Self::ClearNamespace,
        Self::Tag,
        Self::Pull,
    ];

    /// Changes the key `n:k`, which has the tag `t`; what is set is 2.
    pub async fn of(self, root: &Cache) {
        let names = root.namespace("n");
        match self {
            Self::Set => names.set("k", 2_u32).await.unwrap(),
            Self::SetMany => names.set_many([("k", 2_u32), ("l", 2)]).await.unwrap(),
            Self::Delete => drop(names.delete("k").await.unwrap()),
            Self::DeleteMany => drop(names.delete_many(["j", "k"]).await.unwrap()),
            Self::Expire => names.expire("k").await.unwrap(),
            Self::Clear => root.clear().await.unwrap(),
            Self::ClearNamespace => names.clear().await.unwrap(),
            Self::Tag => names.delete_by_tag(["t"]).await.unwrap(),
            Self::Pull => drop(names.pull::<u32>("k").await.unwrap()),
        }
    }

    /// What a fresh read finds afterwards.
    pub fn leaves(self) -> Option<u32> {
        matches!(self, Self::Set | Self::SetMany).then_some(2)
    }
}
