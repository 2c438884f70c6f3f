//! Nested calls: tracks which factories a call is made from, so that factories that wait for each
//! other are detected instead of hanging.

use std::sync::{Arc, PoisonError};

use super::flight::{Flight, Flights};

tokio::task_local! {
    /// The flights whose factories this task runs, innermost first.
    static INSIDE: Arc<Nesting>;
}

/// The flights that share one running factory.
struct Nesting {
    flights: Vec<Arc<Flight>>,
    /// The table of the flights' store: equal keys of different stores are different keys.
    table: usize,
    outer: Option<Arc<Nesting>>,
}

/// Runs the factory of these flights. `outer` is the call stack of the call that started it.
pub(super) async fn inside<F: Future>(
    table: &Arc<Flights>,
    flights: Vec<Arc<Flight>>,
    outer: CallStack,
    factory: F,
) -> F::Output {
    let nesting = Nesting { flights, table: Arc::as_ptr(table) as usize, outer: outer.0 };
    INSIDE.scope(Arc::new(nesting), factory).await
}

/// The factories that the current task runs inside.
#[derive(Clone)]
pub(crate) struct CallStack(Option<Arc<Nesting>>);

impl CallStack {
    pub(crate) fn current() -> Self {
        Self(INSIDE.try_with(Arc::clone).ok())
    }

    /// Runs a part of the innermost factory on another thread, with the same call stack.
    pub(crate) fn run<R>(self, part: impl FnOnce() -> R) -> R {
        match self.0 {
            Some(nesting) => INSIDE.sync_scope(nesting, part),
            None => part(),
        }
    }

    /// Whether one of the factories produces this key.
    pub(super) fn produces(&self, table: &Arc<Flights>, key: &str) -> bool {
        let mut at = self.0.as_ref();
        while let Some(nesting) = at {
            let same_store = nesting.table == Arc::as_ptr(table) as usize;
            if same_store && nesting.flights.iter().any(|flight| *flight.key == *key) {
                return true;
            }
            at = nesting.outer.as_ref();
        }
        false
    }

    /// Records that the innermost factory waits for `flight`. `None` if this would close a cycle of
    /// flights that wait for each other.
    ///
    /// If the factory has a place, all flights that it waits for now, directly or not, need none.
    pub(super) fn wait_for(&self, flight: &Arc<Flight>) -> Option<Waiting> {
        let Some(nesting) = &self.0 else { return Some(Waiting(Vec::new())) };
        let waiters: Vec<u64> = nesting.flights.iter().map(|flight| flight.id).collect();
        let mut waits = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = vec![flight.clone()];
        let mut next = 0;
        while next < reached.len() {
            let from = reached[next].id;
            if waiters.contains(&from) {
                return None;
            }
            for (waiter, to) in waits.iter() {
                if *waiter == from && !reached.iter().any(|known| known.id == to.id) {
                    reached.push(to.clone());
                }
            }
            next += 1;
        }
        if nesting.flights.iter().any(|flight| flight.lends_its_place()) {
            reached.iter().for_each(|flight| flight.make_needed());
        }
        let edges: Vec<_> = waiters.into_iter().map(|waiter| (waiter, flight.id)).collect();
        waits.extend(edges.iter().map(|(waiter, _)| (*waiter, flight.clone())));
        Some(Waiting(edges))
    }
}

/// Which flights' factories wait for which flights. Only nested calls are recorded.
static WAITS: std::sync::Mutex<Vec<(u64, Arc<Flight>)>> = std::sync::Mutex::new(Vec::new());

/// The record that a factory waits. It ends when this is dropped.
pub(super) struct Waiting(Vec<(u64, u64)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        let mut waits = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropped after the lock is released.
        let mut removed = Vec::with_capacity(self.0.len());
        for (from, to) in &self.0 {
            if let Some(at) = waits.iter().position(|edge| edge.0 == *from && edge.1.id == *to) {
                removed.push(waits.swap_remove(at));
            }
        }
        drop(waits);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::engine::flight::Joined;
    use crate::l1::fence::Fences;

    #[tokio::test]
    async fn a_circle_of_waits_is_noticed_however_long() {
        let (flights, fences) = (Arc::new(Flights::new()), Fences::new());
        let keys: Vec<Arc<str>> = ["a", "b", "c"].map(Arc::from).to_vec();
        let guards: Vec<_> = keys
            .iter()
            .map(|key| match flights.join(key, || fences.watch(1)) {
                Joined::Leader(guard) => guard,
                Joined::Follower(_) => panic!("another call leads"),
            })
            .collect();
        let at = |i: usize| vec![guards[i].flight().clone()];
        let nobody = || CallStack(None);
        let edge =
            |from: usize, to: usize| {
                let target = guards[to].flight().clone();
                inside(&flights, at(from), nobody(), async move {
                    CallStack::current().wait_for(&target)
                })
            };
        let ab = edge(0, 1).await.expect("no circle yet");
        let bc = edge(1, 2).await.expect("no circle yet");
        assert!(edge(2, 0).await.is_none(), "c waits for a, which waits for c");
        drop(bc);
        assert!(edge(2, 0).await.is_some());
        drop(ab);
    }
}
