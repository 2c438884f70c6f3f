//! Driver calls that need a Tokio runtime, for callers that may have none.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;

use tokio::runtime::Handle;

use crate::{DriverError, ErrorKind};

/// Runs a driver call that needs a Tokio runtime.
///
/// Tokio panics outside a runtime, and on a runtime that is shutting down. A handle in a `static`
/// outlives the runtime of a test, so this function turns both panics into an error. Any other
/// panic continues. `driver` is the driver's name.
///
/// ```
/// use bentocache_driver::{DriverError, ErrorKind, on_runtime};
///
/// async fn ping() -> Result<(), DriverError> {
///     let work = async {
///         tokio::task::yield_now().await;
///         Ok(())
///     };
///     on_runtime("mystore", work).await
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), DriverError> { ping().await }
/// ```
///
/// # Errors
/// The errors of the call; [`ErrorKind::Closed`] if there is no runtime, or it is shut down.
pub async fn on_runtime<T>(
    driver: &str,
    call: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    if Handle::try_current().is_err() {
        return Err(closed(driver, "the call was made outside of a Tokio runtime"));
    }
    let mut call = pin!(call);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
        polled.unwrap_or_else(|panic| {
            if !is_about_runtime(&*panic) {
                resume_unwind(panic);
            }
            Poll::Ready(Err(closed(driver, "the Tokio runtime of this call is shut down")))
        })
    })
    .await
}

fn closed(driver: &str, reason: &str) -> DriverError {
    let message = format!("{driver}: {reason}; call it from a task of a running runtime");
    DriverError::new(ErrorKind::Closed, message)
}

/// Whether the panic of Tokio, or of a library on it, says that there is no runtime.
fn is_about_runtime(panic: &(dyn Any + Send)) -> bool {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    ["being shutdown", "no reactor running", "Tokio context"].iter().any(|said| text.contains(said))
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;

    async fn sleeps() -> Result<(), DriverError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(())
    }

    #[test]
    fn a_call_without_a_runtime_is_closed() {
        let mut call = pin!(on_runtime("kit", sleeps()));
        let Poll::Ready(Err(error)) = call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("it has no runtime")
        };
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(error.to_string().contains("outside of a Tokio runtime"), "{error}");
    }

    #[test]
    fn a_call_on_a_runtime_that_is_shut_down_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(on_runtime("kit", sleeps())).unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let error = handle.block_on(on_runtime("kit", sleeps())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(error.to_string().contains("shut down"), "{error}");
    }

    #[tokio::test]
    #[should_panic(expected = "a fault")]
    async fn another_panic_is_a_panic() {
        let faulty = async { panic!("a fault") };
        let _: Result<(), _> = on_runtime("kit", faulty).await;
    }
}
