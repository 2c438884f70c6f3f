//! The cases of the suites that break a link catch errors: drivers that are wrong about a lost link in
//! one way each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::{BusDriver, BusEvent, BusStream, DriverError, ErrorKind, L2Driver, Topic};
use bentocache_testkit::{Chaos, ChaosBus, ChaosL2, MapBus, MapL2, suite};
use bytes::Bytes;

#[derive(Debug, Clone, Copy, PartialEq)]
enum LinkBug {
    None,
    LossIsNotReported,
    ReturnIsNotReported,
    DeafAfterwards,
    MuteAfterwards,
    ClaimsToPublish,
    /// An error that makes building the cache fail, for a server that is only not there yet.
    GoneIsASetting,
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
        let inner = self.bus.subscribe(topic).await.map_err(|error| match self.bug {
            LinkBug::GoneIsASetting => DriverError::new(ErrorKind::Config, error.to_string()),
            _ => error,
        })?;
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
    claims_to_publish, LinkBug::ClaimsToPublish =>
        nothing_is_published_over_a_lost_link, a_server_that_is_gone_is_a_transient_failure;
    gone_is_a_setting, LinkBug::GoneIsASetting => a_server_that_is_gone_is_a_transient_failure;
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum GoneBug {
    None,
    /// The calls fail as if an operator had to repair something.
    Config,
    Denied,
    Closed,
    /// Nobody knows a value, which may be there.
    IsAMiss,
    Hangs,
    /// It never tries again.
    StaysBroken,
}

/// An L2 whose server can be gone, and that is wrong about it.
struct Forlorn {
    bug: GoneBug,
    tier: ChaosL2<MapL2>,
    has_failed: AtomicBool,
}

impl Forlorn {
    fn new(bug: GoneBug) -> (Self, Chaos) {
        let tier = ChaosL2::new(MapL2::new());
        let link = tier.chaos();
        (Self { bug, tier, has_failed: AtomicBool::new(false) }, link)
    }

    async fn told<T: Default>(&self, answer: Result<T, DriverError>) -> Result<T, DriverError> {
        let is_broken = self.bug == GoneBug::StaysBroken && self.has_failed.load(Relaxed);
        if is_broken {
            return Err(DriverError::new(ErrorKind::Unavailable, "it was gone before"));
        }
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        self.has_failed.store(true, Relaxed);
        let kind = match self.bug {
            GoneBug::None | GoneBug::StaysBroken => return Err(error),
            GoneBug::IsAMiss => return Ok(T::default()),
            GoneBug::Hangs => std::future::pending().await,
            GoneBug::Config => ErrorKind::Config,
            GoneBug::Denied => ErrorKind::Denied,
            GoneBug::Closed => ErrorKind::Closed,
        };
        Err(DriverError::new(kind, error.to_string()))
    }
}

impl L2Driver for Forlorn {
    fn name(&self) -> &'static str {
        "forlorn"
    }

    async fn connect(&self) -> Result<(), DriverError> {
        self.tier.connect().await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.told(self.tier.get(key).await).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.tier.set(key, value, ttl).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.tier.delete(keys).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.tier.clear(prefix).await
    }
}

/// Time is paused, so that the case need not really wait for a driver that hangs.
fn is_caught_when_gone(bug: GoneBug) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let case = || {
        let (open, link) = (async || Forlorn::new(bug).0, async || Forlorn::new(bug));
        runtime.block_on(suite::l2::a_server_that_is_gone_is_a_transient_failure(open, link));
    };
    catch_unwind(AssertUnwindSafe(case)).is_err()
}

#[test]
fn a_server_that_is_gone_is_taken_for_something_else() {
    use GoneBug::{Closed, Config, Denied, Hangs, IsAMiss, None, StaysBroken};
    assert!(!is_caught_when_gone(None));
    for bug in [Config, Denied, Closed, IsAMiss, Hangs, StaysBroken] {
        assert!(is_caught_when_gone(bug), "{bug:?}");
    }
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
