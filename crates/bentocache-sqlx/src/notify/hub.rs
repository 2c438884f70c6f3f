//! One connection listens for all subscriptions of a bus, and is reopened after a loss.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache_driver::kit::Backoff;
use bentocache_driver::{BusEvent, BusFeed, DriverError, ErrorKind};
use bentocache_sql::Dialect;
use sqlx::postgres::{PgConnection, PgListener, PgNotification, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgPool, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::parts::Joiner;
use crate::database::failure;

/// Whether the server refuses writes: a standby, or a demoted primary. Writers never reach its
/// listeners.
const IS_READ_ONLY: &str =
    "select pg_is_in_recovery() or current_setting('transaction_read_only')::bool";
const POOLER: &str = "a pooler in transaction mode, such as PgBouncer, keeps no subscriptions and no \
                      prepared statements: give the bus a pool of its own, straight to the server \
                      or through a pooler in session mode";
/// The reason why a call on a silent connection waits.
pub(crate) const SILENT: &str = "the server does not answer; is it overloaded?";
/// The reason why a subscription waits.
pub(crate) const NOT_LISTENING: &str = "the connection of the bus's own, which listens, is not ready yet; is the server running, and the \
     address right?";
/// The time limit for a notification from one connection to another.
const PROBE: Duration = Duration::from_secs(2);

/// How long a connection must have lived for the first retry to come without a pause.
const SETTLED: Duration = Duration::from_secs(1);

/// A request of the bus or of a subscription.
pub(crate) enum Request {
    /// Adds a reader of this channel; answered when the connection listens to it.
    Enter { channel: String, feed: Arc<BusFeed>, done: oneshot::Sender<Result<(), DriverError>> },
    /// A reader of this channel is gone.
    Leave { channel: String },
}

/// The state of the connection's task. Dropping it ends all subscriptions.
pub(crate) struct Hub {
    pool: PgPool,
    options: Options,
    requests: mpsc::UnboundedReceiver<Request>,
    readers: HashMap<String, Vec<Arc<BusFeed>>>,
    /// Whether a notification has arrived, which proves that no pooler holds notifications back.
    is_direct: bool,
}

impl Drop for Hub {
    fn drop(&mut self) {
        for feed in self.readers.values().flatten() {
            feed.end();
        }
    }
}

/// The options that the bus's setters change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) ping_interval: Duration,
}

/// The first event.
enum Event {
    Request(Request),
    Notification(PgNotification),
    Silence,
    Lost(&'static str),
    /// The bus is gone.
    End,
}

impl Hub {
    pub(crate) fn new(
        pool: PgPool,
        options: Options,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Self {
        Self { pool, options, requests, readers: HashMap::new(), is_direct: false }
    }

    /// Keeps a connection while there are subscriptions, until the bus is gone.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        // Requests that arrived while there was no connection.
        let mut waiting = Vec::new();
        loop {
            if self.readers.is_empty() && waiting.is_empty() {
                match self.requests.recv().await {
                    Some(request) => waiting.push(request),
                    None => return,
                }
            }
            match self.dial().await {
                Ok(listener) => {
                    let since = Instant::now();
                    self.each_reader(BusFeed::restored);
                    let Some(reason) = self.serve(listener, &mut waiting).await else { return };
                    self.each_reader(BusFeed::lost);
                    if !self.readers.is_empty() {
                        tracing::debug!(reason, "the connection that listens was lost");
                    }
                    if since.elapsed() >= SETTLED {
                        backoff.reset();
                        continue;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection to listen yet");
                    self.refuse(&mut waiting, &error);
                }
            }
            if !self.readers.is_empty() {
                backoff.pause().await;
            }
        }
    }

    fn each_reader(&self, tell: impl Fn(&BusFeed)) {
        self.readers.values().flatten().for_each(|feed| tell(feed));
    }

    /// A connection that listens to all channels with readers. It does not belong to the
    /// application's pool, because it would never return to it.
    async fn dial(&mut self) -> Result<PgListener, DriverError> {
        self.readers.retain(|_, feeds| {
            feeds.retain(|feed| !feed.is_closed());
            !feeds.is_empty()
        });
        let own = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(self.options.connect_timeout)
            .connect_lazy_with((*self.pool.connect_options()).clone());
        let channels: Vec<&str> = self.readers.keys().map(String::as_str).collect();
        let dialed = timeout(self.options.connect_timeout + self.options.timeout, async {
            let mut listener = PgListener::connect_with(&own).await?;
            listener.eager_reconnect(false);
            if is_read_only(&mut listener).await? {
                return Ok(Err(read_only()));
            }
            if !self.is_direct && !self.hears_another(&mut listener).await? {
                return Ok(Err(deaf()));
            }
            if !channels.is_empty() {
                listener.listen_all(channels).await?;
            }
            Ok(Ok(listener))
        });
        let listener = match dialed.await {
            Ok(dialed) => dialed.map_err(|error| told("listen", error))??,
            Err(_) => return Err(late("listen", SILENT)),
        };
        self.is_direct = true;
        Ok(listener)
    }

    /// Whether a notification of another connection arrives. Through a pooler in transaction mode
    /// none does, and nothing else shows that.
    async fn hears_another(&self, listener: &mut PgListener) -> sqlx::Result<bool> {
        let channel = format!("bentocache.probe:{:016x}", fastrand::u64(..));
        listener.listen(&channel).await?;
        let mut other = PgConnection::connect_with(&self.pool.connect_options()).await?;
        // The text contains only our own parts. It is not prepared, because a pooler might mix up
        // prepared statements.
        let notify = sqlx::raw_sql(AssertSqlSafe(format!("notify \"{channel}\"")));
        match other.execute(notify).await {
            // A pooler gave it the server connection that listens.
            Err(sqlx::Error::Protocol(_)) => return Ok(false),
            done => done?,
        };
        other.close().await?;
        let heard = timeout(PROBE, async {
            while let Some(notification) = listener.try_recv().await? {
                if notification.channel() == channel {
                    return Ok::<_, sqlx::Error>(true);
                }
            }
            Ok(false)
        });
        let is_heard = heard.await.unwrap_or(Ok(false))?;
        listener.unlisten(&channel).await?;
        Ok(is_heard)
    }

    /// Answers waiting subscriptions that there is no connection.
    fn refuse(&mut self, waiting: &mut Vec<Request>, error: &DriverError) {
        let queued = std::iter::from_fn(|| self.requests.try_recv().ok());
        for request in waiting.drain(..).chain(queued) {
            if let Request::Enter { done, .. } = request {
                let _ = done.send(Err(DriverError::new(error.kind(), error.to_string())));
            }
        }
    }

    /// Serves until the connection is lost, and returns the reason; `None` if the bus is gone.
    async fn serve(
        &mut self,
        mut listener: PgListener,
        waiting: &mut Vec<Request>,
    ) -> Option<&'static str> {
        let mut joiner = Joiner::default();
        for request in waiting.drain(..) {
            if let Err(reason) = self.answer(request, &mut listener).await {
                return Some(reason);
            }
        }
        loop {
            let lost = match self.next(&mut listener).await {
                Event::Request(request) => self.answer(request, &mut listener).await.err(),
                Event::Notification(notification) => {
                    self.deliver(&mut joiner, &notification);
                    None
                }
                Event::Silence => self.ping(&mut listener).await.err(),
                Event::Lost(reason) => Some(reason),
                Event::End => return None,
            };
            if lost.is_some() || self.readers.is_empty() {
                return Some(lost.unwrap_or("nobody listens"));
            }
        }
    }

    async fn next(&mut self, listener: &mut PgListener) -> Event {
        tokio::select! {
            request = self.requests.recv() => request.map_or(Event::End, Event::Request),
            received = timeout(self.options.ping_interval, listener.try_recv()) => match received {
                Ok(Ok(Some(notification))) => Event::Notification(notification),
                Ok(Ok(None)) => Event::Lost("the connection was closed"),
                Ok(Err(_)) => Event::Lost("the connection has failed"),
                Err(_) => Event::Silence,
            },
        }
    }

    async fn answer(
        &mut self,
        request: Request,
        listener: &mut PgListener,
    ) -> Result<(), &'static str> {
        match request {
            Request::Enter { channel, feed, done } => {
                if !self.readers.contains_key(&channel) {
                    let listening = timeout(self.options.timeout, listener.listen(&channel)).await;
                    let error = match listening {
                        Ok(Ok(())) => None,
                        Ok(Err(error)) => Some(told("listen", error)),
                        Err(_) => Some(late("listen", SILENT)),
                    };
                    if let Some(error) = error {
                        let _ = done.send(Err(error));
                        return Err("a channel could not be added");
                    }
                }
                self.readers.entry(channel).or_default().push(feed);
                // If the subscriber stopped waiting, a request to leave follows.
                let _ = done.send(Ok(()));
                Ok(())
            }
            Request::Leave { channel } => self.leave(&channel, listener).await,
        }
    }

    async fn leave(
        &mut self,
        channel: &str,
        listener: &mut PgListener,
    ) -> Result<(), &'static str> {
        let Some(feeds) = self.readers.get_mut(channel) else { return Ok(()) };
        feeds.retain(|feed| !feed.is_closed());
        if !feeds.is_empty() {
            return Ok(());
        }
        self.readers.remove(channel);
        match timeout(self.options.timeout, listener.unlisten(channel)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err("a channel could not be left"),
        }
    }

    /// Pings the server and checks whether it is still the primary. The listener keeps
    /// notifications that arrive meanwhile.
    async fn ping(&self, listener: &mut PgListener) -> Result<(), &'static str> {
        match timeout(self.options.timeout, is_read_only(listener)).await {
            Ok(Ok(false)) => Ok(()),
            Ok(Ok(true)) => Err("the server has become read-only"),
            _ => Err("no answer to a ping"),
        }
    }

    fn deliver(&self, joiner: &mut Joiner, notification: &PgNotification) {
        let Some(feeds) = self.readers.get(notification.channel()) else { return };
        match joiner.take(notification.channel(), notification.payload()) {
            Ok(Some(message)) => {
                for feed in feeds {
                    feed.event(BusEvent::Message(message.clone()));
                }
            }
            Ok(None) => {}
            Err(_) => tracing::debug!("a notification that is no message"),
        }
    }
}

async fn is_read_only(listener: &mut PgListener) -> sqlx::Result<bool> {
    // Not prepared, because a pooler might mix up prepared statements.
    listener.fetch_one(sqlx::raw_sql(IS_READ_ONLY)).await?.try_get(0)
}

fn read_only() -> DriverError {
    DriverError::new(
        ErrorKind::Denied,
        "postgres bus: cannot listen: the server is read-only, such as a standby; use an address \
         that leads to the primary server",
    )
}

fn deaf() -> DriverError {
    DriverError::new(
        ErrorKind::Denied,
        format!(
            "postgres bus: cannot listen: a notification from another connection does not arrive; \
             {POOLER}"
        ),
    )
}

pub(crate) fn told(doing: &str, error: sqlx::Error) -> DriverError {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if code.is_some_and(|code| matches!(&*code, "42P05" | "26000" | "08P01")) {
        let message = format!("postgres bus: cannot {doing}: {error}; {POOLER}");
        return DriverError::new(ErrorKind::Unavailable, message);
    }
    // The message is not too large; the server's queue is full.
    if error.as_database_error().is_some_and(|error| error.message().contains("NOTIFY queue")) {
        let message = format!(
            "postgres bus: cannot {doing}: {error}; end the transaction of the listener that keeps \
             the queue, which pg_notification_queue_usage() shows"
        );
        return DriverError::new(ErrorKind::Full, message);
    }
    failure(Dialect::Postgres, error).error("postgres bus", doing)
}

pub(crate) fn late(doing: &str, reason: &str) -> DriverError {
    DriverError::new(ErrorKind::Timeout, format!("postgres bus: cannot {doing}: {reason}"))
}
