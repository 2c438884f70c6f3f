//! The limit of factories that run at the same time.
//!
//! A factory that runs holds a place. A flight whose value a running factory waits for never waits
//! for a place: the places that would become free might be those of the factories that wait for it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::flight::Flight;

/// The places of a store.
pub(super) struct Places {
    /// `None`: no limit.
    free: Option<Arc<Semaphore>>,
    waiting: AtomicUsize,
}

/// The right to run one factory. It ends when this is dropped.
#[must_use]
pub(super) struct Place(
    #[allow(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>,
);

impl Places {
    pub(super) fn new(most: Option<usize>) -> Self {
        let free = most.map(|most| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))));
        Self { free, waiting: AtomicUsize::new(0) }
    }

    /// The number of factories that wait for a place.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Waits for a place for the factory of these flights, in the order of the calls.
    pub(super) async fn take(&self, flights: &[&Arc<Flight>]) -> Place {
        let Some(free) = &self.free else { return Place(None) };
        if flights.iter().any(|flight| flight.is_needed()) {
            return Place(None);
        }
        let place = match free.clone().try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => self.wait(free, flights).await,
        };
        if place.is_some() {
            flights.iter().for_each(|flight| flight.has_place());
        }
        Place(place)
    }

    async fn wait(
        &self,
        free: &Arc<Semaphore>,
        flights: &[&Arc<Flight>],
    ) -> Option<OwnedSemaphorePermit> {
        let _queued = Queued::new(&self.waiting, flights);
        let mut needed: Vec<_> =
            flights.iter().map(|flight| Box::pin(flight.until_needed())).collect();
        let is_needed = poll_fn(|cx| {
            let is_any = needed.iter_mut().any(|needed| needed.as_mut().poll(cx).is_ready());
            if is_any { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            biased;
            () = is_needed => None,
            place = free.clone().acquire_owned() => place.ok(),
        }
    }
}

/// Flights that wait for a place, until this is dropped.
struct Queued<'a> {
    waiting: &'a AtomicUsize,
    flights: &'a [&'a Arc<Flight>],
}

impl<'a> Queued<'a> {
    fn new(waiting: &'a AtomicUsize, flights: &'a [&'a Arc<Flight>]) -> Self {
        waiting.fetch_add(1, Relaxed);
        flights.iter().for_each(|flight| flight.set_queued(true));
        Self { waiting, flights }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Relaxed);
        for flight in self.flights {
            flight.is_alive();
            flight.set_queued(false);
        }
    }
}
