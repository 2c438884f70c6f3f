//! The connection: the first use opens it, and it is reopened after a loss.
//!
//! A task opens it, watches it, and reopens it with growing pauses until the driver is dropped.
//! Calls during the first attempt after a loss wait for that attempt; later calls fail at once with
//! its reason until an attempt succeeds, so that a dead server costs no time.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::DriverError;
use bentocache_driver::kit::Backoff;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::channels::Channels;
use crate::connect::{Servers, Session};
use crate::error::{self, Failure};

/// How often to check the connection if no event reports a change.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Opening,
    Up(Arc<Channels>),
    /// The last attempt failed; others follow.
    Down(Failure),
    Closed,
    /// The runtime of the task is shut down.
    Ended,
}

pub(crate) struct Link {
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // First, so that every observer of the end knows the reason.
        self.state.send_replace(State::Closed);
        self.task.abort();
    }
}

impl Link {
    pub(crate) fn new(servers: Servers) -> Self {
        let state = watch::Sender::new(State::Opening);
        // Made here, because a task that never starts is also dropped.
        let ending = Ending(state.clone());
        let task = tokio::spawn(keep(servers, ending));
        Self { state, task }
    }

    /// Whether the runtime of the connection was shut down.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch(self.state.subscribe())
    }

    /// The reason why a call waits.
    pub(crate) fn obstacle(&self) -> String {
        match &*self.state.borrow() {
            State::Up(_) => error::UNCONFIRMED.to_owned(),
            State::Down(failure) => failure.to_string(),
            State::Opening | State::Closed | State::Ended => error::OPENING.to_owned(),
        }
    }

    /// Ends the connection.
    pub(crate) async fn close(&self) {
        let state = self.state.send_replace(State::Closed);
        self.task.abort();
        if let State::Up(channels) = state {
            channels.session().close().await;
        }
    }
}

/// A view of the connection that does not keep it open.
pub(crate) struct Watch(watch::Receiver<State>);

impl Watch {
    /// The connection, after the current attempt has ended.
    pub(crate) async fn channels(&mut self, doing: &str) -> Result<Arc<Channels>, DriverError> {
        let state = self.0.wait_for(|state| !matches!(state, State::Opening)).await;
        match state.as_deref() {
            Ok(State::Up(channels)) => Ok(Arc::clone(channels)),
            Ok(State::Down(failure)) => Err(failure.error(doing)),
            Ok(State::Ended) => Err(error::ended()),
            Ok(State::Closed | State::Opening) | Err(_) => Err(error::closed()),
        }
    }

    /// The next connection; `None` if there will be none.
    pub(crate) async fn next(&mut self) -> Option<Arc<Channels>> {
        let is_known = |state: &State| matches!(state, State::Up(_) | State::Closed | State::Ended);
        match self.0.wait_for(is_known).await.as_deref() {
            Ok(State::Up(channels)) => Some(Arc::clone(channels)),
            _ => None,
        }
    }

    /// Whether the link was closed on purpose, which is no loss.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.0.borrow(), State::Closed | State::Ended)
    }

    /// Returns when this connection has been replaced or lost.
    pub(crate) async fn replaced(&mut self, channels: &Arc<Channels>) {
        let is_other =
            |state: &State| !matches!(state, State::Up(now) if Arc::ptr_eq(now, channels));
        let _ = self.0.wait_for(is_other).await;
    }
}

/// Notifies waiting calls that the task was dropped.
struct Ending(watch::Sender<State>);

impl Drop for Ending {
    fn drop(&mut self) {
        replace(&self.0, State::Ended);
    }
}

/// The task that maintains the connection, until it is aborted.
async fn keep(servers: Servers, ending: Ending) {
    let state = &ending.0;
    let mut backoff = Backoff::default();
    // A change is logged once, not at each attempt.
    let mut is_told = false;
    for turn in 0.. {
        match servers.open(turn).await {
            Ok(session) => {
                backoff.reset();
                if std::mem::take(&mut is_told) {
                    tracing::info!("connected to rabbitmq again");
                }
                let channels = Arc::new(Channels::new(session, servers.timeout()));
                if !replace(state, State::Up(Arc::clone(&channels))) {
                    return;
                }
                broken(channels.session()).await;
                tracing::debug!("the connection to rabbitmq was lost");
                if !replace(state, State::Opening) {
                    return;
                }
                // A pause, for a server that drops every connection at once.
                backoff.pause().await;
            }
            Err(failure) => {
                if std::mem::replace(&mut is_told, true) {
                    tracing::debug!(reason = %failure, "still no connection to rabbitmq");
                } else {
                    tracing::warn!(reason = %failure, "no connection to rabbitmq; trying on");
                }
                if !replace(state, State::Down(failure)) {
                    return;
                }
                backoff.pause().await;
            }
        }
    }
}

/// Whether the link is still open.
fn replace(state: &watch::Sender<State>, next: State) -> bool {
    state.send_if_modified(|state| {
        let is_open = !matches!(state, State::Closed);
        if is_open {
            *state = next;
        }
        is_open
    })
}

/// Returns when the connection is gone.
async fn broken(session: &Session) {
    let mut events = session.connection().events_listener();
    while session.is_open() {
        // Any event is a reason to check again.
        let _ = timeout(LOOK, events.next()).await;
    }
}
