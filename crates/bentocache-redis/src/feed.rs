//! Subscriptions that resubscribe after every loss.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache_driver::kit::Backoff;
use bentocache_driver::{BusEvent, BusFeed, BusStream, DriverError};
use redis::{AsyncConnectionConfig, PushInfo, PushKind, Value};
use tokio::sync::{mpsc, watch};

use crate::connect::{Options, Servers};
use crate::error;
use crate::line::running_runtime;

/// How long a subscription must have lived for the first retry to come without a pause.
const SETTLED: Duration = Duration::from_secs(1);

/// A source of messages.
pub(crate) trait Feed: Send + Sync + 'static {
    /// A confirmed subscription.
    type Session: Send;

    /// Subscribes at the server for this attempt.
    fn open(
        &self,
        attempt: usize,
        outbox: &Arc<BusFeed>,
    ) -> impl Future<Output = Result<Self::Session, DriverError>> + Send;

    /// Delivers messages until the subscription breaks, and returns the reason.
    fn run(
        &self,
        session: Self::Session,
        outbox: &Arc<BusFeed>,
    ) -> impl Future<Output = String> + Send;
}

/// Ends all subscriptions of a driver.
pub(crate) struct Closing(watch::Sender<bool>);

impl Default for Closing {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Closing {
    pub(crate) fn close(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn check(&self) -> Result<(), DriverError> {
        if *self.0.borrow() { Err(error::closed()) } else { Ok(()) }
    }
}

/// The configuration of a connection whose messages go to the subscription, with those that `other`
/// makes of the rest. `ended` is notified of the end of the connection.
pub(crate) fn receiving(
    servers: &Servers,
    outbox: &Arc<BusFeed>,
    ended: mpsc::UnboundedSender<()>,
    other: impl Fn(&PushInfo) -> Option<BusEvent> + Send + Sync + 'static,
) -> AsyncConnectionConfig {
    let outbox = Arc::clone(outbox);
    let receive = move |push: PushInfo| {
        match push.kind {
            PushKind::Message => {
                if let Some(Value::BulkString(message)) = push.data.into_iter().nth(1) {
                    outbox.event(BusEvent::Message(message.into()));
                }
            }
            PushKind::Disconnection => {
                let _ = ended.send(());
            }
            _ => other(&push).into_iter().for_each(|event| outbox.event(event)),
        }
        Ok::<_, std::convert::Infallible>(())
    };
    Options::of_one(servers.options.connect_timeout).set_push_sender(receive)
}

/// Subscribes once; then a task keeps the subscription until the stream is dropped.
pub(crate) async fn subscribe<F: Feed>(
    feed: F,
    closing: &Closing,
) -> Result<BusStream, DriverError> {
    closing.check()?;
    running_runtime()?;
    let (outbox, stream) = BusFeed::open();
    let outbox = Arc::new(outbox);
    let session = feed.open(0, &outbox).await?;
    let mut closed = closing.0.subscribe();
    tokio::spawn(async move {
        tokio::select! {
            () = keep(feed, session, &outbox) => {}
            () = outbox.closed() => {}
            // This also ends when the driver is dropped.
            _ = closed.wait_for(|closed| *closed) => {}
        }
        outbox.end();
    });
    Ok(stream)
}

async fn keep<F: Feed>(feed: F, mut session: F::Session, outbox: &Arc<BusFeed>) {
    let mut backoff = Backoff::default();
    // The turn of the servers.
    let mut turn = 0;
    loop {
        let since = Instant::now();
        let reason = feed.run(session, outbox).await;
        outbox.lost();
        tracing::debug!(reason, "a subscription to redis was lost");
        turn += 1;
        if since.elapsed() < SETTLED {
            backoff.pause().await;
        } else {
            backoff.reset();
        }
        session = loop {
            match feed.open(turn, outbox).await {
                Ok(session) => break session,
                Err(error) => {
                    tracing::debug!(%error, "no subscription to redis yet");
                    turn += 1;
                    backoff.pause().await;
                }
            }
        };
        outbox.restored();
    }
}
