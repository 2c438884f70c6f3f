//! Calls that come at the same time travel together.
//!
//! A few go out as they come. While those are under way, further ones gather, and leave as one
//! for all: under load the server and the client do the work of a round trip once for many calls,
//! instead of once for each.

use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bentocache_core::DriverError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::l2::unavailable;

/// How many calls go out on their own.
const SINGLE: usize = 2;
/// How many round trips for many calls are under way at once: more of them would be smaller.
const TOGETHER: usize = 1;
/// How many calls such a round trip has at most.
const MOST_CALLS: usize = 256;
/// How often a round trip without an answer is looked at, whether anybody still waits for it.
const LOOK_ROUND: Duration = Duration::from_millis(50);

type Answer<A> = Result<A, DriverError>;

/// Calls of one kind: what each asks for, and what it gets.
pub(crate) struct Gather<Q, A>(Mutex<State<Q, A>>);

struct State<Q, A> {
    single: usize,
    together: usize,
    waiting: Vec<Waiting<Q, A>>,
}

struct Waiting<Q, A> {
    question: Q,
    answer: oneshot::Sender<Answer<A>>,
}

impl<Q, A> Default for Gather<Q, A> {
    fn default() -> Self {
        Self(Mutex::new(State { single: 0, together: 0, waiting: Vec::new() }))
    }
}

/// How a call is to go on.
pub(crate) enum Turn<Q, A> {
    /// On its own.
    Single(#[allow(dead_code, reason = "held for its drop")] Single<Q, A>, Q),
    /// With others: `Some` for the caller that has to send them off, see [`Sending::send`].
    Together(oneshot::Receiver<Answer<A>>, Option<Sending<Q, A>>),
}

/// A call on its own, until it is dropped.
pub(crate) struct Single<Q, A>(Arc<Gather<Q, A>>);

/// The duty to send off what gathers.
pub(crate) struct Sending<Q, A> {
    gather: Arc<Gather<Q, A>>,
    ended: bool,
}

impl<Q, A> Gather<Q, A> {
    pub(crate) fn turn(self: &Arc<Self>, question: Q) -> Turn<Q, A> {
        let mut state = self.state();
        if state.single < SINGLE {
            state.single += 1;
            return Turn::Single(Single(self.clone()), question);
        }
        let (answer, answered) = oneshot::channel();
        state.waiting.push(Waiting { question, answer });
        let sends = state.together < TOGETHER;
        state.together += usize::from(sends);
        Turn::Together(answered, sends.then(|| Sending { gather: self.clone(), ended: false }))
    }

    fn state(&self) -> MutexGuard<'_, State<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q, A> Sending<Q, A> {
    /// Asks for all who wait, until nobody does. `ask` has as many answers as questions.
    pub(crate) async fn send(mut self, ask: impl AsyncFn(Vec<Q>) -> Answer<Vec<Answer<A>>>) {
        while let Some(some) = self.next() {
            // But not for those who have given up meanwhile.
            let some = some.into_iter().filter(|waiting| !waiting.answer.is_closed());
            let (questions, answers): (Vec<_>, Vec<_>) =
                some.map(|waiting| (waiting.question, waiting.answer)).unzip();
            if questions.is_empty() {
                continue;
            }
            let answered = {
                let mut asked = pin!(ask(questions));
                loop {
                    match timeout(LOOK_ROUND, asked.as_mut()).await {
                        Ok(answered) => break Some(answered),
                        // Nobody waits for it any more, and the next must not wait behind it.
                        Err(_) if answers.iter().all(oneshot::Sender::is_closed) => break None,
                        Err(_) => {}
                    }
                }
            };
            match answered {
                None => {}
                Some(Ok(each)) => {
                    for (answer, one) in answers.into_iter().zip(each) {
                        drop(answer.send(one));
                    }
                }
                Some(Err(error)) => {
                    for answer in answers {
                        let error = DriverError::new(error.kind(), error.to_string());
                        drop(answer.send(Err(error)));
                    }
                }
            }
        }
    }

    /// Who waits now. With nobody left, the duty ends in the same step.
    fn next(&mut self) -> Option<Vec<Waiting<Q, A>>> {
        let mut state = self.gather.state();
        if state.waiting.is_empty() {
            state.together -= 1;
            self.ended = true;
            return None;
        }
        if state.waiting.len() <= MOST_CALLS {
            return Some(mem::take(&mut state.waiting));
        }
        Some(state.waiting.drain(..MOST_CALLS).collect())
    }
}

/// The answer to a call that went with others; `doing` completes "cannot …".
pub(crate) async fn answered<A>(doing: &str, answer: oneshot::Receiver<Answer<A>>) -> Answer<A> {
    answer.await.unwrap_or_else(|_| Err(unavailable(doing, "the runtime is ending")))
}

impl<Q, A> Drop for Single<Q, A> {
    fn drop(&mut self) {
        self.0.state().single -= 1;
    }
}

impl<Q, A> Drop for Sending<Q, A> {
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

    type Echo = Gather<String, String>;

    /// Answers each with itself.
    async fn echo(questions: Vec<String>) -> Answer<Vec<Answer<String>>> {
        tokio::task::yield_now().await;
        Ok(questions.into_iter().map(Ok).collect())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_of_many_callers_gets_its_own_answer() {
        let gather = Arc::new(Echo::default());
        let together = Arc::new(AtomicUsize::new(0));
        let callers = (0..2_000).map(|at| {
            let (gather, together) = (gather.clone(), together.clone());
            tokio::spawn(async move {
                let key = format!("k{at}");
                match gather.turn(key.clone()) {
                    Turn::Single(_single, question) => {
                        assert_eq!(echo(vec![question]).await.unwrap()[0].as_ref().unwrap(), &key);
                    }
                    Turn::Together(answer, sending) => {
                        together.fetch_add(1, SeqCst);
                        if let Some(sending) = sending {
                            tokio::spawn(sending.send(echo));
                        }
                        assert_eq!(answered("get", answer).await.unwrap(), key);
                    }
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        assert!(together.load(SeqCst) > 0, "none went together");
        let state = gather.state();
        assert_eq!((state.single, state.together, state.waiting.len()), (0, 0, 0));
    }

    /// Takes all places for calls on their own.
    fn busy(gather: &Arc<Echo>) -> Vec<Turn<String, String>> {
        (0..SINGLE).map(|_| gather.turn("busy".into())).collect()
    }

    type Joined = (oneshot::Receiver<Answer<String>>, Option<Sending<String, String>>);

    fn joins(gather: &Arc<Echo>, question: &str) -> Joined {
        match gather.turn(question.into()) {
            Turn::Together(answer, sending) => (answer, sending),
            Turn::Single(..) => panic!("{question} is on its own"),
        }
    }

    #[tokio::test]
    async fn who_has_given_up_is_not_asked_for() {
        let gather = Arc::new(Echo::default());
        let _busy = busy(&gather);
        let (first, sending) = joins(&gather, "first");
        let (given_up, _second) = joins(&gather, "given up");
        drop((first, given_up));
        let ask = async |questions: Vec<String>| panic!("{questions:?} was asked");
        sending.unwrap().send(ask).await;
    }

    #[tokio::test]
    async fn a_failure_is_that_of_all_who_went_together() {
        let gather = Arc::new(Echo::default());
        let _busy = busy(&gather);
        let ((one, sending), (two, _second)) = (joins(&gather, "one"), joins(&gather, "two"));
        let ask = async |_: Vec<String>| Err(DriverError::new(ErrorKind::Timeout, "no answer"));
        sending.unwrap().send(ask).await;
        for answer in [one, two] {
            let error = answered("get", answer).await.unwrap_err();
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Timeout, "no answer"));
        }
    }

    #[tokio::test]
    async fn a_failure_of_one_is_its_own() {
        let gather = Arc::new(Echo::default());
        let _busy = busy(&gather);
        let ((one, sending), (two, _second)) = (joins(&gather, "one"), joins(&gather, "two"));
        let ask = async |questions: Vec<String>| {
            let is_bad = |question: &String| question == "one";
            let bad = || DriverError::new(ErrorKind::Refused, "not this one");
            let each = questions.into_iter().map(|q| if is_bad(&q) { Err(bad()) } else { Ok(q) });
            Ok(each.collect())
        };
        sending.unwrap().send(ask).await;
        assert_eq!(answered("get", one).await.unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(answered("get", two).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn a_round_trip_without_an_answer_ends_when_all_have_given_up() {
        let gather = Arc::new(Echo::default());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        let hangs = async |_: Vec<String>| std::future::pending().await;
        let sends = tokio::spawn(sending.unwrap().send(hangs));
        tokio::time::timeout(LOOK_ROUND * 4, answer).await.unwrap_err();
        // Its receiver is gone with the timeout; the sender ends, and the next one may send.
        sends.await.unwrap();
        assert!(joins(&gather, "key").1.is_some());
    }

    #[tokio::test]
    async fn who_waits_for_a_sender_that_was_aborted_is_told() {
        let gather = Arc::new(Echo::default());
        let _busy = busy(&gather);
        let (answer, sending) = joins(&gather, "key");
        drop(sending);
        assert_eq!(answered("get", answer).await.unwrap_err().kind(), ErrorKind::Unavailable);
        // And the next ones are sent for again.
        assert!(joins(&gather, "key").1.is_some());
    }
}
