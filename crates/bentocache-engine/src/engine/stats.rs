//! The statistics of a store, from all of its rooms.

use std::sync::Arc;

use super::Engine;
use crate::bus::Bus;
use crate::l2::L2;
use crate::stats::Stats;

impl Engine {
    /// A snapshot of all counters and gauges.
    pub(crate) fn stats(&self) -> Stats {
        let bus = |bus: &Arc<Bus>| bus.stats();
        Stats {
            l1: self.l1.stats(),
            l2: self.l2.as_ref().map(L2::stats),
            bus: self.bus.as_ref().map(bus),
            factories_waiting: self.places.waiting(),
            ..Stats::new(self.name.clone(), &self.counters, self.flights.len())
        }
    }
}
