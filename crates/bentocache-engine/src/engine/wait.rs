//! How long a caller waits for a flight: its soft, hard and lock timeouts.

use std::time::Duration;

use bentocache_driver::NEVER;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Engine;
use super::flight::{FlightOutcome, Located, Stage};
use crate::options::Policy;
use crate::timers::{Ended, Timers};

/// How a caller's wait for a flight ended.
pub(super) enum Waited {
    Done { outcome: FlightOutcome, stale: Option<Located> },
    SoftTimeout { stale: Located },
    LockTimeout { stale: Option<Located> },
    HardTimeout,
}

/// All timeouts of one caller, from the start of the call.
pub(super) struct Wait<'a> {
    timers: &'a Timers,
    policy: Policy,
    start: Instant,
    /// The start in milliseconds since the epoch.
    pub(super) since: u64,
    /// The start as a position in the order of tag events.
    pub(super) moment: u64,
    /// The instant from which the lock timeout counts.
    pub(super) lock_from: Instant,
}

impl<'a> Wait<'a> {
    pub(super) fn new(engine: &'a Engine, policy: &Policy) -> Self {
        Self {
            timers: &engine.timers,
            policy: *policy,
            start: Instant::now(),
            since: engine.clock.epoch(),
            moment: engine.tags.moment(),
            lock_from: Instant::now(),
        }
    }

    /// Waits for a flight. The lock timeout applies to a follower only. `own` is the caller's own
    /// stale entry; an `outdated` flight offers no stale entry.
    pub(super) async fn on(
        &self,
        stage: &mut watch::Receiver<Stage>,
        follows: bool,
        own: Option<Located>,
        outdated: bool,
        usable: &(impl Fn(&Located) -> bool + Sync),
    ) -> Waited {
        let hard = self.after(self.start, self.policy.hard_timeout);
        let lock =
            if follows { self.after(self.lock_from, self.policy.lock_timeout) } else { None };
        let may_grace = self.policy.grace > 0 && !self.policy.force_fresh;
        loop {
            let (stale, since) = match &*stage.borrow_and_update() {
                Stage::Done { outcome, stale } => {
                    let stale = stale.clone().filter(|hit| !outdated && usable(hit));
                    let stale = stale.or_else(|| own.filter(usable));
                    return Waited::Done { outcome: outcome.clone(), stale };
                }
                Stage::Producing { since, stale } if !outdated => {
                    let stale = stale.clone().filter(usable).or_else(|| own.clone());
                    (stale, (*since).max(self.start))
                }
                _ => (own.clone(), self.start),
            };
            let usable_stale = stale.filter(|hit| may_grace && usable(hit));
            let soft = usable_stale.as_ref().and_then(|_| self.after(since, self.policy.timeout));
            let first = [soft, lock, hard].into_iter().flatten().min();
            let now = Instant::now();
            if first.is_none_or(|first| first > now) {
                let changed = match first {
                    None => stage.changed().await.is_ok(),
                    Some(first) => {
                        tokio::select! {
                            biased;
                            changed = stage.changed() => changed.is_ok(),
                            ended = self.timers.until(first) => ended == Ended::InTime,
                        }
                    }
                };
                if changed {
                    continue;
                }
            }
            // The flight has no result yet: a result that arrives at this moment takes precedence
            // over any timeout.
            match usable_stale {
                Some(stale) if soft.is_some_and(|soft| soft <= now) => {
                    return Waited::SoftTimeout { stale };
                }
                _ if lock.is_some_and(|lock| lock <= now) => {
                    return Waited::LockTimeout { stale: usable_stale };
                }
                _ => return Waited::HardTimeout,
            }
        }
    }

    /// The instant this much later; `None` if it is never reached.
    fn after(&self, start: Instant, ms: u64) -> Option<Instant> {
        if ms == NEVER { None } else { start.checked_add(Duration::from_millis(ms)) }
    }
}
