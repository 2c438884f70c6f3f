//! Where the servers are, and how to reach them.

use std::io;
use std::net::{Ipv6Addr, Shutdown};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bentocache_driver::{DriverError, Provider};
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

/// How long a dead connection may go unnoticed by the system.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long the server may take to answer a goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// What the setters change.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) credentials: Option<Provider<Credentials>>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Tls,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(3),
            heartbeat: Duration::from_secs(1),
            credentials: None,
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        }
    }
}

/// Understands the URLs. The errors show nothing of them: wherever one is wrong, a password may be.
pub(crate) fn parse(urls: &[String], options: &Options) -> Result<Vec<AMQPUri>, DriverError> {
    if urls.is_empty() {
        return Err(error::config("no URL was given; name at least one server"));
    }
    urls.iter().map(|url| parse_one(url, options)).collect()
}

fn parse_one(url: &str, options: &Options) -> Result<AMQPUri, DriverError> {
    let mut uri: AMQPUri = url.parse().map_err(|_: String| {
        error::config(
            "the URL cannot be used; write amqp://user:password@host:5672/%2f, with the virtual \
             host at the end, or amqps://… for TLS, and percent-encode special characters of the \
             password",
        )
    })?;
    if uri.scheme == AMQPScheme::AMQPS {
        #[cfg(not(feature = "tls"))]
        return Err(error::config(
            "an amqps:// URL needs TLS; switch on the feature `rabbitmq-tls` of bentocache",
        ));
        #[cfg(feature = "tls")]
        options.tls.check().map_err(error::config)?;
    }
    if let Some(address) = ipv6(url) {
        uri.authority.host = address.to_string();
    }
    // Whole seconds, in two bytes; none would switch them off.
    let heartbeat = options.heartbeat.as_secs_f64().ceil().clamp(1.0, 60_000.0);
    uri.query.heartbeat.get_or_insert(heartbeat as u16);
    Ok(uri)
}

/// The IPv6 address in a URL that is known to be one. The library takes none, and would connect to
/// `localhost` in its place.
fn ipv6(url: &str) -> Option<Ipv6Addr> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (_, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    host.strip_prefix('[')?.split(']').next()?.parse().ok()
}

/// A connection, which ends when this is dropped.
pub(crate) struct Session {
    connection: Connection,
    plug: Plug,
}

/// The socket below a connection. The library has no end for a connection whose server has fallen
/// silent, and a thread for each: so the socket is closed under it.
#[derive(Clone)]
struct Plug(Arc<Socket>);

impl Plug {
    fn pull(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Pulls the plug when an attempt is given up.
struct Attempt(Option<Plug>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(plug) = &self.0 {
            plug.pull();
        }
    }
}

/// Opens the socket, and TLS over it.
async fn dial(uri: &AMQPUri, options: &Options) -> io::Result<(Stream, Plug)> {
    let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    let plug = Plug(Arc::new(socket.try_clone()?));
    #[cfg(feature = "tls")]
    if uri.scheme == AMQPScheme::AMQPS {
        return Ok((stream::of(options.tls.connect(host, stream).await?), plug));
    }
    let _ = options;
    Ok((stream::of(stream), plug))
}

impl Session {
    pub(crate) async fn open(uri: &AMQPUri, options: &Options) -> Result<Self, Failure> {
        let limit = options.connect_timeout;
        let late = |_| Err(Failure::late(limit));
        timeout(limit, Self::try_open(uri, options)).await.unwrap_or_else(late)
    }

    async fn try_open(uri: &AMQPUri, options: &Options) -> Result<Self, Failure> {
        let mut uri = uri.clone();
        if let Some(provider) = &options.credentials {
            let Credentials { user, password } =
                provider.ask().await.map_err(Failure::unavailable)?;
            uri.authority.userinfo = AMQPUserInfo { username: user, password };
        }
        // Not in the call below: the library leaves a task behind when that fails.
        let (stream, plug) =
            dial(&uri, options).await.map_err(|wrong| Failure::dialling(&wrong))?;
        let mut attempt = Attempt(Some(plug.clone()));
        let ready = Mutex::new(Some(stream));
        let connect = async move |_, _| {
            let stream = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It asks only once, for it is not told to open connections again.
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
        Ok(Self { connection, plug })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// Says goodbye, and waits for the answer.
    pub(crate) async fn close(&self) {
        let _ = timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
        self.plug.pull();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let plug = self.plug.clone();
        match tokio::runtime::Handle::try_current() {
            // The library says goodbye by itself. A server that does not answer must not keep it.
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

    #[test]
    fn errors_show_nothing_of_the_url() {
        for url in [
            "",
            "http://u:s3cret@host",
            "amqps://u:s3cret@h:port",
            "amqp://u:s3cret@h:port",
            "s3cret",
        ] {
            let Err(error) = parse(&[url.to_owned()], &Options::default()) else {
                panic!("{url:?} was taken")
            };
            assert_eq!(error.kind(), ErrorKind::Config, "{url:?}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        assert_eq!(parse(&[], &Options::default()).unwrap_err().kind(), ErrorKind::Config);
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_is_refused() {
        let error = parse_one("amqps://u:s3cret@host", &Options::default()).unwrap_err();
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
            let uri = parse_one(url, &Options::default()).unwrap();
            assert_eq!(uri.authority.host, host, "{url}");
        }
        let uri = parse_one("amqp://[::1]:5673", &Options::default()).unwrap();
        assert_eq!(uri.authority.port, 5673);
    }

    #[test]
    fn heartbeats_are_whole_seconds() {
        let heartbeat = |url: &str, heartbeat| {
            let options = Options { heartbeat, ..Options::default() };
            parse_one(url, &options).unwrap().query.heartbeat
        };
        assert_eq!(heartbeat("amqp://host", Duration::ZERO), Some(1));
        assert_eq!(heartbeat("amqp://host", Duration::from_millis(1_500)), Some(2));
        assert_eq!(heartbeat("amqp://host", Duration::MAX), Some(60_000));
        assert_eq!(heartbeat("amqp://host?heartbeat=7", Duration::ZERO), Some(7));
    }
}
