//! The servers, and connections to them.

use std::io;
use std::net::{Ipv6Addr, Shutdown};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bentocache_driver::{DriverError, OptionErrors, Provider};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::credentials::Credentials;
use crate::error::{self, Failure};
use crate::stream::{self, Stream};
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// The TCP keepalive time.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The time limit for the server's answer to a close.
const GOODBYE: Duration = Duration::from_secs(2);

/// The configuration of a driver.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) urls: Vec<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) credentials: Option<Provider<Credentials>>,
    pub(crate) errors: OptionErrors,
    #[cfg(feature = "tls")]
    pub(crate) tls: Tls,
}

impl Settings {
    pub(crate) fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(3),
            heartbeat: Duration::from_secs(1),
            credentials: None,
            errors: OptionErrors::default(),
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        }
    }

    /// Validates the settings. The errors show no part of a URL: any part of an invalid URL may be
    /// a password.
    pub(crate) fn servers(&self) -> Result<Servers, DriverError> {
        self.errors.check("rabbitmq")?;
        if self.urls.is_empty() {
            return Err(error::config("no URL was given; name at least one server"));
        }
        let uris = self.urls.iter().map(|url| self.parse(url)).collect::<Result<_, _>>()?;
        Ok(Servers { uris, settings: self.clone() })
    }

    fn parse(&self, url: &str) -> Result<AMQPUri, DriverError> {
        let mut uri: AMQPUri = url.parse().map_err(|_: String| {
            error::config(
                "the URL cannot be used; write amqp://user:password@host:5672/%2f, with the \
                 virtual host at the end, or amqps://… for TLS, and percent-encode special \
                 characters of the password",
            )
        })?;
        if uri.scheme == AMQPScheme::AMQPS {
            #[cfg(not(feature = "tls"))]
            return Err(error::config(
                "an amqps:// URL needs TLS; switch on the feature `rabbitmq-tls` of bentocache",
            ));
            #[cfg(feature = "tls")]
            self.tls.check().map_err(error::config)?;
        }
        if let Some(address) = ipv6(url) {
            uri.authority.host = address.to_string();
        }
        // Whole seconds, in two bytes; 0 would disable heartbeats.
        let heartbeat = self.heartbeat.as_secs_f64().ceil().clamp(1.0, 60_000.0);
        uri.query.heartbeat.get_or_insert(heartbeat as u16);
        Ok(uri)
    }
}

/// The IPv6 address in a valid URL. The library does not support one, and would connect to
/// `localhost` instead.
fn ipv6(url: &str) -> Option<Ipv6Addr> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (_, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    host.strip_prefix('[')?.split(']').next()?.parse().ok()
}

/// The validated settings. They do not change any more.
pub(crate) struct Servers {
    uris: Vec<AMQPUri>,
    settings: Settings,
}

/// A connection, which closes when this is dropped.
pub(crate) struct Session {
    connection: Connection,
    plug: Plug,
}

/// The socket below a connection. The library cannot end a connection whose server is silent, and
/// has a thread for each: so the driver closes the socket.
#[derive(Clone)]
struct Plug(Arc<Socket>);

impl Plug {
    fn pull(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Closes the socket if an attempt is cancelled.
struct Attempt(Option<Plug>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(plug) = &self.0 {
            plug.pull();
        }
    }
}

impl Servers {
    /// The time limit for one answer of the server.
    pub(crate) fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// Connects to the server for this turn.
    pub(crate) async fn open(&self, turn: usize) -> Result<Session, Failure> {
        let limit = self.settings.connect_timeout;
        let late = |_| Err(Failure::late(limit));
        let uri = self.uris[turn % self.uris.len()].clone();
        timeout(limit, self.try_open(uri)).await.unwrap_or_else(late)
    }

    /// Opens the socket, and TLS over it.
    async fn dial(&self, uri: &AMQPUri) -> io::Result<(Stream, Plug)> {
        let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let plug = Plug(Arc::new(socket.try_clone()?));
        #[cfg(feature = "tls")]
        if uri.scheme == AMQPScheme::AMQPS {
            return Ok((stream::of(self.settings.tls.connect(host, stream).await?), plug));
        }
        Ok((stream::of(stream), plug))
    }

    async fn try_open(&self, mut uri: AMQPUri) -> Result<Session, Failure> {
        if let Some(provider) = &self.settings.credentials {
            let Credentials { user, password } =
                provider.ask().await.map_err(Failure::unavailable)?;
            uri.authority.userinfo = AMQPUserInfo { username: user, password };
        }
        // Not in the call below: the library leaks a task if that fails.
        let (stream, plug) = self.dial(&uri).await.map_err(|wrong| Failure::dialling(&wrong))?;
        let mut attempt = Attempt(Some(plug.clone()));
        let ready = Mutex::new(Some(stream));
        let connect = async move |_, _| {
            let stream = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The library asks only once, because it does not reconnect.
            stream
                .map(AsyncTcpStream::Plain)
                .ok_or_else(|| lapin::Error::from(io::Error::from(io::ErrorKind::NotConnected)))
        };
        let properties = ConnectionProperties::default();
        let connection = Connection::connector(
            uri,
            stream::runtime(),
            connect,
            properties.with_connection_name("bentocache".into()),
        );
        let connection = connection.await.map_err(|wrong| Failure::connecting(&wrong))?;
        attempt.0 = None;
        Ok(Session { connection, plug })
    }
}

impl Session {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// Closes the connection, and waits for the answer.
    pub(crate) async fn close(&self) {
        let _ = timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
        self.plug.pull();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let plug = self.plug.clone();
        match tokio::runtime::Handle::try_current() {
            // The library sends a close by itself. A server that does not answer must not delay it.
            Ok(runtime) if self.is_open() => {
                runtime.spawn(async move {
                    tokio::time::sleep(GOODBYE).await;
                    plug.pull();
                });
            }
            _ => plug.pull(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bentocache_driver::ErrorKind;

    use super::*;

    fn parse(url: &str) -> Result<AMQPUri, DriverError> {
        Settings::new(Vec::new()).parse(url)
    }

    #[test]
    fn errors_show_nothing_of_the_url() {
        for url in [
            "",
            "http://u:s3cret@host",
            "amqps://u:s3cret@h:port",
            "amqp://u:s3cret@h:port",
            "s3cret",
        ] {
            let Err(error) = Settings::new(vec![url.to_owned()]).servers() else {
                panic!("{url:?} was taken")
            };
            assert_eq!(error.kind(), ErrorKind::Config, "{url:?}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        assert_eq!(
            Settings::new(Vec::new()).servers().err().map(|error| error.kind()),
            Some(ErrorKind::Config)
        );
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_is_refused() {
        let error = parse("amqps://u:s3cret@host").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("feature `rabbitmq-tls`"), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    #[test]
    fn addresses_of_all_kinds() {
        for (url, host) in [
            ("amqp://host", "host"),
            ("amqp://127.0.0.1:5673", "127.0.0.1"),
            ("amqp://[::1]:5673/%2f", "::1"),
            ("amqp://us%40er:[pass]@[2001:db8::1]", "2001:db8::1"),
            ("amqp://host/[::1]", "host"),
        ] {
            let uri = parse(url).unwrap();
            assert_eq!(uri.authority.host, host, "{url}");
        }
        let uri = parse("amqp://[::1]:5673").unwrap();
        assert_eq!(uri.authority.port, 5673);
    }

    #[test]
    fn heartbeats_are_whole_seconds() {
        let heartbeat = |url: &str, heartbeat| {
            let settings = Settings { heartbeat, ..Settings::new(Vec::new()) };
            settings.parse(url).unwrap().query.heartbeat
        };
        assert_eq!(heartbeat("amqp://host", Duration::ZERO), Some(1));
        assert_eq!(heartbeat("amqp://host", Duration::from_millis(1_500)), Some(2));
        assert_eq!(heartbeat("amqp://host", Duration::MAX), Some(60_000));
        assert_eq!(heartbeat("amqp://host?heartbeat=7", Duration::ZERO), Some(7));
    }
}
