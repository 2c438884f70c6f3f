//! The cases of the bus suite that break a link catch errors: buses that are wrong about a lost link
//! in one way each.

// The functions that tests share are test code too.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, Topic};
use bentocache_testkit::{Chaos, ChaosBus, MapBus, suite};
use bytes::Bytes;

#[derive(Debug, Clone, Copy, PartialEq)]
enum LinkBug {
    None,
    LossIsNotReported,
    ReturnIsNotReported,
    DeafAfterwards,
    MuteAfterwards,
    ClaimsToPublish,
}

/// A bus whose link can be lost, and that is wrong about it.
struct BrokenLink {
    bug: LinkBug,
    bus: ChaosBus<MapBus>,
    was_lost: Arc<AtomicBool>,
}

impl BrokenLink {
    fn new(bug: LinkBug, map: &MapBus) -> (Self, Chaos) {
        let bus = ChaosBus::new(map.clone());
        let link = bus.chaos();
        (Self { bug, bus, was_lost: Arc::default() }, link)
    }
}

impl BusDriver for BrokenLink {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        if self.bug == LinkBug::MuteAfterwards && self.was_lost.load(Relaxed) {
            return Ok(());
        }
        let published = self.bus.publish(topic, message).await;
        if self.bug == LinkBug::ClaimsToPublish { Ok(()) } else { published }
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let inner = self.bus.subscribe(topic).await?;
        Ok(Box::pin(BrokenStream { bug: self.bug, inner, was_lost: self.was_lost.clone() }))
    }
}

struct BrokenStream {
    bug: LinkBug,
    inner: BusStream,
    was_lost: Arc<AtomicBool>,
}

impl futures_core::Stream for BrokenStream {
    type Item = BusEvent;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        loop {
            let event = std::task::ready!(self.inner.as_mut().poll_next(cx));
            let was_lost = self.was_lost.load(Relaxed);
            let is_swallowed = match (&event, self.bug) {
                (Some(BusEvent::Lost), bug) => {
                    self.was_lost.store(true, Relaxed);
                    bug == LinkBug::LossIsNotReported
                }
                (Some(BusEvent::Restored), LinkBug::ReturnIsNotReported) => true,
                (Some(BusEvent::Message(_)), LinkBug::DeafAfterwards) => was_lost,
                _ => false,
            };
            if !is_swallowed {
                return std::task::Poll::Ready(event);
            }
        }
    }
}

/// One test per mutant, as `caught!`, for the cases that break a link.
macro_rules! caught_on_a_link {
    ($($name:ident, $bug:expr => $($case:ident),+;)*) => {
        $(
            #[test]
            fn $name() {
                $(
                    let is_caught = |bug: LinkBug| {
                        let map = MapBus::new();
                        let case = || {
                            let open = async || BrokenLink::new(bug, &map).0;
                            let link = async || BrokenLink::new(bug, &map);
                            suite::run(suite::bus::$case(open, link));
                        };
                        catch_unwind(AssertUnwindSafe(case)).is_err()
                    };
                    assert!(!is_caught(LinkBug::None), "{} fails without a bug", stringify!($case));
                    assert!(is_caught($bug), "{} did not catch it", stringify!($case));
                )+
            }
        )*
    };
}

caught_on_a_link! {
    a_loss_is_not_reported, LinkBug::LossIsNotReported => a_lost_link_is_reported;
    a_return_is_not_reported, LinkBug::ReturnIsNotReported => a_link_that_is_back_is_reported;
    deaf_after_a_loss, LinkBug::DeafAfterwards =>
        a_link_that_is_back_is_reported, a_link_that_is_back_works;
    mute_after_a_loss, LinkBug::MuteAfterwards => a_link_that_is_back_works;
    claims_to_publish, LinkBug::ClaimsToPublish => nothing_is_published_over_a_lost_link;
}

/// A bus says how to break it, or that it has none.
mod without_a_link {
    use super::*;

    bentocache_testkit::bus_suite! {
        open = {
            let map = MapBus::new();
            async move || map.clone()
        },
        without = [link],
    }
}
