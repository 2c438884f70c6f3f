//! Reads that come at the same time travel together.
//!
//! A few go out as they come. While those are under way, further ones gather, and leave as one
//! command for all: under load the server and the client do the work of a command once for many
//! keys, instead of once for each.

use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bentocache_core::DriverError;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::l2::unavailable;

/// How many reads go out on their own.
const SINGLE: usize = 2;
/// How many commands for many keys are under way at once: more of them would be smaller.
const TOGETHER: usize = 1;
/// How many keys such a command has at most.
const MOST_KEYS: usize = 256;
/// How often a command without an answer is looked at, whether anybody still waits for it.
const LOOK_ROUND: Duration = Duration::from_millis(50);

type Answer = Result<Option<Bytes>, DriverError>;

#[derive(Default)]
pub(crate) struct Gather(Mutex<State>);

#[derive(Default)]
struct State {
    single: usize,
    together: usize,
    waiting: Vec<Waiting>,
}

struct Waiting {
    key: String,
    answer: oneshot::Sender<Answer>,
}

/// How a read is to go on.
pub(crate) enum Turn {
    /// On its own.
    Single(#[allow(dead_code, reason = "held for its drop")] Single),
    /// With others: `Some` for the reader that has to send them off, see [`Gather::send`].
    Together(oneshot::Receiver<Answer>, Option<Sending>),
}

/// A read on its own, until it is dropped.
pub(crate) struct Single(Arc<Gather>);

/// The duty to send off what gathers.
pub(crate) struct Sending {
    gather: Arc<Gather>,
    ended: bool,
}

impl Gather {
    pub(crate) fn turn(self: &Arc<Self>, key: &str) -> Turn {
        let mut state = self.state();
        if state.single < SINGLE {
            state.single += 1;
            return Turn::Single(Single(self.clone()));
        }
        let (answer, answered) = oneshot::channel();
        state.waiting.push(Waiting { key: key.to_owned(), answer });
        let sends = state.together < TOGETHER;
        state.together += usize::from(sends);
        Turn::Together(answered, sends.then(|| Sending { gather: self.clone(), ended: false }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    /// Reads for all who wait, until nobody does.
    pub(crate) async fn send(
        mut self,
        read: impl AsyncFn(&[&str]) -> Result<Vec<Option<Bytes>>, DriverError>,
    ) {
        while let Some(mut some) = self.next() {
            // Whoever has given up meanwhile.
            some.retain(|waiting| !waiting.answer.is_closed());
            if some.is_empty() {
                continue;
            }
            let keys: Vec<&str> = some.iter().map(|waiting| &*waiting.key).collect();
            let answer = {
                let mut read = pin!(read(&keys));
                loop {
                    match timeout(LOOK_ROUND, read.as_mut()).await {
                        Ok(answer) => break Some(answer),
                        // Nobody waits for it any more, and the next must not wait behind it.
                        Err(_) if some.iter().all(|w| w.answer.is_closed()) => break None,
                        Err(_) => {}
                    }
                }
            };
            let Some(answer) = answer else { continue };
            match answer {
                Ok(values) => {
                    for (waiting, value) in some.into_iter().zip(values) {
                        drop(waiting.answer.send(Ok(value)));
                    }
                }
                Err(error) => {
                    for waiting in some {
                        let error = DriverError::new(error.kind(), error.to_string());
                        drop(waiting.answer.send(Err(error)));
                    }
                }
            }
        }
    }

    /// Who waits now. With nobody left, the duty ends in the same step.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut state = self.gather.state();
        if state.waiting.is_empty() {
            state.together -= 1;
            self.ended = true;
            return None;
        }
        if state.waiting.len() <= MOST_KEYS {
            return Some(mem::take(&mut state.waiting));
        }
        Some(state.waiting.drain(..MOST_KEYS).collect())
    }
}

/// The answer to a read that went with others.
pub(crate) async fn answered(answer: oneshot::Receiver<Answer>) -> Answer {
    answer.await.unwrap_or_else(|_| Err(unavailable("get", "the runtime is ending")))
}

impl Drop for Single {
    fn drop(&mut self) {
        self.0.state().single -= 1;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It was aborted, so its runtime is ending: nobody would answer those who wait.
        let mut state = self.gather.state();
        state.together -= 1;
        let abandoned = mem::take(&mut state.waiting);
        drop(state);
        drop(abandoned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use bentocache_core::ErrorKind;

    /// Reads a key as itself.
    async fn echo(keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        tokio::task::yield_now().await;
        Ok(keys.iter().map(|key| Some(Bytes::copy_from_slice(key.as_bytes()))).collect())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_of_many_readers_gets_its_own_value() {
        let gather = Arc::new(Gather::default());
        let together = Arc::new(AtomicUsize::new(0));
        let readers = (0..2_000).map(|at| {
            let (gather, together) = (gather.clone(), together.clone());
            tokio::spawn(async move {
                let key = format!("k{at}");
                match gather.turn(&key) {
                    Turn::Single(_single) => assert_eq!(echo(&[&key]).await.unwrap().len(), 1),
                    Turn::Together(answer, sending) => {
                        together.fetch_add(1, SeqCst);
                        if let Some(sending) = sending {
                            tokio::spawn(sending.send(echo));
                        }
                        assert_eq!(answered(answer).await.unwrap().unwrap(), key.as_bytes());
                    }
                }
            })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
        assert!(together.load(SeqCst) > 0, "none went together");
        let state = gather.state();
        assert_eq!((state.single, state.together, state.waiting.len()), (0, 0, 0));
    }

    /// Takes all places for readers on their own.
    fn busy(gather: &Arc<Gather>) -> Vec<Turn> {
        (0..SINGLE).map(|_| gather.turn("busy")).collect()
    }

    fn joins(gather: &Arc<Gather>, key: &str) -> (oneshot::Receiver<Answer>, Option<Sending>) {
        match gather.turn(key) {
            Turn::Together(answer, sending) => (answer, sending),
            Turn::Single(_) => panic!("{key} is on its own"),
        }
    }

    #[tokio::test]
    async fn who_has_given_up_is_not_read_for() {
        let gather = Arc::new(Gather::default());
        let _busy = busy(&gather);
        let (first, sending) = joins(&gather, "first");
        let (given_up, _second) = joins(&gather, "given up");
        drop((first, given_up));
        let read = async |keys: &[&str]| panic!("{keys:?} was read");
        sending.unwrap().send(read).await;
    }

    #[tokio::test]
    async fn a_failure_is_that_of_all_who_went_together() {
        let gather = Arc::new(Gather::default());
        let _busy = busy(&gather);
        let ((one, sending), (two, _second)) = (joins(&gather, "one"), joins(&gather, "two"));
        let read = async |_: &[&str]| Err(DriverError::new(ErrorKind::Timeout, "no answer"));
        sending.unwrap().send(read).await;
        for answer in [one, two] {
            let error = answered(answer).await.unwrap_err();
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Timeout, "no answer"));
        }
    }

    #[tokio::test]
    async fn a_read_without_an_answer_ends_when_all_have_given_up() {
        let gather = Arc::new(Gather::default());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        let hangs = async |_: &[&str]| std::future::pending().await;
        let sends = tokio::spawn(sending.unwrap().send(hangs));
        tokio::time::timeout(LOOK_ROUND * 4, answer).await.unwrap_err();
        // Its receiver is gone with the timeout; the sender ends, and the next one may send.
        sends.await.unwrap();
        assert!(joins(&gather, "key").1.is_some());
    }

    #[tokio::test]
    async fn who_waits_for_a_sender_that_was_aborted_is_told() {
        let gather = Arc::new(Gather::default());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        drop(sending);
        assert_eq!(answered(answer).await.unwrap_err().kind(), ErrorKind::Unavailable);
        // And the next ones are sent for again.
        assert!(joins(&gather, "key").1.is_some());
    }
}
