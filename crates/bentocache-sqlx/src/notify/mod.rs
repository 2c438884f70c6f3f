//! The bus over LISTEN and NOTIFY.

mod hub;
mod parts;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bentocache_driver::{
    BusDriver, BusFeed, BusStream, DriverError, ErrorKind, LastTrouble, OptionErrors, TimeSpan,
    Topic, on_runtime,
};
use bytes::Bytes;
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use hub::{Hub, Options, Request};

use crate::database::exhausted;

/// The transaction needs no flush to disk: its only purpose is the notification.
const PUBLISH: &str = "select set_config('synchronous_commit', 'off', true), pg_notify($1, part) \
                       from unnest($2::text[]) as part";

/// The bus on PostgreSQL: `NOTIFY` and `LISTEN` on the channel of the store. Two-tier caches stay
/// coherent with PostgreSQL as the only server.
///
/// Messages are published through the application's pool. All subscriptions share one separate
/// connection, made with the options of the pool. It must not go through a pooler in transaction
/// mode, such as PgBouncer. After a loss the bus reconnects without a limit of attempts, and
/// reports the loss, and the moment when it listens to all channels again.
///
/// The channel of PostgreSQL has the name of the store's channel, shortened with a hash if it is
/// longer than 63 bytes. A payload is base64; a message that does not fit into the 8,000 bytes of a
/// notification is sent in pieces.
pub struct PgNotifyBus {
    pool: PgPool,
    options: Options,
    errors: OptionErrors,
    state: Mutex<State>,
    trouble: LastTrouble,
}

enum State {
    Idle,
    Running { requests: mpsc::UnboundedSender<Request>, task: JoinHandle<()> },
    Closed,
}

impl PgNotifyBus {
    /// A bus on the database of this pool. Opens no connection yet.
    pub fn new(pool: PgPool) -> Self {
        let options = Options {
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(1),
        };
        Self {
            pool,
            options,
            errors: OptionErrors::default(),
            state: Mutex::new(State::Idle),
            trouble: LastTrouble::default(),
        }
    }

    /// The time limit for one attempt to connect, such as `"2s"`, the default. An invalid text is
    /// an [`ErrorKind::Config`] of the first call.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        self.errors
            .set(&mut self.options.connect_timeout, timeout.into().duration("connect_timeout"));
        self
    }

    /// The time limit for one answer of the server, pings included, such as `"2s"`, the default.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        self.errors.set(&mut self.options.timeout, timeout.into().duration("timeout"));
        self
    }

    /// The silence after which the server is pinged and its role is checked, such as `"1s"`, the
    /// default. A server that vanished without closing the connection is noticed after this time
    /// and one [`timeout`](Self::timeout).
    #[must_use]
    pub fn ping_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
        self.errors.set(&mut self.options.ping_interval, interval.into().duration("ping_interval"));
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel to the listening task, which the first use starts.
    fn requests(&self) -> Result<mpsc::UnboundedSender<Request>, DriverError> {
        let mut state = self.state();
        match &*state {
            State::Running { requests, .. } if !requests.is_closed() => Ok(requests.clone()),
            State::Closed => Err(closed()),
            // The runtime of the task may have been shut down.
            State::Idle | State::Running { .. } => {
                let (requests, receiver) = mpsc::unbounded_channel();
                let hub = Hub::new(self.pool.clone(), self.options, receiver);
                let task = tokio::spawn(hub.run());
                *state = State::Running { requests: requests.clone(), task };
                Ok(requests)
            }
        }
    }

    /// The reason why the listening task is gone.
    fn over(&self) -> DriverError {
        if matches!(*self.state(), State::Closed) { closed() } else { ended() }
    }

    /// The reason why a publication waits.
    fn obstacle(&self) -> String {
        exhausted(&self.pool).unwrap_or_else(|| hub::SILENT.to_owned())
    }

    fn close(&self) {
        if let State::Running { task, .. } = std::mem::replace(&mut *self.state(), State::Closed) {
            task.abort();
        }
    }
}

impl fmt::Debug for PgNotifyBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the pool: its options may contain a password.
        f.debug_struct("PgNotifyBus").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Drop for PgNotifyBus {
    fn drop(&mut self) {
        self.close();
    }
}

impl BusDriver for PgNotifyBus {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        let call = async {
            if matches!(*self.state(), State::Closed) {
                return Err(closed());
            }
            self.errors.check("postgres bus")?;
            if message.len() > parts::MOST {
                let (size, most) = (message.len(), parts::MOST);
                return Err(DriverError::new(
                    ErrorKind::TooLarge,
                    format!("postgres bus: a message of {size} bytes; the limit is {most} bytes"),
                ));
            }
            let publish = sqlx::query(PUBLISH)
                .bind(parts::channel_name(topic.channel))
                .bind(parts::split(&message))
                .execute(&self.pool);
            match timeout(self.options.timeout, publish).await {
                Ok(published) => published.map(drop).map_err(|error| hub::told("publish", error)),
                Err(_) => Err(hub::late("publish", &self.obstacle())),
            }
        };
        self.trouble.watch(on_runtime("postgres bus", call), || Some(self.obstacle())).await
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let call = async {
            self.errors.check("postgres bus")?;
            let requests = self.requests()?;
            let channel = parts::channel_name(topic.channel);
            let (feed, stream) = BusFeed::open();
            let feed = Arc::new(feed);
            let (done, answer) = oneshot::channel();
            let enter = Request::Enter { channel: channel.clone(), feed: Arc::clone(&feed), done };
            requests.send(enter).map_err(|_| self.over())?;
            // This also runs if the caller drops this call.
            tokio::spawn(async move {
                feed.closed().await;
                // If the task has ended, there is nothing to leave.
                let _ = requests.send(Request::Leave { channel });
            });
            answer.await.unwrap_or_else(|_| Err(self.over()))?;
            Ok(stream)
        };
        let listening = || Some(hub::NOT_LISTENING.to_owned());
        self.trouble.watch(on_runtime("postgres bus", call), listening).await
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.recent()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        let call = async {
            self.close();
            Ok(())
        };
        on_runtime("postgres bus", call).await
    }
}

fn ended() -> DriverError {
    DriverError::new(
        ErrorKind::Closed,
        "postgres bus: the Tokio runtime that the connection lived on is shut down; call again from \
         a running runtime",
    )
}

fn closed() -> DriverError {
    DriverError::new(ErrorKind::Closed, "postgres bus: the driver was disconnected")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> PgNotifyBus {
        PgNotifyBus::new(PgPool::connect_lazy("postgres://127.0.0.1:1").expect("a URL"))
    }

    #[tokio::test]
    async fn options_take_texts() {
        let bus =
            bus().connect_timeout("500ms").timeout("4s").ping_interval(Duration::from_secs(2));
        assert_eq!(bus.options.connect_timeout, Duration::from_millis(500));
        assert_eq!(bus.options.timeout, Duration::from_secs(4));
        assert_eq!(bus.options.ping_interval, Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_bad_text_fails_the_first_call() {
        for (bus, named) in [
            (bus().connect_timeout("soon"), "`connect_timeout`: cannot use \"soon\""),
            (bus().timeout("none"), "`timeout`: cannot use \"none\""),
            (bus().ping_interval("0"), "`ping_interval`: cannot use \"0\""),
        ] {
            let topic = Topic::new("any", "");
            let subscribed = bus.subscribe(topic).await.map(drop).unwrap_err();
            for error in [bus.publish(topic, "1".into()).await.unwrap_err(), subscribed] {
                assert_eq!(error.kind(), ErrorKind::Config, "{error}");
                assert!(error.to_string().contains(named), "{error}");
            }
        }
    }
}
