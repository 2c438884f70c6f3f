//! The bus.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bentocache_driver::kit::Backoff;
use bentocache_driver::{
    BusDriver, BusEvent, BusFeed, BusStream, DriverError, LastTrouble, Provider, TimeSpan, Topic,
    on_runtime,
};
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::types::ShortString;
use tokio::sync::watch;

use crate::channels::{Channels, Subscriber};
use crate::connect::Settings;
use crate::credentials::Credentials;
use crate::link::{Link, Watch};
use crate::{error, exchange};

/// The bus on RabbitMQ: a fanout exchange named like the store's channel,
/// `bentocache.notifications:main` for a store named `main`, and a queue for each subscription.
///
/// A driver has one connection for everything, which the first call opens. Characters that are
/// unsafe in names are percent-encoded; see the guide (`docs/rabbitmq.md`).
pub struct RabbitMqBus {
    settings: Settings,
    link: Mutex<Option<Link>>,
    closed: watch::Sender<bool>,
    trouble: LastTrouble,
}

impl RabbitMqBus {
    /// One server, by its URL: `amqp://user:password@host:5672/%2f`, or `amqps://…` for TLS
    /// (feature `rabbitmq-tls`), with the virtual host at the end, which is `/` percent-encoded for the
    /// default one. Special characters of user and password are percent-encoded.
    ///
    /// Opens no connection yet. An invalid URL is an
    /// [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first call.
    pub fn new(url: impl Into<String>) -> Self {
        Self::cluster([url])
    }

    /// A cluster, by the URLs of its nodes: if one cannot be reached, the driver tries the next.
    pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self {
            settings: Settings::new(urls.into_iter().map(Into::into).collect()),
            link: Mutex::new(None),
            closed: watch::Sender::new(false),
            trouble: LastTrouble::default(),
        }
    }

    /// A function that returns the login before each connection, instead of the login in the URL. A
    /// changed password or an expired token then needs no restart. Open connections are not
    /// affected.
    ///
    /// ```
    /// use bentocache::rabbitmq::{Credentials, RabbitMqBus};
    ///
    /// RabbitMqBus::new("amqp://host").credentials(|| async {
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

    /// The time limit for one attempt to connect, TLS and login included, such as `"3s"`, the
    /// default. An invalid text is an [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config)
    /// of the first call.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        let timeout = timeout.into().duration("connect_timeout");
        self.settings.errors.set(&mut self.settings.connect_timeout, timeout);
        self
    }

    /// The time limit for the server to confirm a message or a subscription, such as `"3s"`, the
    /// default. The limits of a store are shorter.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        let timeout = timeout.into().duration("timeout");
        self.settings.errors.set(&mut self.settings.timeout, timeout);
        self
    }

    /// The heartbeat interval, such as `"1s"`, the default; it is rounded up to whole seconds. A
    /// server that vanished without closing the connection is noticed after two intervals. A
    /// `?heartbeat=` in a URL has precedence.
    #[must_use]
    pub fn heartbeat(mut self, interval: impl Into<TimeSpan>) -> Self {
        let interval = interval.into().duration("heartbeat");
        self.settings.errors.set(&mut self.settings.heartbeat, interval);
        self
    }

    /// The certificates, in PEM, of one or more authorities that may sign the server's certificate.
    /// They replace the authorities that the system trusts. For `amqps://` URLs.
    ///
    /// Invalid PEM is an [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first
    /// call.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.settings.tls.root_certificate = Some(pem.into());
        self
    }

    /// The client's certificate and private key, in PEM. For `amqps://` URLs.
    ///
    /// Invalid PEM is an [`ErrorKind::Config`](bentocache_driver::ErrorKind::Config) of the first
    /// call.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.settings.tls.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    fn watch(&self) -> Result<Watch, DriverError> {
        if *self.closed.borrow() {
            return Err(error::closed());
        }
        let mut link = self.link();
        match &*link {
            Some(link) if !link.has_ended() => return Ok(link.watch()),
            // The runtime of the connection was shut down.
            _ => {}
        }
        Ok(link.insert(Link::new(self.settings.servers()?)).watch())
    }

    /// The reason why a call waits.
    fn obstacle(&self) -> Option<String> {
        self.link().as_ref().map(Link::obstacle)
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDriver for RabbitMqBus {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        let call = async {
            let exchange = exchange::of(topic.channel)?;
            self.watch()?.channels("publish").await?.publish(&exchange, &message).await
        };
        self.trouble.watch(on_runtime("rabbitmq", call), || self.obstacle()).await
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let call = async {
            let exchange = exchange::of(topic.channel)?;
            let mut watch = self.watch()?;
            let channels = watch.channels("subscribe").await?;
            let subscriber = channels.subscribe(&exchange).await?;
            let (feed, stream) = BusFeed::open();
            let mut closed = self.closed.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    () = keep(watch, channels, subscriber, &exchange, &feed) => {}
                    () = feed.closed() => {}
                    // This also ends when the driver is dropped.
                    _ = closed.wait_for(|closed| *closed) => {}
                }
            });
            Ok(stream)
        };
        self.trouble.watch(on_runtime("rabbitmq", call), || self.obstacle()).await
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.recent()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        let call = async {
            self.closed.send_replace(true);
            let link = self.link().take();
            if let Some(link) = link {
                link.close().await;
            }
            Ok(())
        };
        on_runtime("rabbitmq", call).await
    }
}

impl fmt::Debug for RabbitMqBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URLs: they may contain passwords.
        f.debug_struct("RabbitMqBus")
            .field("servers", &self.settings.urls.len())
            .finish_non_exhaustive()
    }
}

/// Forwards messages, and resubscribes after a loss, until the driver is disconnected.
async fn keep(
    mut watch: Watch,
    mut channels: Arc<Channels>,
    mut subscriber: Subscriber,
    exchange: &ShortString,
    feed: &BusFeed,
) {
    loop {
        tokio::select! {
            () = deliver(subscriber, feed) => {}
            () = watch.replaced(&channels) => {}
        }
        if watch.is_closed() {
            return;
        }
        feed.lost();
        tracing::debug!("a subscription to rabbitmq was lost");
        // Keeping it would keep the connection open.
        drop(channels);
        let mut backoff = Backoff::default();
        (channels, subscriber) = loop {
            let Some(channels) = watch.next().await else { return };
            match channels.subscribe(exchange).await {
                Ok(subscriber) => break (channels, subscriber),
                Err(error) => {
                    tracing::debug!(%error, "no subscription to rabbitmq yet");
                    drop(channels);
                    backoff.pause().await;
                }
            }
        };
        feed.restored();
    }
}

/// Forwards messages until the queue or the connection is gone.
async fn deliver(mut subscriber: Subscriber, feed: &BusFeed) {
    while let Some(Ok(delivery)) = subscriber.consumer.next().await {
        feed.event(BusEvent::Message(delivery.data.into()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bentocache_driver::ErrorKind;

    use super::*;

    fn bus() -> RabbitMqBus {
        RabbitMqBus::new("amqp://127.0.0.1:1")
    }

    #[test]
    fn options_take_texts() {
        let bus = bus().connect_timeout("500ms").timeout("4s").heartbeat(Duration::from_secs(2));
        assert_eq!(bus.settings.connect_timeout, Duration::from_millis(500));
        assert_eq!(bus.settings.timeout, Duration::from_secs(4));
        assert_eq!(bus.settings.heartbeat, Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_bad_text_fails_the_first_call() {
        for (bus, named) in [
            (bus().connect_timeout("soon"), "`connect_timeout`: cannot use \"soon\""),
            (bus().timeout("none"), "`timeout`: cannot use \"none\""),
            (bus().heartbeat("0"), "`heartbeat`: cannot use \"0\""),
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
