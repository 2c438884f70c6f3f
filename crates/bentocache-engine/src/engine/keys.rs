//! Lists the keys of a handle: those of L2, or of L1 in a store without L2.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, KeyStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Engine;
use crate::error::{ClosedReason, Error, Result};
use crate::l2::SCAN;
use crate::site::{VERSION, has_part, is_reserved};

/// A listing of keys.
pub(crate) struct KeyList {
    engine: Arc<Engine>,
    /// The length of the handle's prefix, which the keys are listed without.
    hidden: usize,
    state: State,
}

enum State {
    Failed(Error),
    L2 { keys: KeyStream, began: Instant, limit: Option<Limit> },
    Reading(JoinHandle<Vec<String>>),
    Read(std::vec::IntoIter<String>),
    Over,
}

/// Ends when the driver takes too long for its next keys.
type Limit = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Engine {
    /// The keys that start with `start`, of a handle with this prefix.
    pub(crate) fn keys(self: &Arc<Self>, prefix: &str, start: &str) -> KeyList {
        let full = [prefix, start].concat();
        let state = match self.is_off() {
            Err(error) => State::Failed(error),
            Ok(true) => State::Over,
            Ok(false) => match &self.l2 {
                Some(l2) => State::L2 { keys: l2.keys(&full), began: Instant::now(), limit: None },
                None => {
                    let engine = self.clone();
                    // A large L1 would block an async worker for too long.
                    State::Reading(self.runtime.spawn_blocking(move || engine.l1.keys(&full)))
                }
            },
        };
        KeyList { engine: self.clone(), hidden: prefix.len(), state }
    }
}

impl KeyList {
    /// The next key, without the handle's prefix.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<String>>> {
        loop {
            let key = match &mut self.state {
                State::L2 { keys, limit, .. } => match keys.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(key))) => {
                        *limit = None;
                        key
                    }
                    Poll::Ready(Some(Err(error))) => return self.end_l2(Err(error)),
                    Poll::Ready(None) => return self.end_l2(Ok(())),
                    Poll::Pending => {
                        ready!(
                            limit.get_or_insert_with(|| too_long(&self.engine)).as_mut().poll(cx)
                        );
                        return self.end_l2(Err(took_too_long()));
                    }
                },
                State::Reading(reading) => {
                    let read = ready!(Pin::new(reading).poll(cx));
                    self.state = match read {
                        Ok(keys) => State::Read(keys.into_iter()),
                        Err(error) if error.is_panic() => {
                            tracing::error!(store = %self.engine.name, "listing L1 panicked");
                            State::Over
                        }
                        Err(_) => {
                            State::Failed(Error::Closed { reason: ClosedReason::RuntimeEnded })
                        }
                    };
                    continue;
                }
                State::Read(keys) => match keys.next() {
                    Some(key) => key,
                    None => return Poll::Ready(None),
                },
                State::Over => return Poll::Ready(None),
                State::Failed(_) => {
                    let State::Failed(error) = std::mem::replace(&mut self.state, State::Over)
                    else {
                        return Poll::Ready(None);
                    };
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if is_reserved(&self.engine.shown(&key)) {
                continue;
            }
            // A driver that returns other keys than those that it was asked for.
            let Some(name) = key.get(self.hidden..) else { continue };
            // The key of another version, which this handle cannot read.
            if has_part(name, VERSION) {
                continue;
            }
            return Poll::Ready(Some(Ok(name.to_owned())));
        }
    }

    /// The end of the listing in L2.
    fn end_l2(&mut self, result: Result<(), DriverError>) -> Poll<Option<Result<String>>> {
        let State::L2 { began, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Poll::Ready(None);
        };
        let Some(l2) = &self.engine.l2 else { return Poll::Ready(None) };
        let listed = l2.listed(result, began.elapsed());
        Poll::Ready(listed.err().map(|error| Err(self.engine.l2_error("keys", error))))
    }
}

fn too_long(engine: &Arc<Engine>) -> Limit {
    let engine = engine.clone();
    let end = Instant::now() + Duration::from_millis(SCAN);
    Box::pin(async move {
        engine.timers.until(end).await;
    })
}

fn took_too_long() -> DriverError {
    let limit = Duration::from_millis(SCAN);
    DriverError::new(
        ErrorKind::Timeout,
        format!("the driver listed no further key within {limit:?}"),
    )
}
