//! The bus.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Subscriber};
use bentocache_driver::{
    BusDriver, BusEvent, BusFeed, BusStream, DriverError, LastTrouble, Provider, TimeSpan, Topic,
    on_runtime,
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::connect::{Settings, Source};
use crate::credentials::Credentials;
use crate::link::{Link, Reports, State};
use crate::rights::Right;
use crate::{error, subject};

/// The pause before a subscription is confirmed again on an open connection.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause before a refused subject is subscribed to again.
const REFUSED: Duration = Duration::from_secs(1);
/// The time after which all servers of a cluster know a subscription. The server that has it
/// informs the others without a confirmation, and messages that arrive there before are lost. So
/// when this time is over, the bus reports a gap once more.
const SPREAD: Duration = Duration::from_secs(1);

/// The bus on NATS: messages on the subject of the store, `bentocache.notifications:main` for a
/// store named `main`.
///
/// A driver has one connection for everything, which the first call opens. Characters that are
/// invalid in a subject are percent-encoded; see the guide (`docs/nats.md`).
pub struct NatsBus {
    settings: Settings,
    /// The lock is held while the first connection is opened.
    link: Mutex<Option<Arc<Link>>>,
    closed: watch::Sender<bool>,
    trouble: LastTrouble,
}

impl NatsBus {
    /// One server, by its URL: `nats://user:password@host:4222`, `nats://token@host`, or
    /// `tls://host` for TLS. Special characters of user and password are percent-encoded.
    ///
    /// Opens no connection yet. An invalid URL is an
    /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
    pub fn new(url: impl Into<String>) -> Self {
        Self::cluster([url])
    }

    /// A cluster, by the URLs of some of its servers; the client finds the others. User and
    /// password, or the token, are those of the first URL that has any.
    pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self::open(Source::Urls(urls.into_iter().map(Into::into).collect()))
    }

    /// A connection of the application.
    ///
    /// Its options decide how it reconnects and when a silent server is noticed, instead of
    /// [`options`](Self::options), [`connect_timeout`](Self::connect_timeout) and
    /// [`ping_interval`](Self::ping_interval). It must not have `no_echo`, and at least the default
    /// `subscription_capacity`: messages that such a client drops cannot be reported. The driver
    /// also cannot see refusals of the server to such a client; give its user the rights that the
    /// guide (`docs/nats.md`) lists.
    pub fn from_client(client: Client) -> Self {
        Self::open(Source::Client(client))
    }

    fn open(source: Source) -> Self {
        let (settings, closed) = (Settings::new(source), watch::Sender::new(false));
        let (link, trouble) = Default::default();
        Self { settings, link, closed, trouble }
    }

    /// Changes the options of the client library before it connects: other kinds of logins,
    /// certificates and more.
    ///
    /// ```
    /// use bentocache::nats::NatsBus;
    ///
    /// NatsBus::new("tls://nats.example.com")
    ///     .options(|options| options.add_root_certificates("/etc/ssl/our-ca.pem".into()));
    /// ```
    ///
    /// The driver itself sets pauses, the number of attempts and event callbacks.
    #[must_use]
    pub fn options(
        mut self,
        configure: impl Fn(ConnectOptions) -> ConnectOptions + Send + Sync + 'static,
    ) -> Self {
        self.settings.configure = Some(Arc::new(configure));
        self
    }

    /// A function that returns the login before each connection, instead of the login in the URL. A
    /// changed password or an expired token then needs no restart. Open connections are not
    /// affected.
    ///
    /// ```
    /// use bentocache::nats::{Credentials, NatsBus};
    ///
    /// NatsBus::new("nats://host").credentials(|| async {
    ///     let password = std::fs::read_to_string("/run/secrets/bus")?;
    ///     Ok(Credentials::new("cache", password.trim()))
    /// });
    /// ```
    #[must_use]
    pub fn credentials<F, Fut>(mut self, provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Credentials, Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        self.settings.credentials = Some(Provider::new(provider));
        self
    }

    /// The time limit for one attempt to connect, such as `"2s"`, the default. An invalid text is
    /// an [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        let timeout = timeout.into().duration("connect_timeout");
        self.settings.errors.set(&mut self.settings.connect_timeout, timeout);
        self
    }

    /// The time limit for the server to confirm a message or a subscription, such as `"2s"`, the
    /// default. The limits of a store are shorter.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        let timeout = timeout.into().duration("timeout");
        self.settings.errors.set(&mut self.settings.timeout, timeout);
        self
    }

    /// How often to ping the server, such as `"1s"`, the default. A server that vanished without
    /// closing the connection is noticed after three intervals.
    #[must_use]
    pub fn ping_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
        let interval = interval.into().duration("ping_interval");
        self.settings.errors.set(&mut self.settings.ping_interval, interval);
        self
    }

    /// The reason why a call waits.
    fn obstacle(&self) -> String {
        let link = self.link.try_lock();
        let is_up = link.ok().and_then(|link| link.as_ref().map(|link| link.is_up()));
        match is_up {
            Some(true) => error::UNCONFIRMED,
            Some(false) => "the connection was lost and is being opened again",
            None => error::OPENING,
        }
        .to_owned()
    }

    /// The connection. Opens it if this is the first call or if earlier calls failed.
    async fn link(&self) -> Result<Arc<Link>, DriverError> {
        let mut closed = self.closed.subscribe();
        let open = async {
            let mut link = self.link.lock().await;
            match &*link {
                Some(link) if !link.has_ended() => return Ok(Arc::clone(link)),
                // The tasks of the client have ended with it, and cannot be restarted.
                Some(_) if matches!(self.settings.source, Source::Client(_)) => {
                    return Err(error::ended());
                }
                _ => {}
            }
            self.settings.errors.check("nats")?;
            let reports = Arc::<Reports>::default();
            let client = self.settings.client(&reports, self.closed.subscribe()).await?;
            let opened = Arc::new(Link::new(client, reports, self.settings.timeout).await?);
            *link = Some(Arc::clone(&opened));
            Ok(opened)
        };
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(error::closed()),
            link = open => link,
        }
    }
}

impl BusDriver for NatsBus {
    fn name(&self) -> &'static str {
        "nats"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        let call = async {
            let subject = subject::of(topic.channel)?;
            self.link().await?.publish(subject, message).await
        };
        self.trouble.watch(on_runtime("nats", call), || Some(self.obstacle())).await
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let call = async {
            let subject = subject::of(topic.channel)?;
            let link = self.link().await?;
            let (subscriber, state) = link.subscribe(subject.clone()).await?;
            let (feed, stream) = BusFeed::open();
            let mut closed = self.closed.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    () = keep(&link, &subject, subscriber, state, &feed) => {}
                    () = feed.closed() => {}
                    // This also ends when the driver is dropped.
                    _ = closed.wait_for(|closed| *closed) => {}
                }
            });
            Ok(stream)
        };
        self.trouble.watch(on_runtime("nats", call), || Some(self.obstacle())).await
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.recent()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        let call = async {
            self.closed.send_replace(true);
            self.link.lock().await.take();
            Ok(())
        };
        on_runtime("nats", call).await
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        self.closed.send_replace(true);
    }
}

impl fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URLs: they may contain passwords.
        let source = match &self.settings.source {
            Source::Urls(_) => "Urls",
            Source::Client(_) => "Client",
        };
        f.debug_struct("NatsBus").field("source", &source).finish_non_exhaustive()
    }
}

/// Keeps a subscription until the client is closed.
async fn keep(
    link: &Link,
    subject: &str,
    mut subscriber: Subscriber,
    mut state: State,
    feed: &BusFeed,
) {
    loop {
        let before = link.rights().refused(Right::Subscribe, subject);
        tokio::select! {
            () = deliver(&mut subscriber, feed) => return,
            () = report(link, subject, state, feed) => return,
            () = link.rights().refusal(Right::Subscribe, subject, before) => feed.lost(),
        }
        // The server has dropped the subscription, which the library does not know.
        drop(subscriber);
        (subscriber, state) = loop {
            sleep(REFUSED).await;
            if let Ok(subscribed) = link.subscribe(subject.to_owned()).await {
                break subscribed;
            }
        };
        feed.restored();
    }
}

/// Forwards messages until the client is closed.
async fn deliver(subscriber: &mut Subscriber, feed: &BusFeed) {
    while let Some(message) = subscriber.next().await {
        feed.event(BusEvent::Message(message.payload));
    }
}

/// Reports losses. The library resubscribes by itself; the driver only confirms the subscription.
async fn report(link: &Link, subject: &str, mut known: State, feed: &BusFeed) {
    let mut states = link.watch();
    let mut spread = link.is_clustered().then(|| Instant::now() + SPREAD);
    loop {
        let changed = async { states.wait_for(|now| *now != known).await.map(|now| *now) };
        let now = tokio::select! {
            now = changed => now,
            () = until(spread) => {
                spread = None;
                feed.event(BusEvent::AllChanged);
                continue;
            }
        };
        let Ok(now) = now else { return };
        feed.lost();
        if !now.is_up {
            known = now;
            tracing::debug!("the connection to nats was lost");
            continue;
        }
        let before = link.rights().refused(Right::Subscribe, subject);
        match link.confirm("subscribe", now.session).await {
            Ok(()) => {
                known = now;
                // A refusal ends this report.
                link.rights().is_granted(Right::Subscribe, subject, before, now.session).await;
                feed.restored();
                spread = link.is_clustered().then(|| Instant::now() + SPREAD);
            }
            Err(error) => {
                tracing::debug!(%error, "no subscription to nats yet");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use bentocache_driver::ErrorKind;

    use super::*;

    fn bus() -> NatsBus {
        NatsBus::new("nats://127.0.0.1:1")
    }

    #[test]
    fn options_take_texts() {
        let bus =
            bus().connect_timeout("500ms").timeout("4s").ping_interval(Duration::from_secs(2));
        assert_eq!(bus.settings.connect_timeout, Duration::from_millis(500));
        assert_eq!(bus.settings.timeout, Duration::from_secs(4));
        assert_eq!(bus.settings.ping_interval, Duration::from_secs(2));
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
