//! The case with two runtimes catches errors: drivers that are bound to the first one in one way each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bentocache_driver::{
    BusDriver, BusStream, DriverError, ErrorKind, L2Driver, Topic, on_runtime,
};
use bentocache_testkit::{MapBus, MapL2, suite};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// The task of the first runtime is never started again.
    Gone,
    /// Calls wait for the task of the first runtime for good.
    Hangs,
    /// Tokio panics where there is no runtime.
    Panics,
    /// Without a runtime the error says that the server may be back later.
    Unavailable,
    /// A bus whose subscriptions are fed by a task of the first runtime.
    Deaf,
}

type Request = oneshot::Sender<()>;

/// A driver whose calls go through a task, as those of a client library do.
#[derive(Clone)]
struct Bound {
    bug: Bug,
    map: MapL2,
    bus: MapBus,
    task: Arc<OnceLock<mpsc::UnboundedSender<Request>>>,
    first: Arc<OnceLock<tokio::runtime::Id>>,
}

impl Bound {
    fn new(bug: Bug) -> Self {
        let (task, first) = (Arc::default(), Arc::default());
        Self { bug, map: MapL2::new(), bus: MapBus::new(), task, first }
    }

    /// Waits until the task has answered.
    async fn through_the_task(&self) -> Result<(), DriverError> {
        let ask = async {
            if matches!(self.bug, Bug::None | Bug::Deaf) {
                tokio::time::sleep(Duration::from_micros(1)).await;
                return Ok(());
            }
            let task = self.task.get_or_init(|| {
                let (requests, mut asked) = mpsc::unbounded_channel::<Request>();
                tokio::spawn(async move {
                    while let Some(answer) = asked.recv().await {
                        let _ = answer.send(());
                    }
                });
                requests
            });
            let (answer, answered) = oneshot::channel();
            let is_asked = task.send(answer).is_ok() && answered.await.is_ok();
            if !is_asked && self.bug == Bug::Hangs {
                let _ = Semaphore::new(0).acquire().await;
            }
            let gone = || DriverError::new(ErrorKind::Unavailable, "the task is gone");
            if is_asked { Ok(()) } else { Err(gone()) }
        };
        match self.bug {
            Bug::Panics => {
                tokio::time::sleep(Duration::from_micros(1)).await;
                Ok(())
            }
            Bug::Unavailable if tokio::runtime::Handle::try_current().is_err() => {
                Err(DriverError::new(ErrorKind::Unavailable, "no runtime"))
            }
            Bug::Unavailable => Ok(()),
            _ => on_runtime("bound", ask).await,
        }
    }
}

impl L2Driver for Bound {
    fn name(&self) -> &'static str {
        "bound"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.through_the_task().await?;
        self.map.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.through_the_task().await?;
        self.map.set(key, value, ttl).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.map.delete(keys).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.map.clear(prefix).await
    }
}

impl BusDriver for Bound {
    fn name(&self) -> &'static str {
        "bound"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        self.through_the_task().await?;
        self.bus.publish(topic, message).await
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        self.through_the_task().await?;
        let stream = self.bus.subscribe(topic).await?;
        // Of another runtime nobody feeds a subscription.
        let here = tokio::runtime::Handle::current().id();
        let is_fed = self.bug != Bug::Deaf || *self.first.get_or_init(|| here) == here;
        Ok(if is_fed { stream } else { Box::pin(Silence(stream)) })
    }
}

/// A subscription that hears nothing.
struct Silence(#[allow(dead_code)] BusStream);

impl futures_core::Stream for Silence {
    type Item = bentocache_driver::BusEvent;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Pending
    }
}

fn is_caught(case: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(case)).is_err()
}

fn l2(bug: Bug) {
    suite::l2::outlives_its_runtime(async || (Bound::new(bug), ()));
}

fn bus(bug: Bug) {
    suite::bus::outlives_its_runtime(async || (Bound::new(bug), ()));
}

#[test]
fn drivers_that_start_again_pass() {
    l2(Bug::None);
    bus(Bug::None);
}

#[test]
fn a_task_that_is_not_started_again_is_noticed() {
    assert!(is_caught(|| l2(Bug::Gone)));
}

#[test]
fn a_bus_whose_task_is_not_started_again_is_noticed() {
    assert!(is_caught(|| bus(Bug::Gone)));
}

#[test]
fn a_bus_that_is_deaf_on_the_second_runtime_is_noticed() {
    assert!(is_caught(|| bus(Bug::Deaf)));
}

#[test]
fn a_call_that_waits_for_the_first_runtime_is_noticed() {
    assert!(is_caught(|| l2(Bug::Hangs)));
}

#[test]
fn a_panic_or_another_error_without_a_runtime_is_noticed() {
    assert!(is_caught(|| l2(Bug::Panics)));
    assert!(is_caught(|| l2(Bug::Unavailable)));
}
