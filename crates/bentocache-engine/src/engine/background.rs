//! Changes of L2 whose callers do not wait (`l2_write_in_background`), and `flush`, which waits for
//! them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::set::{BegunFill, BegunSet};
use super::{Engine, PATIENCE};
use crate::error::{Error, Result};
use crate::l2::{Budget, L2, NewDocument, Outcome, Ticket};
use crate::options::Policy;
use crate::site::{KeyVec, chain};

impl Engine {
    /// The tickets of sets whose caller need not wait; `None` if it has to.
    pub(super) fn tickets(&self, sets: &[BegunSet], policy: &Policy) -> Option<Vec<Ticket>> {
        let l2 = self.background_l2(policy)?;
        let puts: KeyVec<NewDocument<'_>> = sets.iter().filter_map(BegunSet::put).collect();
        l2.begin_in_background(&puts, true)
    }

    /// The part of a `set` that concerns L2 and the other processes, in a task.
    pub(super) fn set_later(
        self: &Arc<Self>,
        sets: Vec<BegunSet>,
        mut tickets: Vec<Ticket>,
        policy: &Policy,
    ) {
        let policy = Policy { suppress_l2_errors: true, ..*policy };
        let (engine, budget) = (self.clone(), Budget::new(policy.l2_limit(false)));
        let rule = self.rule(&policy);
        self.spawn(async move {
            let Some(l2) = &engine.l2 else { return };
            let puts: KeyVec<NewDocument<'_>> = sets.iter().filter_map(BegunSet::put).collect();
            let outcomes = l2.set_in_background(&puts, &mut tickets, &budget, rule).await;
            for ((set, ticket), outcome) in sets.iter().zip(&tickets).zip(outcomes) {
                let is_contested = ticket.contest().is_some();
                engine.end_set_in_background(set, is_contested, outcome, &policy);
            }
        });
    }

    /// As `end_set`. Reads of this process have seen the new value all the time, and a later change
    /// of the key waits for this one. So L1 is right, unless another process has changed the key.
    fn end_set_in_background(
        &self,
        set: &BegunSet,
        is_contested: bool,
        outcome: Outcome,
        policy: &Policy,
    ) {
        let key = &set.key;
        match outcome {
            Outcome::Reached { .. } | Outcome::Removed => {
                self.announce_set(key, set.created_at(), policy);
            }
            // L1 has the value, and the recovery queue has no room for it.
            Outcome::Failed(_) if self.l1.is_there() && !policy.skip_l1_write => {}
            Outcome::Failed(error) | Outcome::Refused(error) => {
                self.l1.mark_unverified(key);
                tracing::warn!(store = %self.name, key = self.logged(&key.full),
                    error = %chain(&*error),
                    "L2 does not have a value that was set; the call that set it did not wait");
            }
            _ => {}
        }
        if is_contested {
            self.l1.mark_unverified(key);
        }
    }

    /// As [`tickets`](Self::tickets), for the values of a factory. Other nodes that wait for the lock
    /// of the key expect the value in L2, so with a lock the caller waits.
    pub(super) fn fill_tickets(&self, fills: &[BegunFill], policy: &Policy) -> Option<Vec<Ticket>> {
        let l2 = self.background_l2(policy).filter(|_| self.locks.is_none())?;
        let puts: KeyVec<_> = fills.iter().filter_map(|fill| fill.put(false)).collect();
        l2.begin_in_background(&puts, false)
    }

    /// The part of a fill that concerns L2 and the other processes, in a task.
    pub(super) fn fill_later(
        self: &Arc<Self>,
        fills: Vec<BegunFill>,
        mut tickets: Vec<Ticket>,
        policy: &Policy,
    ) {
        let policy = Policy { suppress_l2_errors: true, ..*policy };
        let engine = self.clone();
        self.spawn(async move {
            for ticket in &mut tickets {
                ticket.turn().await;
            }
            let fills: Vec<_> = fills.into_iter().filter(|fill| fill.fence().holds()).collect();
            // A failure is in the log, and costs other nodes a miss.
            let _ = engine.store_fills(&fills, &policy).await;
        });
    }

    fn background_l2(&self, policy: &Policy) -> Option<&L2> {
        let l2 = self.l2.as_ref()?;
        (policy.l2_write_in_background && !policy.skip_l2_write).then_some(l2)
    }

    /// Waits until all changes so far have reached L2 and the other processes.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<()> {
        self.check_open()?;
        if let Some(l2) = &self.l2 {
            self.timers.within(PATIENCE, pin!(l2.all_under_way("").ended())).await;
            self.timers
                .within(PATIENCE, pin!(l2.replay(&**self, self.policy.l2_hard_timeout)))
                .await;
        }
        if let Some(bus) = &self.bus {
            self.timers.within(Duration::from_secs(1), pin!(bus.flush(self))).await;
        }
        self.all_flushed(self.l2.as_ref().map_or(0, L2::in_background))
    }

    /// An error if changes wait for L2 or for the bus, these writes in the background included.
    pub(super) fn all_flushed(&self, in_background: usize) -> Result<()> {
        let changes = in_background + self.l2.as_ref().map_or(0, L2::waiting);
        let messages = self.bus.as_deref().map_or(0, crate::bus::Bus::waiting);
        if changes + messages == 0 { Ok(()) } else { Err(Error::Unflushed { changes, messages }) }
    }
}
