//! The connection: its state, and the confirmation that the server has a message.
//!
//! NATS does not answer PUBLISH or SUBSCRIBE, but executes the commands of one connection in order.
//! So the driver sends a number to its own inbox after each command: if the number comes back on
//! the same connection, the server has executed the command.
//!
//! The library's events are only hints, because it drops them when they come too fast. Its counter
//! of connections is exact.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use async_nats::connection::State as Wire;
use async_nats::{Client, PublishErrorKind, Subscriber};
use bentocache_driver::DriverError;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error;
use crate::rights::{Right, Rights};

/// How often to check the connection if no event reports a change.
const LOOK: Duration = Duration::from_millis(200);

/// The library's reports about a connection.
#[derive(Default)]
pub(crate) struct Reports {
    changed: Notify,
    gaps: AtomicU64,
    pub(crate) rights: Rights,
}

impl Reports {
    /// Something happened to the connection.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Messages were dropped, because a subscription was read too slowly.
    pub(crate) fn gap(&self) {
        self.gaps.fetch_add(1, SeqCst);
    }
}

/// The known state of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) is_up: bool,
    /// A number that changes with each connection.
    pub(crate) session: u64,
    /// The number of times that messages were dropped.
    pub(crate) gaps: u64,
}

/// A connection that reconnects by itself.
pub(crate) struct Link {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    client: Client,
    timeout: Duration,
    reports: Arc<Reports>,
    state: watch::Sender<State>,
    /// The inbox for the numbers.
    inbox: String,
    sent: AtomicU64,
    returned: watch::Sender<u64>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Waits until the inbox works, which proves that the user has the rights for it.
    pub(crate) async fn new(
        client: Client,
        reports: Arc<Reports>,
        limit: Duration,
    ) -> Result<Self, DriverError> {
        let inbox = client.new_inbox();
        let numbers = client.subscribe(inbox.clone()).await;
        let numbers = numbers.map_err(|wrong| error::unavailable("connect", wrong))?;
        let shared = Arc::new(Shared {
            client,
            timeout: limit,
            reports,
            state: watch::Sender::default(),
            inbox,
            sent: AtomicU64::new(0),
            returned: watch::Sender::default(),
        });
        shared.look();
        let task = tokio::spawn(watch(Arc::clone(&shared), numbers));
        let link = Self { shared, task };
        let session = link.session("connect")?;
        let Shared { reports, inbox, .. } = &*link.shared;
        tokio::select! {
            biased;
            () = reports.rights.refusal(Right::Subscribe, inbox, 0) => {
                return Err(error::lacks(Right::Subscribe, "_INBOX.>"));
            }
            () = reports.rights.refusal(Right::Publish, inbox, 0) => {
                return Err(error::lacks(Right::Publish, "_INBOX.>"));
            }
            confirmed = link.confirm("connect", session) => confirmed?,
        }
        Ok(link)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.shared.now().is_up
    }

    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Whether the client was closed, or the runtime of the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Whether the server is part of a cluster and must propagate subscriptions.
    pub(crate) fn is_clustered(&self) -> bool {
        self.shared.client.server_info().cluster.is_some()
    }

    /// The number of the current connection, if there is one.
    pub(crate) fn session(&self, doing: &str) -> Result<u64, DriverError> {
        self.shared.look();
        let now = *self.shared.state.borrow();
        if now.is_up { Ok(now.session) } else { Err(gone(doing)) }
    }

    /// Sends a message and waits until the server has it.
    pub(crate) async fn publish(&self, subject: String, message: Bytes) -> Result<(), DriverError> {
        let doing = "publish";
        let session = self.session(doing)?;
        let client = &self.shared.client;
        let most = client.max_payload();
        if message.len() > most {
            let advice = "raise max_payload in the server's configuration";
            return Err(error::too_large("message", message.len(), most, advice));
        }
        let rights = &self.shared.reports.rights;
        let before = rights.refused(Right::Publish, &subject);
        let publish = async {
            client.publish(subject.clone(), message).await.map_err(|wrong| match wrong.kind() {
                PublishErrorKind::Send => error::ended(),
                _ => error::unavailable(doing, wrong),
            })?;
            self.confirm(doing, session).await?;
            match rights.is_granted(Right::Publish, &subject, before, session).await {
                true => Ok(()),
                false => Err(error::lacks(Right::Publish, &subject)),
            }
        };
        self.in_time(doing, publish).await
    }

    /// Subscribes and waits until the server has it.
    pub(crate) async fn subscribe(
        &self,
        subject: String,
    ) -> Result<(Subscriber, State), DriverError> {
        let doing = "subscribe";
        let session = self.session(doing)?;
        let state = *self.shared.state.borrow();
        let rights = &self.shared.reports.rights;
        let before = rights.refused(Right::Subscribe, &subject);
        let subscribe = async {
            let subscriber = self.shared.client.subscribe(subject.clone()).await;
            let subscriber = subscriber.map_err(|wrong| error::unavailable(doing, wrong))?;
            self.confirm(doing, session).await?;
            if !rights.is_granted(Right::Subscribe, &subject, before, session).await {
                return Err(error::lacks(Right::Subscribe, &subject));
            }
            Ok((subscriber, State { is_up: true, session, ..state }))
        };
        self.in_time(doing, subscribe).await
    }

    /// The refusals of the server.
    pub(crate) fn rights(&self) -> &Rights {
        &self.shared.reports.rights
    }

    /// Waits until the server has executed the commands sent before on this connection.
    pub(crate) async fn confirm(&self, doing: &str, session: u64) -> Result<(), DriverError> {
        let shared = &self.shared;
        // A higher number was sent after this call's command, so its return also confirms this one.
        let number = shared.sent.fetch_add(1, SeqCst) + 1;
        let mut returned = shared.returned.subscribe();
        let mut state = shared.state.subscribe();
        let there_and_back = async {
            let bytes = Bytes::copy_from_slice(&number.to_be_bytes());
            let sent = shared.client.publish(shared.inbox.clone(), bytes).await;
            sent.map_err(|_| error::ended())?;
            let is_back = returned.wait_for(|returned| *returned >= number).await.is_ok();
            let now = shared.now();
            // Another connection may have returned the number without the command.
            if is_back && now.session == session { Ok(()) } else { Err(gone(doing)) }
        };
        let there_and_back = self.in_time(doing, there_and_back);
        let is_lost = |now: &State| !now.is_up || now.session != session;
        tokio::select! {
            biased;
            confirmed = there_and_back => confirmed,
            _ = state.wait_for(is_lost) => Err(gone(doing)),
        }
    }

    async fn in_time<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let limit = self.shared.timeout;
        timeout(limit, call).await.unwrap_or_else(|_| Err(error::late(doing, limit)))
    }
}

fn gone(doing: &str) -> DriverError {
    error::unavailable(doing, "the connection is gone; it is being opened again")
}

impl Shared {
    fn now(&self) -> State {
        let is_up = self.client.connection_state() == Wire::Connected;
        State {
            is_up,
            session: self.client.statistics().connects.load(SeqCst),
            gaps: self.reports.gaps.load(SeqCst),
        }
    }

    fn look(&self) {
        self.state.send_if_modified(|state| {
            // Under the lock, so that no older check is recorded after this one.
            let now = self.now();
            std::mem::replace(state, now) != now
        });
    }
}

/// Watches the connection, and receives the numbers, until it is aborted or the client is closed.
async fn watch(shared: Arc<Shared>, mut numbers: Subscriber) {
    let looks = async {
        loop {
            shared.look();
            let _ = timeout(LOOK, shared.reports.changed.notified()).await;
        }
    };
    let returns = async {
        while let Some(message) = numbers.next().await {
            if let Ok(number) = <[u8; 8]>::try_from(&message.payload[..]) {
                let number = u64::from_be_bytes(number);
                // A number that was never sent comes from another client.
                if number <= shared.sent.load(Relaxed) {
                    shared.returned.send_if_modified(|returned| {
                        let is_news = number > *returned;
                        *returned = number.max(*returned);
                        is_news
                    });
                }
            }
        }
    };
    tokio::select! {
        () = looks => {}
        () = returns => {}
    }
    shared.state.send_replace(State::default());
}
