//! A TCP proxy whose connections fail on demand, for tests against real servers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use bentocache_testkit::suite::FaultyLink;

/// A TCP proxy in front of a server: it passes everything on, until it is told to refuse, cut,
/// freeze or delay. Dropping it ends its connections.
///
/// ```
/// use testservers::FaultProxy;
/// use tokio::net::{TcpListener, TcpStream};
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let server = TcpListener::bind("127.0.0.1:0").await?;
/// let proxy = FaultProxy::start(server.local_addr()?).await?;
/// assert!(TcpStream::connect(proxy.addr()).await.is_ok());
/// proxy.refuse().await?;
/// assert!(TcpStream::connect(proxy.addr()).await.is_err());
/// proxy.pass().await?;
/// assert!(TcpStream::connect(proxy.addr()).await.is_ok());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    target: Arc<StdMutex<SocketAddr>>,
    door: Mutex<Door>,
    link: watch::Sender<Link>,
    accepted: Arc<AtomicU64>,
}

/// One of the two is there.
#[derive(Debug)]
struct Door {
    accepting: Option<JoinHandle<()>>,
    /// Bound but not listening: connections are refused, and nobody else gets the port.
    shut: Option<TcpSocket>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    is_frozen: bool,
    /// Connections accepted before this one are frozen.
    frozen_before: u64,
    delay: Duration,
    cuts: u64,
}

impl Link {
    fn passes(&self, number: u64) -> bool {
        !self.is_frozen && number >= self.frozen_before
    }
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `target`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let addr = socket.local_addr()?;
        let proxy = Self {
            addr,
            target: Arc::new(StdMutex::new(target)),
            door: Mutex::new(Door { accepting: None, shut: Some(socket) }),
            link: watch::Sender::default(),
            accepted: Arc::default(),
        };
        proxy.pass().await?;
        Ok(proxy)
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Passes new connections on to another server, as an address does that was moved. Open ones stay
    /// with the former server.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// No more faults: accepts connections, moves bytes at once, lets frozen ones go on.
    ///
    /// # Errors
    /// When it cannot listen any more.
    pub async fn pass(&self) -> io::Result<()> {
        let mut door = self.door.lock().await;
        self.link.send_modify(|link| *link = Link { cuts: link.cuts, ..Link::default() });
        if let Some(socket) = door.shut.take() {
            let accepting = accept(
                socket.listen(1024)?,
                self.target.clone(),
                self.link.subscribe(),
                self.accepted.clone(),
            );
            door.accepting = Some(tokio::spawn(accepting));
        }
        Ok(())
    }

    /// Cuts the connections that are open and refuses new ones, until [`pass`](Self::pass).
    ///
    /// # Errors
    /// When it cannot keep its port.
    pub async fn refuse(&self) -> io::Result<()> {
        let mut door = self.door.lock().await;
        if let Some(accepting) = door.accepting.take() {
            // Before the other one is closed, or somebody else may get the port in between.
            let early = bind(self.addr);
            accepting.abort();
            let _ = accepting.await;
            door.shut = Some(early.or_else(|_| bind(self.addr))?);
        }
        self.cut();
        Ok(())
    }

    /// Cuts the connections that are open. New ones are accepted as before.
    pub fn cut(&self) {
        self.link.send_modify(|link| link.cuts += 1);
    }

    /// Moves no more bytes, on open and new connections, until [`pass`](Self::pass): a network
    /// that swallows everything.
    pub fn freeze(&self) {
        self.link.send_modify(|link| link.is_frozen = true);
    }

    /// Moves no more bytes on the connections that are open, until [`pass`](Self::pass); new ones
    /// work. What was sent arrives then, even if the sender has closed its end meanwhile: packets
    /// that a network delivers late.
    pub fn stall(&self) {
        let accepted = self.accepted();
        self.link.send_modify(|link| link.frozen_before = accepted);
    }

    /// Holds up each piece of data for that long, in both directions, until [`pass`](Self::pass).
    pub fn delay(&self, delay: Duration) {
        self.link.send_modify(|link| link.delay = delay);
    }
}

impl FaultyLink for FaultProxy {
    async fn cut(&self) {
        self.refuse().await.expect("the proxy keeps its port");
    }

    async fn silence(&self) {
        self.freeze();
    }

    async fn restore(&self) {
        self.pass().await.expect("the proxy listens");
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.door.get_mut().accepting {
            accepting.abort();
        }
        self.cut();
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    #[cfg(target_os = "linux")]
    socket.set_reuseport(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

async fn accept(
    listener: TcpListener,
    target: Arc<StdMutex<SocketAddr>>,
    link: watch::Receiver<Link>,
    accepted: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let number = accepted.fetch_add(1, Relaxed);
        let cuts = link.borrow().cuts;
        let target = *target.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::spawn(join(client, target, link.clone(), number, cuts));
    }
}

/// Moves bytes between the two until one closes or the link is cut.
async fn join(
    client: TcpStream,
    target: SocketAddr,
    mut link: watch::Receiver<Link>,
    number: u64,
    cuts: u64,
) {
    let [up, down] = [link.clone(), link.clone()];
    let both_ways = async {
        let server = TcpStream::connect(target).await?;
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            pump(from_client, to_server, up, number),
            pump(from_server, to_client, down, number)
        )
    };
    tokio::select! {
        _ = both_ways => {}
        _ = link.wait_for(|link| link.cuts != cuts) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    number: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let size = from.read(&mut buffer).await?;
        let delay = link.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let passes = link.wait_for(|link| link.passes(number)).await.is_ok();
        if !passes || size == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..size]).await?;
    }
}
