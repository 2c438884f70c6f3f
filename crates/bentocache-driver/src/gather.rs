//! Batching of concurrent calls into shared round trips.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{DriverError, ErrorKind};

/// The largest size of the answers of one round trip, in bytes. After larger answers, the next
/// round trips have fewer calls.
const MOST_BYTES: usize = 1 << 20;
/// The number of calls in one round trip, unless a driver sets another.
const USUAL_CALLS: usize = 64;
/// The interval in which a round trip without an answer is checked for remaining waiters.
const LOOK_ROUND: Duration = Duration::from_millis(50);

type Answer<A> = Result<A, DriverError>;
/// The callers that wait for the answers of one round trip.
type Askers<A> = Vec<oneshot::Sender<Answer<A>>>;

/// Batches concurrent calls into shared round trips.
///
/// A few calls are sent at once. While those are in progress, further calls are collected and sent
/// as one round trip. So under load the server and the client do the work of a round trip once for
/// many calls, instead of once for each. No call waits for a timer, so a call without concurrent
/// calls is not delayed. If answers are large, fewer calls share a round trip, so that none waits
/// long for the answers to the others.
///
/// `Q` is the question of a call, such as a key, and `A` is its answer. For drivers on tokio; needs
/// the feature `gather`.
///
/// ```
/// use bentocache_driver::{DriverError, Gather};
///
/// /// The lengths of texts, as some server would count them.
/// async fn lengths(texts: Vec<String>) -> Result<Vec<usize>, DriverError> {
///     Ok(texts.iter().map(String::len).collect())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), DriverError> {
/// let gather = Gather::new(|_: &usize| size_of::<usize>());
/// let alone = |text: String| async move { Ok(text.len()) };
/// let together = || |texts| async { Ok(lengths(texts).await?.into_iter().map(Ok).collect()) };
/// assert_eq!(gather.ask("four".to_owned(), alone, together).await?, 4);
/// # Ok(()) }
/// ```
pub struct Gather<Q, A>(Arc<Shared<Q, A>>);

struct Shared<Q, A> {
    most_alone: usize,
    most_trips: usize,
    most_calls: usize,
    size: fn(&A) -> usize,
    /// The number of separate calls in progress.
    alone: AtomicUsize,
    state: Mutex<State<Q, A>>,
}

struct State<Q, A> {
    trips: usize,
    /// The present number of calls per round trip, adapted to the size of the answers.
    calls: usize,
    waiting: Vec<Waiting<Q, A>>,
}

struct Waiting<Q, A> {
    question: Q,
    answer: oneshot::Sender<Answer<A>>,
}

impl<Q, A> fmt::Debug for Gather<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the questions, which contain keys and values.
        let Shared { most_alone, most_trips, most_calls, .. } = &*self.0;
        f.debug_struct("Gather")
            .field("most_alone", most_alone)
            .field("most_trips", most_trips)
            .field("most_calls", most_calls)
            .finish_non_exhaustive()
    }
}

impl<Q, A> Gather<Q, A> {
    /// One separate call at a time, and beside it up to three round trips for at most 64 calls
    /// each: enough to keep client and server busy at the same time. `size` returns the size of an
    /// answer, in bytes.
    pub fn new(size: fn(&A) -> usize) -> Self {
        Self::with(1, 3, USUAL_CALLS, size)
    }

    /// At most `alone` separate calls in progress and, if there are more calls, `trips` round trips
    /// for at most `calls` calls each; a 0 counts as 1. `size` returns the size of an answer, in
    /// bytes: after a round trip whose answers had more than a MiB, the next ones have fewer calls.
    pub fn with(alone: usize, trips: usize, calls: usize, size: fn(&A) -> usize) -> Self {
        let most_calls = calls.max(1);
        Self(Arc::new(Shared {
            most_alone: alone.max(1),
            most_trips: trips.max(1),
            most_calls,
            size,
            alone: AtomicUsize::new(0),
            state: Mutex::new(State { trips: 0, calls: most_calls, waiting: Vec::new() }),
        }))
    }

    /// Answers a question: with `alone`, in the caller's own future, or together with the questions
    /// of other callers, in a task. Some callers start such a task. Only they call `together`,
    /// which returns the function that asks several questions. That function returns one answer per
    /// question, in their order.
    ///
    /// A caller may be dropped at any time. A round trip is dropped when no caller waits for it any
    /// more.
    ///
    /// # Errors
    /// The error of `alone` or of `together`; an error of the whole round trip is returned to all
    /// its callers. [`ErrorKind::Unavailable`] if the task of the round trip ends without an
    /// answer.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    pub async fn ask<Alone, Ask, Together>(
        &self,
        question: Q,
        alone: impl FnOnce(Q) -> Alone,
        together: impl FnOnce() -> Ask,
    ) -> Answer<A>
    where
        Q: Send + 'static,
        A: Send + 'static,
        Alone: Future<Output = Answer<A>>,
        Ask: Fn(Vec<Q>) -> Together + Send + 'static,
        Together: Future<Output = Answer<Vec<Answer<A>>>> + Send + 'static,
    {
        match self.turn(question) {
            Turn::Alone(_place, question) => alone(question).await,
            Turn::Together(answer, sending) => {
                if let Some(sending) = sending {
                    tokio::spawn(sending.send(together()));
                }
                answered(answer).await
            }
        }
    }

    fn turn(&self, question: Q) -> Turn<'_, Q, A> {
        let Shared { most_alone, most_trips, alone, .. } = &*self.0;
        let one_more = |now| (now < *most_alone).then_some(now + 1);
        if alone.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
            return Turn::Alone(Place(alone), question);
        }
        let (answer, answered) = oneshot::channel();
        let mut state = self.0.state();
        state.waiting.push(Waiting { question, answer });
        let sends = state.trips < *most_trips;
        state.trips += usize::from(sends);
        drop(state);
        Turn::Together(answered, sends.then(|| Sending::new(&self.0)))
    }
}

impl<Q, A> Shared<Q, A> {
    fn state(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reduces the number of calls per round trip after one with large answers, and raises it again
    /// later.
    fn learn(&self, each: &[Answer<A>]) {
        let bytes = each.iter().flatten().map(self.size).fold(0_usize, usize::saturating_add);
        let mut state = self.state();
        let fit = each.len().saturating_mul(MOST_BYTES) / bytes.max(1);
        state.calls = fit.clamp(1, self.most_calls.min(state.calls * 2));
    }
}

/// How a call continues.
enum Turn<'a, Q, A> {
    /// As a separate call.
    Alone(#[allow(dead_code, reason = "held for its drop")] Place<'a>, Q),
    /// Together with others. `Some` for the caller that must send the collected calls.
    Together(oneshot::Receiver<Answer<A>>, Option<Sending<Q, A>>),
}

/// A separate call. It ends when this is dropped.
struct Place<'a>(&'a AtomicUsize);

/// The duty to send the collected calls.
struct Sending<Q, A> {
    shared: Arc<Shared<Q, A>>,
    ended: bool,
}

impl<Q, A> Sending<Q, A> {
    fn new(shared: &Arc<Shared<Q, A>>) -> Self {
        Self { shared: shared.clone(), ended: false }
    }

    /// Sends round trips until no call waits.
    async fn send<F>(mut self, ask: impl Fn(Vec<Q>) -> F)
    where
        F: Future<Output = Answer<Vec<Answer<A>>>>,
    {
        while let Some((questions, answers)) = self.next() {
            if questions.is_empty() {
                continue;
            }
            let answered = {
                let mut asked = pin!(ask(questions));
                loop {
                    match timeout(LOOK_ROUND, asked.as_mut()).await {
                        Ok(answered) => break Some(answered),
                        // No caller waits for this round trip any more, and the next one must not
                        // wait behind it.
                        Err(_) if answers.iter().all(oneshot::Sender::is_closed) => break None,
                        Err(_) => {}
                    }
                }
            };
            match answered {
                None => {}
                Some(Ok(each)) => {
                    self.shared.learn(&each);
                    for (answer, one) in answers.into_iter().zip(each) {
                        drop(answer.send(one));
                    }
                }
                Some(Err(error)) => {
                    for answer in answers {
                        drop(answer.send(Err(error.clone())));
                    }
                }
            }
        }
    }

    /// The questions of the calls that wait now and were not dropped. If there are none, the duty
    /// ends in the same step.
    fn next(&mut self) -> Option<(Vec<Q>, Askers<A>)> {
        // All callers contend for the lock, so memory is allocated before it is taken.
        let room = self.shared.most_calls.min(USUAL_CALLS);
        let (mut questions, mut answers) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let mut state = self.shared.state();
        if state.waiting.is_empty() {
            state.trips -= 1;
            self.ended = true;
            return None;
        }
        let now = state.calls.min(state.waiting.len());
        for Waiting { question, answer } in state.waiting.drain(..now) {
            if !answer.is_closed() {
                questions.push(question);
                answers.push(answer);
            }
        }
        Some((questions, answers))
    }
}

/// The answer to a call that shared a round trip.
async fn answered<A>(answer: oneshot::Receiver<Answer<A>>) -> Answer<A> {
    let ending = |_| {
        let message = "no answer: the task that asked for this call and others has ended";
        Err(DriverError::new(ErrorKind::Unavailable, message))
    };
    answer.await.unwrap_or_else(ending)
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<Q, A> Drop for Sending<Q, A> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Its runtime is ending, or it panicked. The last one to go notifies the waiting callers.
        let mut state = self.shared.state();
        state.trips -= 1;
        let abandoned = if state.trips == 0 { mem::take(&mut state.waiting) } else { Vec::new() };
        drop(state);
        drop(abandoned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    type Echo = Gather<String, String>;

    fn one_trip() -> Echo {
        Gather::with(2, 1, 256, String::len)
    }

    /// Answers each question with itself.
    async fn echo(questions: Vec<String>) -> Answer<Vec<Answer<String>>> {
        tokio::task::yield_now().await;
        Ok(questions.into_iter().map(Ok).collect())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_of_many_callers_gets_its_own_answer() {
        let gather = Arc::new(Echo::new(String::len));
        let together = Arc::new(AtomicUsize::new(0));
        let callers = (0..2_000).map(|at| {
            let (gather, together) = (gather.clone(), together.clone());
            tokio::spawn(async move {
                let key = format!("k{at}");
                let alone = |question: String| async {
                    echo(vec![question]).await.and_then(|mut all| all.pop().unwrap())
                };
                let all = || {
                    move |questions| {
                        together.fetch_add(1, SeqCst);
                        echo(questions)
                    }
                };
                assert_eq!(gather.ask(key.clone(), alone, all).await.unwrap(), key);
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        assert!(together.load(SeqCst) > 0, "none went together");
        let state = gather.0.state();
        let alone = gather.0.alone.load(SeqCst);
        assert_eq!((alone, state.trips, state.waiting.len()), (0, 0, 0));
    }

    /// Takes all places for separate calls.
    fn busy(gather: &Arc<Echo>) -> Vec<Turn<'_, String, String>> {
        (0..gather.0.most_alone).map(|_| gather.turn("busy".into())).collect()
    }

    type Joined = (oneshot::Receiver<Answer<String>>, Option<Sending<String, String>>);

    fn joins(gather: &Arc<Echo>, question: &str) -> Joined {
        match gather.turn(question.into()) {
            Turn::Together(answer, sending) => (answer, sending),
            Turn::Alone(..) => panic!("{question} is on its own"),
        }
    }

    #[tokio::test]
    async fn who_has_given_up_is_not_asked_for() {
        let gather = Arc::new(one_trip());
        let _busy = busy(&gather);
        let (first, sending) = joins(&gather, "first");
        let (given_up, _second) = joins(&gather, "given up");
        drop((first, given_up));
        let ask = |questions: Vec<String>| async move { panic!("{questions:?} was asked") };
        sending.unwrap().send(ask).await;
    }

    #[tokio::test]
    async fn a_failure_is_that_of_all_who_went_together() {
        let gather = Arc::new(one_trip());
        let _busy = busy(&gather);
        let ((one, sending), (two, _second)) = (joins(&gather, "one"), joins(&gather, "two"));
        let ask = |_: Vec<String>| async {
            Err(DriverError::new(ErrorKind::Timeout, "no answer").with_source("the cause"))
        };
        sending.unwrap().send(ask).await;
        for answer in [one, two] {
            let error = answered(answer).await.unwrap_err();
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Timeout, "no answer"));
            let cause = std::error::Error::source(&error).expect("a cause");
            assert_eq!(cause.to_string(), "the cause");
        }
    }

    #[tokio::test]
    async fn a_failure_of_one_is_its_own() {
        let gather = Arc::new(one_trip());
        let _busy = busy(&gather);
        let ((one, sending), (two, _second)) = (joins(&gather, "one"), joins(&gather, "two"));
        let ask = |questions: Vec<String>| async {
            let is_bad = |question: &String| question == "one";
            let bad = || DriverError::new(ErrorKind::Refused, "not this one");
            let each = questions.into_iter().map(|q| if is_bad(&q) { Err(bad()) } else { Ok(q) });
            Ok(each.collect())
        };
        sending.unwrap().send(ask).await;
        assert_eq!(answered(one).await.unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(answered(two).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn a_round_trip_without_an_answer_ends_when_all_have_given_up() {
        let gather = Arc::new(one_trip());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        let hangs = |_: Vec<String>| std::future::pending();
        let sends = tokio::spawn(sending.unwrap().send(hangs));
        timeout(LOOK_ROUND * 4, answer).await.unwrap_err();
        // Its receiver is dropped with the timeout. The sender ends, and the next one may send.
        timeout(LOOK_ROUND * 20, sends).await.expect("it ends").unwrap();
        assert!(joins(&gather, "key").1.is_some());
    }

    #[tokio::test]
    async fn who_waits_is_answered_by_the_senders_that_are_left() {
        let gather = Arc::new(Echo::with(1, 2, 256, String::len));
        let _busy = busy(&gather);
        let (one, first) = joins(&gather, "one");
        let (two, second) = joins(&gather, "two");
        drop(first);
        second.unwrap().send(echo).await;
        assert_eq!(answered(one).await.unwrap(), "one");
        assert_eq!(answered(two).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn who_went_with_one_that_panicked_is_told() {
        let gather = Arc::new(one_trip());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        let ask = |_: Vec<String>| async { panic!("a fault of the driver") };
        tokio::spawn(sending.unwrap().send(ask)).await.unwrap_err();
        assert_eq!(answered(answer).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(joins(&gather, "key").1.is_some());
    }

    #[tokio::test]
    async fn round_trips_with_large_answers_are_small() {
        let gather = Arc::new(Gather::with(1, 1, 64, |size: &usize| *size));
        let sizes = Arc::new(Mutex::new(Vec::new()));
        // All ask for the same number of bytes, at the same time.
        let ask_for = async |bytes: usize| {
            sizes.lock().unwrap().clear();
            let callers = (0..65).map(|_| {
                let (gather, sizes) = (gather.clone(), sizes.clone());
                tokio::spawn(async move {
                    let alone = |bytes: usize| async move {
                        tokio::task::yield_now().await;
                        Ok(bytes)
                    };
                    let together = || {
                        move |all: Vec<usize>| {
                            sizes.lock().unwrap().push(all.len());
                            async { Ok(all.into_iter().map(Ok).collect()) }
                        }
                    };
                    gather.ask(bytes, alone, together).await.unwrap()
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                assert_eq!(caller.await.unwrap(), bytes);
            }
            sizes.lock().unwrap().clone()
        };
        assert_eq!(ask_for(100).await, [64]);
        assert_eq!(ask_for(MOST_BYTES / 4).await, [64]);
        assert_eq!(ask_for(MOST_BYTES / 4).await, [4; 16]);
        assert_eq!(ask_for(MOST_BYTES * 2).await[1..], [1; 60]);
        assert_eq!(ask_for(100).await[..6], [1, 2, 4, 8, 16, 32]);
    }

    #[tokio::test]
    async fn who_waits_for_a_sender_that_was_aborted_is_told() {
        let gather = Arc::new(one_trip());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        drop(sending);
        assert_eq!(answered(answer).await.unwrap_err().kind(), ErrorKind::Unavailable);
        // And the next calls are sent again.
        assert!(joins(&gather, "key").1.is_some());
    }
}
