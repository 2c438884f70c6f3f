//! The state of a driver's connection, shared by its calls and by the task that maintains it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bentocache_driver::DriverError;
use tokio::runtime;
use tokio::sync::{Notify, watch};

use crate::conn::Conn;
use crate::connect::{Cluster, Servers, Target};
use crate::error::{self, Failure};
use crate::fence::ServerClock;
use crate::pulse::Peer;
use crate::shards::Shards;

#[derive(Clone)]
pub(crate) enum State {
    /// The first attempt is under way.
    Opening,
    Up {
        conn: Conn,
        session: Arc<Session>,
        trouble: Option<Trouble>,
        /// The number of times that trouble ended.
        healed: u64,
    },
    /// The last attempt failed; more follow.
    Down(Arc<Failure>),
    /// The runtime of the task has ended.
    Ended,
    Closed,
}

/// One connection from its opening to its replacement.
pub(crate) struct Session {
    pub(crate) id: u64,
    since: Instant,
    /// The connection's identity on the server.
    pub(crate) peer: Option<Peer>,
    /// The number of writes in flight.
    pub(crate) writing: AtomicU64,
    /// The number of writes without an answer, and of those that the server is known to have
    /// processed.
    pub(crate) unanswered: AtomicU64,
    settled: AtomicU64,
}

impl Session {
    pub(crate) fn new(peer: Option<Peer>) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Relaxed) + 1;
        let [writing, unanswered, settled] = [(); 3].map(|()| AtomicU64::new(0));
        Self { id, since: Instant::now(), peer, writing, unanswered, settled }
    }

    /// The number of unanswered writes so far, to be passed to [`settle`](Self::settle).
    pub(crate) fn unanswered(&self) -> u64 {
        self.unanswered.load(Relaxed)
    }

    /// The server has answered a command that was sent after this many unanswered writes.
    pub(crate) fn settle(&self, unanswered: u64) {
        self.settled.store(unanswered, Relaxed);
    }

    /// Whether an unanswered write may still arrive.
    pub(crate) fn has_given_up(&self) -> bool {
        self.unanswered() != self.settled.load(Relaxed)
    }

    /// Whether any write may still arrive.
    pub(crate) fn is_suspect(&self) -> bool {
        self.writing.load(Relaxed) > 0 || self.has_given_up()
    }
}

/// The reason why calls fail although there is a connection.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// A call had no answer.
    Silence,
    /// The server refuses calls, for a reason that may end.
    Refusal { key: Option<Vec<u8>>, writes: bool },
}

pub(crate) struct Shared {
    /// The runtime of the task.
    pub(crate) runtime: runtime::Id,
    pub(crate) servers: Servers,
    pub(crate) any_node: bool,
    pub(crate) clock: ServerClock,
    pub(crate) state: watch::Sender<State>,
    /// Notified of trouble: the task checks at once.
    pub(crate) doubt: Notify,
    /// The shards of a cluster.
    pub(crate) shards: Shards,
}

pub(crate) fn up(conn: Conn, session: Arc<Session>) -> State {
    State::Up { conn, session, trouble: None, healed: 0 }
}

impl Shared {
    /// Waits for the outcome of the first attempt.
    pub(crate) async fn conn(
        &self,
        doing: &'static str,
    ) -> Result<(Conn, Arc<Session>), DriverError> {
        if let Some(found) = conn_of(&self.state.borrow(), doing) {
            return found;
        }
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, State::Opening)).await;
        match state {
            Ok(state) => conn_of(&state, doing).unwrap_or_else(|| Err(error::closed())),
            Err(_) => Err(error::closed()),
        }
    }

    /// The cluster, if the connection consists of connections to all nodes.
    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.servers.target {
            Target::Cluster(cluster) if !self.any_node => Some(cluster),
            _ => None,
        }
    }

    /// Whether the connection consists of connections to all nodes of a cluster.
    pub(crate) fn is_many(&self) -> bool {
        self.servers.target.is_cluster() && !self.any_node
    }

    pub(crate) fn is_given(&self) -> bool {
        matches!(self.servers.target, Target::Given(_))
    }

    /// Requests the replacement of this connection, unless it is younger or belongs to the
    /// application.
    pub(crate) fn replace(&self, old: u64, min_age: Duration) {
        self.state.send_if_modified(|state| match state {
            State::Up { session, .. }
                if session.id == old && session.since.elapsed() >= min_age && !self.is_given() =>
            {
                *state = State::Opening;
                true
            }
            _ => false,
        });
    }

    pub(crate) fn troubled(&self, id: u64, new: Trouble) {
        let is_silence = matches!(new, Trouble::Silence);
        let is_new = self.state.send_if_modified(|state| match state {
            State::Up { session, trouble, .. }
                if session.id == id && trouble.is_none() && !self.is_given() =>
            {
                *trouble = Some(new);
                true
            }
            _ => false,
        });
        // Not for each of many refusals: checks have pauses.
        if is_new || is_silence {
            self.doubt.notify_one();
        }
    }

    /// Calls work again: reported as a restored link.
    pub(crate) fn revived(&self) {
        self.state.send_if_modified(|state| match state {
            State::Up { healed, .. } => {
                *healed += 1;
                true
            }
            _ => false,
        });
    }

    pub(crate) async fn replaced(&self, id: u64) {
        let mut state = self.state.subscribe();
        let is_other =
            |state: &State| !matches!(state, State::Up { session, .. } if session.id == id);
        let _ = state.wait_for(is_other).await;
    }

    /// Whether the driver is still open.
    pub(crate) fn publish(&self, next: State) -> bool {
        self.state.send_if_modified(|state| {
            let is_open = !matches!(state, State::Closed);
            if is_open {
                *state = next;
            }
            is_open
        })
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        match &*self.state.borrow() {
            State::Up { trouble, .. } => trouble.clone(),
            _ => None,
        }
    }

    pub(crate) fn heal(&self, id: u64) {
        self.state.send_if_modified(|state| match state {
            State::Up { session, trouble, healed, .. } if session.id == id => {
                *healed += u64::from(trouble.take().is_some());
                true
            }
            _ => false,
        });
    }
}

fn conn_of(state: &State, doing: &str) -> Option<Result<(Conn, Arc<Session>), DriverError>> {
    match state {
        State::Up { conn, session, .. } => Some(Ok((conn.clone(), Arc::clone(session)))),
        State::Down(failure) => Some(Err(failure.error(doing))),
        // The next call opens another one.
        State::Ended => Some(Err(error::interrupted())),
        State::Closed => Some(Err(error::closed())),
        State::Opening => None,
    }
}
