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

/// The pause before a subscription is confirmed once more on a connection that is there.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause before a subject that was refused is subscribed to again.
const REFUSED: Duration = Duration::from_secs(1);
/// After which time all servers of a cluster know of a subscription. The one that has it tells the
/// others, and nobody confirms that: what they are sent before they know is lost. So everything is
/// in doubt once more when that time is over.
const SPREAD: Duration = Duration::from_secs(1);

/// The bus on NATS: messages on the subject of the store, `bentocache.notifications:main` for a
/// store of the name `main`.
///
/// A driver has one connection for all it does, made when it is first needed. Characters that a
/// subject cannot hold are percent-encoded, see the guide (`docs/nats.md`).
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
    /// Nothing is connected yet. A URL that cannot be understood is an
    /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
    pub fn new(url: impl Into<String>) -> Self {
        Self::cluster([url])
    }

    /// A cluster, by the URLs of some of its servers; the others are found. User and password, or
    /// the token, are those of the first URL that has any.
    pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self::open(Source::Urls(urls.into_iter().map(Into::into).collect()))
    }

    /// The connection that the application already has.
    ///
    /// Its options decide how it is opened again and when a silent server is noticed, in place of
    /// [`options`](Self::options), [`connect_timeout`](Self::connect_timeout) and
    /// [`ping_interval`](Self::ping_interval). It must not have `no_echo`, and not fewer than the
    /// default `subscription_capacity`: what such a client drops, nobody can report. Nor can this
    /// driver see what the server refuses to such a client; give its user the rights that the
    /// guide (`docs/nats.md`) lists.
    pub fn from_client(client: Client) -> Self {
        Self::open(Source::Client(client))
    }

    fn open(source: Source) -> Self {
        let (settings, closed) = (Settings::new(source), watch::Sender::new(false));
        let (link, trouble) = Default::default();
        Self { settings, link, closed, trouble }
    }

    /// Changes the options of the library before it connects: logins of other kinds, certificates
    /// and more.
    ///
    /// ```
    /// use bentocache::nats::NatsBus;
    ///
    /// NatsBus::new("tls://nats.example.com")
    ///     .options(|options| options.add_root_certificates("/etc/ssl/our-ca.pem".into()));
    /// ```
    ///
    /// The driver itself decides on pauses, number of attempts and events.
    #[must_use]
    pub fn options(
        mut self,
        configure: impl Fn(ConnectOptions) -> ConnectOptions + Send + Sync + 'static,
    ) -> Self {
        self.settings.configure = Some(Arc::new(configure));
        self
    }

    /// Asks for the login before each connection, in place of that in the URL: a password that is
    /// changed, or a token that expires, needs no restart. Open connections stay as they are.
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

    /// How long one attempt to connect may take; 2 seconds by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        let timeout = timeout.into().duration("connect_timeout");
        self.settings.errors.set(&mut self.settings.connect_timeout, timeout);
        self
    }

    /// How long the server may take to confirm a message or a subscription; 2 seconds by default.
    /// A store has its own, shorter limits for its calls.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        let timeout = timeout.into().duration("timeout");
        self.settings.errors.set(&mut self.settings.timeout, timeout);
        self
    }

    /// How often to ask the server for a sign of life; every second by default. A server that
    /// vanished without closing the connection is noticed after three of these.
    #[must_use]
    pub fn ping_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
        let interval = interval.into().duration("ping_interval");
        self.settings.errors.set(&mut self.settings.ping_interval, interval);
        self
    }

    /// What a call that has not ended waits for.
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

    /// The connection, opened if this is the first call or the calls before it have failed.
    async fn link(&self) -> Result<Arc<Link>, DriverError> {
        let mut closed = self.closed.subscribe();
        let open = async {
            let mut link = self.link.lock().await;
            match &*link {
                Some(link) if !link.has_ended() => return Ok(Arc::clone(link)),
                // With it the tasks of the client have ended, and nobody can start them again.
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
                    // Also when the driver is dropped.
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
        // Not the URLs: there may be passwords in them.
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
        // The server has forgotten the subscription, and the library does not know that.
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

/// Passes on messages until the client is closed.
async fn deliver(subscriber: &mut Subscriber, feed: &BusFeed) {
    while let Some(message) = subscriber.next().await {
        feed.event(BusEvent::Message(message.payload));
    }
}

/// Reports losses. The library subscribes again by itself; only the confirmation is ours.
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
