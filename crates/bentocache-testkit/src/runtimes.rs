//! Drivers that outlive the Tokio runtime of their first use.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bentocache_driver::{DriverError, ErrorKind};
use tokio::runtime::{Handle, Runtime};

/// The time limit for a call on a runtime that is shut down, and until a driver works again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls of a driver by their names.
pub(crate) type Calls<'a> = Vec<(&'static str, Call<'a>)>;
type Call<'a> = Pin<Box<dyn Future<Output = Result<(), DriverError>> + Send + 'a>>;
/// Makes the calls of a driver, on keys or channels with this name.
pub(crate) type MakeCalls<D> = for<'a> fn(&'a D, &'a str) -> Calls<'a>;

/// Uses a driver on one runtime, without any, on the first one after its end, and on a second one.
///
/// `open` runs on the first runtime and also returns resources to keep until the end; `after` runs
/// on the second one, once everything works there.
pub(crate) fn outlives<D: Send + Sync + 'static, K>(
    open: impl AsyncFnOnce() -> (D, K),
    space: &str,
    calls: MakeCalls<D>,
    after: impl AsyncFnOnce(&D),
) {
    let first = Runtime::new().expect("a runtime");
    let (driver, kept) = first.block_on(async {
        let (driver, kept) = open().await;
        if let Some((name, error)) = first_failure(calls(&driver, space)).await {
            panic!("{name}: {error}");
        }
        (driver, kept)
    });
    for (name, mut call) in calls(&driver, space) {
        let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            // The call did not need a runtime.
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                let is_right = matches!(error.kind(), ErrorKind::Closed | ErrorKind::Unsupported);
                assert!(is_right, "{name} without a runtime: {error}");
            }
            Poll::Pending => panic!("{name} waits without a runtime"),
        }
    }
    let handle = first.handle().clone();
    drop(first);
    let driver = on_the_dead(handle, driver, space, calls);
    let second = Runtime::new().expect("a runtime");
    second.block_on(async move {
        let start = Instant::now();
        while let Some((name, error)) = first_failure(calls(&driver, space)).await {
            assert!(start.elapsed() < PATIENCE, "{name} on another runtime: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        after(&driver).await;
        drop((driver, kept));
    });
}

/// The first call that fails. An operation that the driver does not have is no failure.
pub(crate) async fn first_failure(calls: Calls<'_>) -> Option<(&'static str, DriverError)> {
    for (name, call) in calls {
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::Unsupported => {}
            Ok(Err(error)) => return Some((name, error)),
            Err(_) => panic!("{name} hangs"),
        }
    }
    None
}

/// Makes the calls on a runtime that is shut down, in a thread that is abandoned if it hangs.
fn on_the_dead<D: Send + Sync + 'static>(
    handle: Handle,
    driver: D,
    space: &str,
    calls: MakeCalls<D>,
) -> D {
    let (done, is_done) = mpsc::channel();
    let space = space.to_owned();
    std::thread::spawn(move || {
        for (name, call) in calls(&driver, &space) {
            let call = pin!(call);
            if let Err(error) = handle.block_on(call) {
                let is_right = error.is_transient()
                    || matches!(error.kind(), ErrorKind::Closed | ErrorKind::Unsupported);
                assert!(is_right, "{name} on a dead runtime: {error}");
            }
        }
        let _ = done.send(driver);
    });
    is_done.recv_timeout(PATIENCE).expect("a call on a dead runtime hangs or panics")
}
