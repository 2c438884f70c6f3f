//! Where the servers are, and how to reach them.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bentocache_core::DriverError;
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties, runtime};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::time::timeout;

use crate::error::{self, Failure};

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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(5),
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
             host at the end, and percent-encode special characters of the password",
        )
    })?;
    if uri.scheme == AMQPScheme::AMQPS {
        return Err(error::config(
            "an amqps:// URL cannot be used, for the driver has no TLS; write amqp:// and protect \
             the network by other means, such as a tunnel",
        ));
    }
    // Whole seconds, in two bytes; none would switch them off.
    let heartbeat = options.heartbeat.as_secs_f64().ceil().clamp(1.0, 60_000.0);
    uri.query.heartbeat.get_or_insert(heartbeat as u16);
    Ok(uri)
}

/// A connection, which ends when this is dropped.
pub(crate) struct Session {
    connection: Connection,
    socket: Arc<Plug>,
}

/// The socket below a connection. The library has no end for a connection whose server has fallen
/// silent, and a thread for each: so the socket is closed under it.
#[derive(Default)]
struct Plug(Mutex<Wire>);

#[derive(Default)]
enum Wire {
    #[default]
    NotYet,
    In(Socket),
    Pulled,
}

impl Plug {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket that comes too late is closed at once.
    fn put(&self, socket: Socket) {
        let mut state = self.lock();
        if matches!(*state, Wire::Pulled) {
            let _ = socket.shutdown(Shutdown::Both);
        } else {
            *state = Wire::In(socket);
        }
    }

    fn pull(&self) {
        if let Wire::In(socket) = std::mem::replace(&mut *self.lock(), Wire::Pulled) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Pulls the plug when an attempt is given up.
struct Attempt(Option<Arc<Plug>>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(plug) = &self.0 {
            plug.pull();
        }
    }
}

impl Session {
    pub(crate) async fn open(uri: AMQPUri, limit: Duration) -> Result<Self, Failure> {
        let plug = Arc::<Plug>::default();
        let mut attempt = Attempt(Some(Arc::clone(&plug)));
        let socket = Arc::clone(&plug);
        let connection = Connection::connector(
            uri,
            runtime::default_runtime().map_err(|wrong| Failure::new(&wrong))?,
            async move |uri: AMQPUri, runtime| {
                let late = || io::Error::from(io::ErrorKind::TimedOut);
                let stream = timeout(limit, uri.connect_async(&runtime)).await;
                let stream = stream.map_err(|_| late())??;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    let own = SockRef::from(plain.get_ref());
                    own.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
                    socket.put(own.try_clone()?);
                }
                Ok(stream)
            },
            ConnectionProperties::default().with_connection_name("bentocache".into()),
        );
        match timeout(limit, connection).await {
            Ok(Ok(connection)) => {
                attempt.0 = None;
                Ok(Self { connection, socket: plug })
            }
            Ok(Err(wrong)) => Err(Failure::connecting(&wrong)),
            Err(_) => Err(Failure::late(limit)),
        }
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
        self.socket.pull();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let plug = Arc::clone(&self.socket);
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
    use bentocache_core::ErrorKind;

    use super::*;

    #[test]
    fn errors_show_nothing_of_the_url() {
        for url in [
            "",
            "http://u:s3cret@host",
            "amqps://u:s3cret@host",
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
