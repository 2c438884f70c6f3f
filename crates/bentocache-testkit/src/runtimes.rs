//! Drivers that outlive the Tokio runtime that they were first used on.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, DriverError, ErrorKind, L2Driver, Topic, Write};
use bytes::Bytes;
use tokio::runtime::{Handle, Runtime};

/// How long a call may take on a runtime that is shut down, and how long until a driver works again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A call of a driver by its name.
type Calls<'a> = Vec<(&'static str, Call<'a>)>;
type Call<'a> = Pin<Box<dyn Future<Output = Result<(), DriverError>> + Send + 'a>>;

/// Uses a driver on one runtime, without any, on the first one after its end, and on another one.
/// Without a runtime every call that needs one is [`ErrorKind::Closed`]; after the end no call panics or hangs;
/// on another runtime every call works, soon.
///
/// Call it outside of any runtime. `open` runs within the first one.
///
/// # Panics
/// When one of that does not hold.
pub fn l2_outlives_its_runtime<D: L2Driver>(open: impl FnOnce() -> D) {
    fn calls<D: L2Driver>(driver: &D) -> Calls<'_> {
        const TTL: Option<Duration> = Some(Duration::from_secs(60));
        let value = || Bytes::from_static(b"value");
        let many = async move {
            let write = Write { key: "app:many", value: value(), ttl: TTL };
            driver.set_many(&[write]).await
        };
        vec![
            ("set", Box::pin(driver.set("app:a", value(), TTL))),
            ("set_many", Box::pin(many)),
            ("get", Box::pin(async { driver.get("app:a").await.map(drop) })),
            ("get_many", Box::pin(async { driver.get_many(&["app:a"]).await.map(drop) })),
            (
                "insert",
                Box::pin(async move { driver.insert("app:b", value(), TTL).await.map(drop) }),
            ),
            (
                "update",
                Box::pin(
                    async move { driver.update("app:b", b"value", value(), TTL).await.map(drop) },
                ),
            ),
            ("delete_if", Box::pin(async { driver.delete_if("app:b", b"value").await.map(drop) })),
            ("pull", Box::pin(async { driver.pull("app:a").await.map(drop) })),
            ("delete", Box::pin(async { driver.delete(&["app:a"]).await.map(drop) })),
            ("clear", Box::pin(driver.clear("app:"))),
            ("prune", Box::pin(async { driver.prune().await.map(drop) })),
            (
                "keys",
                Box::pin(async {
                    let mut keys = driver.keys("app:");
                    std::future::poll_fn(|cx| keys.as_mut().poll_next(cx))
                        .await
                        .transpose()
                        .map(drop)
                }),
            ),
            ("connect", Box::pin(driver.connect())),
        ]
    }
    outlives(open, calls);
}

/// The same for a bus; a subscription that is made on the other runtime hears what is published.
///
/// # Panics
/// When one of that does not hold.
pub fn bus_outlives_its_runtime<D: BusDriver>(open: impl FnOnce() -> D) {
    const TOPIC: fn() -> Topic<'static> = || Topic::new("bentocache.notifications:kit", "app:");
    fn calls<D: BusDriver>(bus: &D) -> Calls<'_> {
        vec![
            ("publish", Box::pin(bus.publish(TOPIC(), Bytes::from_static(b"1")))),
            ("subscribe", Box::pin(async { bus.subscribe(TOPIC()).await.map(drop) })),
        ]
    }
    let (bus, runtime) = outlives(open, calls);
    runtime.block_on(async {
        let mut stream = bus.subscribe(TOPIC()).await.expect("a subscription");
        bus.publish(TOPIC(), Bytes::from_static(b"heard")).await.expect("a publication");
        let heard = async {
            loop {
                let event = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
                if event.expect("an event") == BusEvent::Message(Bytes::from_static(b"heard")) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the message is heard");
    });
}

/// The driver, and the runtime on which it works at last.
fn outlives<D: Send + Sync + 'static>(
    open: impl FnOnce() -> D,
    calls: for<'d> fn(&'d D) -> Calls<'d>,
) -> (D, Runtime) {
    let first = Runtime::new().expect("a runtime");
    let driver = first.block_on(async {
        let driver = open();
        for (name, call) in calls(&driver) {
            call.await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        driver
    });
    for (name, mut call) in calls(&driver) {
        let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            // It had nothing to do that needs one.
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Closed, "{name}: {error}");
            }
            Poll::Pending => panic!("{name} waits without a runtime"),
        }
    }
    let handle = first.handle().clone();
    drop(first);
    let driver = on_the_dead(handle, driver, calls);
    let second = Runtime::new().expect("a runtime");
    second.block_on(async {
        let start = Instant::now();
        while let Some((name, error)) = first_failure(calls(&driver)).await {
            assert!(start.elapsed() < PATIENCE, "{name} on another runtime: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    (driver, second)
}

async fn first_failure(calls: Calls<'_>) -> Option<(&'static str, DriverError)> {
    for (name, call) in calls {
        if let Err(error) = call.await {
            return Some((name, error));
        }
    }
    None
}

/// Makes the calls on a runtime that is shut down, in a thread that may be given up.
fn on_the_dead<D: Send + Sync + 'static>(
    handle: Handle,
    driver: D,
    calls: for<'d> fn(&'d D) -> Calls<'d>,
) -> D {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        for (name, call) in calls(&driver) {
            let call = pin!(call);
            if let Err(error) = handle.block_on(call) {
                let is_right = error.kind() == ErrorKind::Closed || error.is_transient();
                assert!(is_right, "{name} on a dead runtime: {error}");
            }
        }
        let _ = done.send(driver);
    });
    is_done.recv_timeout(PATIENCE).expect("a call on a dead runtime hangs or panics")
}
