//! A stream of keys that come in pages.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use futures_core::Stream;

use crate::{DriverError, KeyStream};

/// A stream for [`L2Driver::keys`](crate::L2Driver::keys) from a store that lists its keys in pages.
///
/// `next` gets a position, `start` at first, and returns the keys of the page there, and the position
/// of the page after it; `None` after the last one. A page may be empty. It is called when the page
/// before was read, so a slow reader does not fill the memory. An error ends the stream.
///
/// ```
/// use bentocache_driver::{DriverError, KeyStream, key_pages};
///
/// /// The client of a service: at most two keys from a position on, in order.
/// async fn list(prefix: &str, after: &str) -> Result<Vec<String>, DriverError> {
///     let all = ["app:a", "app:b", "app:c", "other"];
///     let found = all.iter().filter(|key| key.starts_with(prefix) && **key > after);
///     Ok(found.take(2).map(|key| (*key).to_owned()).collect())
/// }
///
/// fn keys(prefix: &str) -> KeyStream {
///     let prefix = prefix.to_owned();
///     key_pages(String::new(), move |after| {
///         let prefix = prefix.clone();
///         async move {
///             let page = list(&prefix, &after).await?;
///             let last = page.last().cloned();
///             Ok((page, last))
///         }
///     })
/// }
/// # fn main() { let _ = keys("app:"); }
/// ```
pub fn key_pages<P, F>(start: P, next: impl FnMut(P) -> F + Send + 'static) -> KeyStream
where
    P: Send + 'static,
    F: Future<Output = Result<(Vec<String>, Option<P>), DriverError>> + Send + 'static,
{
    Box::pin(Pages { next, keys: Vec::new().into_iter(), state: State::At(start) })
}

struct Pages<N, P, F> {
    next: N,
    /// The rest of the current page.
    keys: IntoIter<String>,
    state: State<P, F>,
}

enum State<P, F> {
    /// The position of the next page.
    At(P),
    Reading(Pin<Box<F>>),
    End,
}

/// Nothing inside is pinned but the future, which is in a box.
impl<N, P, F> Unpin for Pages<N, P, F> {}

impl<N, P, F> Stream for Pages<N, P, F>
where
    N: FnMut(P) -> F,
    F: Future<Output = Result<(Vec<String>, Option<P>), DriverError>>,
{
    type Item = Result<String, DriverError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let pages = self.get_mut();
        loop {
            if let Some(key) = pages.keys.next() {
                return Poll::Ready(Some(Ok(key)));
            }
            // A future that panics is not polled again.
            match std::mem::replace(&mut pages.state, State::End) {
                State::End => return Poll::Ready(None),
                State::At(at) => pages.state = State::Reading(Box::pin((pages.next)(at))),
                State::Reading(mut page) => {
                    let Poll::Ready(page) = page.as_mut().poll(cx) else {
                        pages.state = State::Reading(page);
                        return Poll::Pending;
                    };
                    match page {
                        Ok((keys, next)) => {
                            pages.keys = keys.into_iter();
                            pages.state = next.map_or(State::End, State::At);
                        }
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Waker;

    use super::*;
    use crate::ErrorKind;

    async fn next(stream: &mut KeyStream) -> Option<Result<String, DriverError>> {
        poll_fn(|cx| stream.as_mut().poll_next(cx)).await
    }

    /// Pages of numbers; page 1 is empty, and page `fails` is an error.
    fn numbers(pages: usize, fails: usize) -> (KeyStream, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        let stream = key_pages(0, move |page| {
            counter.fetch_add(1, Relaxed);
            async move {
                tokio::task::yield_now().await;
                if page == fails {
                    return Err(DriverError::new(ErrorKind::Unavailable, "gone"));
                }
                let keys = if page == 1 {
                    Vec::new()
                } else {
                    vec![format!("{page}a"), format!("{page}b")]
                };
                Ok((keys, (page + 1 < pages).then_some(page + 1)))
            }
        });
        (stream, read)
    }

    #[tokio::test]
    async fn the_keys_of_all_pages_come_in_order() {
        let (mut stream, _) = numbers(4, 9);
        let mut keys = Vec::new();
        while let Some(key) = next(&mut stream).await {
            keys.push(key.unwrap());
        }
        assert_eq!(keys, ["0a", "0b", "2a", "2b", "3a", "3b"]);
        assert!(next(&mut stream).await.is_none());
    }

    #[tokio::test]
    async fn a_page_is_read_when_the_one_before_was() {
        let (mut stream, read) = numbers(4, 9);
        assert_eq!(read.load(Relaxed), 0);
        for _ in 0..2 {
            next(&mut stream).await;
            assert_eq!(read.load(Relaxed), 1);
        }
        next(&mut stream).await;
        assert_eq!(read.load(Relaxed), 3);
    }

    #[tokio::test]
    async fn an_error_is_the_end() {
        let (mut stream, read) = numbers(4, 2);
        for _ in 0..2 {
            assert!(next(&mut stream).await.unwrap().is_ok());
        }
        assert!(next(&mut stream).await.unwrap().is_err());
        assert!(next(&mut stream).await.is_none());
        assert_eq!(read.load(Relaxed), 3);
    }

    #[test]
    fn a_page_that_panics_is_the_end() {
        let mut stream = key_pages((), |()| async { panic!("a bug") });
        let mut cx = Context::from_waker(Waker::noop());
        let mut poll = || stream.as_mut().poll_next(&mut cx);
        let poll_once = std::panic::AssertUnwindSafe(&mut poll);
        assert!(std::panic::catch_unwind(|| { poll_once }.0()).is_err());
        assert!(matches!(poll(), Poll::Ready(None)));
    }
}
