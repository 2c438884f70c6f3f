//! The byte stream of a connection, in the library's form.
//!
//! The library supports TLS connections only with its own TLS. For it, all connections of the
//! driver are plain; the driver adds TLS below.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::{Executor, Reactor};
use async_rs::util::{RuntimeParts, Task};
use async_rs::{Runtime, Tokio};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::{NoSubscriber, set_default, with_default};

/// The name of the library's thread per connection.
const LOOP: &str = "lapin-io-loop";

/// A connection of any kind.
pub(crate) type Stream = Compat<Box<dyn Duplex>>;

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(crate) fn of(stream: impl Duplex + 'static) -> Stream {
    Compat::new(Box::new(stream))
}

/// The runtime of the calling task, with the driver's connections.
///
/// # Panics
/// Outside of a runtime.
pub(crate) fn runtime() -> Runtime<RuntimeParts<Quiet, Net>> {
    Runtime::new(RuntimeParts::new(Quiet(Tokio::current()), Net(Tokio::current())))
}

/// Tokio's tasks and threads, without the logs of the library: it logs each failed attempt as an
/// error, several times. The caller gets the same reason, and the driver logs each change once.
#[derive(Debug, Clone)]
pub(crate) struct Quiet(Tokio);

impl Executor for Quiet {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        // The library calls this on its thread for a connection, where it also logs outside of this
        // future. The thread ends with the connection.
        if std::thread::current().name() == Some(LOOP) {
            std::mem::forget(set_default(NoSubscriber::default()));
        }
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future.with_subscriber(NoSubscriber::default()))
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(|| with_default(NoSubscriber::default(), work))
    }
}

/// Tokio's functions, but with another type of connection.
#[derive(Debug, Clone)]
pub(crate) struct Net(Tokio);

impl Reactor for Net {
    type TcpStream = Stream;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// For event sources that are not connections; the driver has none.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static>
    {
        Err::<Stream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(
        &self,
        period: Duration,
    ) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        addr: SocketAddr,
    ) -> impl Future<Output = io::Result<Stream>> + Send + 'static {
        let stream = self.0.tcp_connect_addr(addr);
        async { Ok(of(stream.await?.into_inner())) }
    }
}
