//! Wrappers that make any driver fail, wait or hang on demand, and count its calls.

mod drivers;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::BitOr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, Link};
use tokio::sync::{mpsc, oneshot, watch};

use crate::map::lock;
use drivers::Subscription;
pub use drivers::{ChaosBus, ChaosL1, ChaosL2, ChaosLock};

/// A set of operations: which calls a [`Chaos`] handle acts on and counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ops(u32);

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $bit:literal,)*) => {
        impl Ops {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
            const NAMES: &[(Self, &str)] = &[$((Self::$name, stringify!($name)),)*];
        }
    };
}

ops! {
    /// `connect` of an L2.
    CONNECT = 0,
    /// `get` of either tier.
    GET = 1,
    /// `get_many`.
    GET_MANY = 2,
    /// `set`.
    SET = 3,
    /// `set_many`.
    SET_MANY = 4,
    /// `delete` of an L2, `remove` of an L1.
    DELETE = 5,
    /// `clear` of either tier.
    CLEAR = 6,
    /// `pull`.
    PULL = 7,
    /// `update`.
    UPDATE = 8,
    /// `delete_if`.
    DELETE_IF = 9,
    /// `prune` of either tier.
    PRUNE = 10,
    /// `keys`; faults apply to the stream's first item.
    KEYS = 11,
    /// `disconnect` of anything.
    DISCONNECT = 12,
    /// `publish` of a bus.
    PUBLISH = 13,
    /// `subscribe` of a bus.
    SUBSCRIBE = 14,
    /// The delivery of one message to one subscription. A failed delivery is lost without a report.
    DELIVER = 15,
    /// `acquire` of a lock.
    ACQUIRE = 16,
    /// `renew` of a lock.
    RENEW = 17,
    /// `release` of a lock.
    RELEASE = 18,
    /// `insert` of an L1.
    INSERT = 19,
    /// `for_each` of an L1.
    FOR_EACH = 20,
    /// `touch`.
    TOUCH = 21,
}

const COUNT: usize = 22;

impl Ops {
    /// Every operation.
    pub const ALL: Self = Self((1 << COUNT) - 1);
    /// No operation.
    pub const NONE: Self = Self(0);
    /// L2 operations that read values or keys.
    pub const READS: Self = Self(Self::GET.0 | Self::GET_MANY.0 | Self::PULL.0 | Self::KEYS.0);
    /// L2 operations that change something; `pull` is also one of the reads.
    pub const WRITES: Self = Self(
        Self::SET.0
            | Self::SET_MANY.0
            | Self::DELETE.0
            | Self::CLEAR.0
            | Self::PULL.0
            | Self::UPDATE.0
            | Self::TOUCH.0
            | Self::DELETE_IF.0,
    );

    /// Whether this set contains all of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn index(self) -> usize {
        self.0.trailing_zeros() as usize
    }
}

impl BitOr for Ops {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("ALL");
        }
        let mut separator = "";
        for (_, name) in Self::NAMES.iter().filter(|(op, _)| self.contains(*op)) {
            write!(f, "{separator}{name}")?;
            separator = "|";
        }
        Ok(())
    }
}

/// Controls the faults of all drivers that share it, holds their calls and counts them.
///
/// A handle acts on every operation; [`on`](Chaos::on) returns one for some operations. A later
/// command replaces an earlier one of the same kind (fault, delay, hold) for its operations. All
/// waits use [`tokio::time`], so they work with a paused clock.
///
/// The steps of a call: it is counted; it is held if a [`hold`](Chaos::hold) is active; it waits
/// for its [`slow`](Chaos::slow) delay; it hangs or fails if a fault is active; the wrapped driver
/// does its work; it is held if a [`hold_after`](Chaos::hold_after) is active.
///
/// ```
/// use bentocache_driver::L2Driver;
/// use bentocache_testkit::{ChaosL2, MapL2, Ops};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache_driver::DriverError> {
/// let l2 = ChaosL2::new(MapL2::new());
/// let chaos = l2.chaos();
///
/// chaos.on(Ops::READS).fail();
/// assert!(l2.get("a").await.is_err());
/// assert!(l2.delete(&["a"]).await.is_ok());
/// chaos.calm();
/// assert_eq!(chaos.calls(), 2);
///
/// // A read that has its answer, but whose caller does not know it yet.
/// chaos.on(Ops::GET).hold_after();
/// let reader = tokio::spawn({
///     let l2 = l2.clone();
///     async move { l2.get("a").await }
/// });
/// chaos.held(1).await;
/// l2.inner().put("a", "new", None);
/// chaos.release();
/// assert_eq!(reader.await.unwrap()?, None);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Chaos {
    state: Arc<State>,
    ops: Ops,
}

struct State {
    rules: Mutex<Rules>,
    calls: [AtomicU64; COUNT],
    /// Changes with every change of the rules or the queue, which wakes waiting calls.
    changed: watch::Sender<()>,
}

struct Rules {
    faults: [Fault; COUNT],
    delays: [Duration; COUNT],
    hold_before: Ops,
    hold_after: Ops,
    held: VecDeque<(Ops, oneshot::Sender<()>)>,
    is_cut: bool,
    links: Vec<mpsc::UnboundedSender<Link>>,
    subscriptions: Vec<Weak<Mutex<Subscription>>>,
}

#[derive(Clone)]
enum Fault {
    Calm,
    Always(ErrorKind),
    Next(Arc<AtomicU64>),
    Often { share: f64, random: Arc<Mutex<u64>> },
    Late,
    Hang,
}

/// The action of a call after its waits.
enum Outcome {
    Pass,
    Fail(ErrorKind),
    FailLate,
}

impl Default for Chaos {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Chaos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chaos").field("ops", &self.ops).finish_non_exhaustive()
    }
}

impl Chaos {
    /// A handle without faults, to be shared by several drivers (`ChaosL2::with`).
    pub fn new() -> Self {
        let rules = Rules {
            faults: [const { Fault::Calm }; COUNT],
            delays: [Duration::ZERO; COUNT],
            hold_before: Ops::NONE,
            hold_after: Ops::NONE,
            held: VecDeque::new(),
            is_cut: false,
            links: Vec::new(),
            subscriptions: Vec::new(),
        };
        let state = State {
            rules: Mutex::new(rules),
            calls: [const { AtomicU64::new(0) }; COUNT],
            changed: watch::Sender::new(()),
        };
        Self { state: Arc::new(state), ops: Ops::ALL }
    }

    /// A handle to the same drivers that acts on these operations only.
    #[must_use]
    pub fn on(&self, ops: Ops) -> Self {
        Self { state: self.state.clone(), ops }
    }

    /// Ends all faults and delays; hanging calls continue. Holds stay, and so does a
    /// [`cut`](Chaos::cut).
    pub fn calm(&self) {
        self.change(|ops, rules| {
            rules.set_fault(ops, &Fault::Calm);
            rules.set_delay(ops, Duration::ZERO);
        });
    }

    /// Every call fails with [`ErrorKind::Unavailable`] and does nothing.
    pub fn fail(&self) {
        self.fail_with(ErrorKind::Unavailable);
    }

    /// Every call fails with this kind and does nothing.
    pub fn fail_with(&self, kind: ErrorKind) {
        self.change(|ops, rules| rules.set_fault(ops, &Fault::Always(kind)));
    }

    /// The next `count` calls fail with [`ErrorKind::Unavailable`] and do nothing.
    pub fn fail_next(&self, count: u64) {
        let left = Arc::new(AtomicU64::new(count));
        self.change(|ops, rules| rules.set_fault(ops, &Fault::Next(left)));
    }

    /// This share of the calls, from 0.0 to 1.0, fails with [`ErrorKind::Unavailable`]. The same
    /// seed gives the same sequence of failures.
    pub fn fail_often(&self, share: f64, seed: u64) {
        let random = Arc::new(Mutex::new(seed));
        self.change(|ops, rules| rules.set_fault(ops, &Fault::Often { share, random }));
    }

    /// Every call does its work and then fails with [`ErrorKind::Unavailable`]: the answer is lost.
    pub fn fail_late(&self) {
        self.change(|ops, rules| rules.set_fault(ops, &Fault::Late));
    }

    /// Every call waits this long before it does its work. It combines with any fault.
    pub fn slow(&self, delay: Duration) {
        self.change(|ops, rules| rules.set_delay(ops, delay));
    }

    /// Every call hangs until another fault, or [`calm`](Chaos::calm), is set.
    pub fn hang(&self) {
        self.change(|ops, rules| rules.set_fault(ops, &Fault::Hang));
    }

    /// Holds every call before it does its work, until it is released.
    pub fn hold(&self) {
        self.change(|ops, rules| rules.hold_before = rules.hold_before | ops);
    }

    /// Holds every call after its work: the work is done, but the caller gets the result only after
    /// the release.
    pub fn hold_after(&self) {
        self.change(|ops, rules| rules.hold_after = rules.hold_after | ops);
    }

    /// Waits until at least `count` calls are held.
    ///
    /// # Panics
    /// After 30 seconds; with a paused clock, as soon as no other task can run.
    pub async fn held(&self, count: usize) {
        self.until(
            |chaos| chaos.held_now() >= count,
            || format!("{} calls of {:?} are held, not {count}", self.held_now(), self.ops),
        )
        .await;
    }

    /// The number of held calls; cancelled calls do not count.
    pub fn held_now(&self) -> usize {
        let rules = self.rules();
        rules.held.iter().filter(|(op, free)| self.ops.contains(*op) && !free.is_closed()).count()
    }

    /// Ends the holds and releases every held call.
    pub fn release(&self) {
        self.change(|ops, rules| {
            rules.hold_before = rules.hold_before.without(ops);
            rules.hold_after = rules.hold_after.without(ops);
            for (op, held) in std::mem::take(&mut rules.held) {
                if ops.contains(op) {
                    let _ = held.send(());
                } else {
                    rules.held.push_back((op, held));
                }
            }
        });
    }

    /// Releases the call that has been held longest; later calls are still held. Returns whether
    /// there was one.
    pub fn release_one(&self) -> bool {
        let mut is_released = false;
        self.change(|ops, rules| {
            rules.held.retain(|(_, held)| !held.is_closed());
            if let Some(at) = rules.held.iter().position(|(op, _)| ops.contains(*op)) {
                is_released = rules.held.remove(at).is_some_and(|(_, held)| held.send(()).is_ok());
            }
        });
        is_released
    }

    /// Cuts the connection: calls fail with [`ErrorKind::Unavailable`], subscriptions report
    /// [`BusEvent::Lost`](bentocache_driver::BusEvent::Lost) and miss every message, `link` reports
    /// [`Link::Lost`].
    pub fn cut(&self) {
        self.set_cut(true);
    }

    /// Ends a [`cut`](Chaos::cut): subscriptions report
    /// [`BusEvent::Restored`](bentocache_driver::BusEvent::Restored), `link` reports
    /// [`Link::Restored`].
    pub fn restore(&self) {
        self.set_cut(false);
    }

    /// The number of calls, including failed and waiting ones.
    pub fn calls(&self) -> u64 {
        let counted = Ops::NAMES.iter().filter(|(op, _)| self.ops.contains(*op));
        counted.map(|(op, _)| self.state.calls[op.index()].load(Relaxed)).sum()
    }

    /// Waits until there have been at least `count` calls.
    ///
    /// # Panics
    /// As [`held`](Chaos::held).
    pub async fn called(&self, count: u64) {
        self.until(
            |chaos| chaos.calls() >= count,
            || format!("{} calls of {:?}, not {count}", self.calls(), self.ops),
        )
        .await;
    }

    /// Resets the count to 0.
    pub fn reset_calls(&self) {
        for (op, _) in Ops::NAMES.iter().filter(|(op, _)| self.ops.contains(*op)) {
            self.state.calls[op.index()].store(0, Relaxed);
        }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        lock(&self.state.rules)
    }

    fn change(&self, change: impl FnOnce(Ops, &mut Rules)) {
        change(self.ops, &mut self.rules());
        self.state.changed.send_replace(());
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool, problem: impl Fn() -> String) {
        let mut changed = self.state.changed.subscribe();
        let wait = async {
            while !is_so(self) {
                let _ = changed.changed().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), wait).await.is_err() {
            panic!("chaos: {}", problem());
        }
    }

    fn set_cut(&self, is_cut: bool) {
        let mut subscriptions = Vec::new();
        self.change(|_, rules| {
            if rules.is_cut == is_cut {
                return;
            }
            rules.is_cut = is_cut;
            let link = if is_cut { Link::Lost } else { Link::Restored };
            rules.links.retain(|reports| reports.send(link).is_ok());
            rules.subscriptions.retain(|subscription| subscription.strong_count() > 0);
            subscriptions.clone_from(&rules.subscriptions);
        });
        for subscription in subscriptions.iter().filter_map(Weak::upgrade) {
            Subscription::set_cut(&subscription, is_cut);
        }
    }

    fn count(&self, op: Ops) {
        self.state.calls[op.index()].fetch_add(1, Relaxed);
        self.state.changed.send_replace(());
    }

    async fn call<T, F>(&self, op: Ops, work: impl FnOnce() -> F) -> Result<T, DriverError>
    where
        F: Future<Output = Result<T, DriverError>>,
    {
        let outcome = self.enter(op).await;
        if let Outcome::Fail(kind) = outcome {
            return Err(error(op, kind));
        }
        let result = work().await;
        self.pass_gate(op, |rules| rules.hold_after).await;
        match outcome {
            Outcome::FailLate => result.and(Err(error(op, ErrorKind::Unavailable))),
            _ => result,
        }
    }

    /// The steps before the work of a call.
    async fn enter(&self, op: Ops) -> Outcome {
        self.count(op);
        self.pass_gate(op, |rules| rules.hold_before).await;
        let delay = self.rules().delays[op.index()];
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut changed = self.state.changed.subscribe();
        loop {
            if let Some(outcome) = self.decide(op) {
                return outcome;
            }
            let _ = changed.changed().await;
        }
    }

    /// Waits while calls of this operation are held.
    async fn pass_gate(&self, op: Ops, gate: impl Fn(&Rules) -> Ops) {
        let freed = {
            let mut rules = self.rules();
            if !gate(&rules).contains(op) {
                return;
            }
            let (free, freed) = oneshot::channel();
            rules.held.push_back((op, free));
            freed
        };
        self.state.changed.send_replace(());
        let _ = freed.await;
    }

    /// `None` while the call hangs.
    fn decide(&self, op: Ops) -> Option<Outcome> {
        let rules = self.rules();
        if rules.is_cut && op != Ops::DELIVER && op != Ops::DISCONNECT {
            return Some(Outcome::Fail(ErrorKind::Unavailable));
        }
        let is_failure = match &rules.faults[op.index()] {
            Fault::Hang => return None,
            Fault::Late => return Some(Outcome::FailLate),
            Fault::Always(kind) => return Some(Outcome::Fail(*kind)),
            Fault::Calm => false,
            Fault::Next(left) => {
                left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
            }
            Fault::Often { share, random } => next_random(&mut lock(random)) < *share,
        };
        Some(if is_failure { Outcome::Fail(ErrorKind::Unavailable) } else { Outcome::Pass })
    }

    /// For the synchronous L1: counts the call, and returns whether it does its work.
    fn count_and_decide(&self, op: Ops) -> bool {
        self.count(op);
        !matches!(self.decide(op), Some(Outcome::Fail(_)))
    }
}

impl Rules {
    fn set_fault(&mut self, ops: Ops, fault: &Fault) {
        for (op, _) in Ops::NAMES.iter().filter(|(op, _)| ops.contains(*op)) {
            self.faults[op.index()] = fault.clone();
        }
    }

    fn set_delay(&mut self, ops: Ops, delay: Duration) {
        for (op, _) in Ops::NAMES.iter().filter(|(op, _)| ops.contains(*op)) {
            self.delays[op.index()] = delay;
        }
    }
}

fn error(op: Ops, kind: ErrorKind) -> DriverError {
    DriverError::new(kind, format!("chaos: {op:?} fails"))
}

/// SplitMix64, as a number from 0.0 up to 1.0.
fn next_random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
