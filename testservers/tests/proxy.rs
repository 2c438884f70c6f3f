//! The proxy's faults, seen from a client.

// The functions that tests share are test code too.
#![allow(clippy::unwrap_used)]

use std::io;
use std::time::{Duration, Instant};

use testservers::FaultProxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const MOMENT: Duration = Duration::from_millis(100);

/// A proxy before a server that sends everything back.
async fn proxy() -> FaultProxy {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::start(server.local_addr().unwrap()).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    proxy
}

async fn echo(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn passes_everything_on() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let large = vec![7; 300_000];
    let (mut from, mut to) = stream.split();
    let mut answer = vec![0; large.len()];
    let (wrote, read) = tokio::join!(to.write_all(&large), from.read_exact(&mut answer));
    wrote.unwrap();
    read.unwrap();
    assert!(answer == large);
    // The end of one direction passes too.
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn refuses_and_comes_back_on_the_same_port() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    echo(&mut stream, b"1").await.unwrap();
    for _ in 0..3 {
        proxy.refuse().await.unwrap();
        proxy.refuse().await.unwrap();
        assert!(echo(&mut stream, b"2").await.is_err());
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.pass().await.unwrap();
        stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(echo(&mut stream, b"3").await.unwrap(), b"3");
    }
}

#[tokio::test]
async fn stalls_open_connections_only_and_delivers_late() {
    let proxy = proxy().await;
    let mut stalled = TcpStream::connect(proxy.addr()).await.unwrap();
    echo(&mut stalled, b"1").await.unwrap();
    proxy.stall();
    assert!(timeout(MOMENT, echo(&mut stalled, b"late")).await.is_err());
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut stream, b"2").await.unwrap(), b"2");
    proxy.pass().await.unwrap();
    let mut answer = [0; 4];
    stalled.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"late");
}

#[tokio::test]
async fn cuts_open_connections_only() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    echo(&mut stream, b"1").await.unwrap();
    proxy.cut();
    assert!(timeout(Duration::from_secs(5), echo(&mut stream, b"2")).await.unwrap().is_err());
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut stream, b"3").await.unwrap(), b"3");
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn freezes_and_thaws() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    echo(&mut stream, b"1").await.unwrap();
    proxy.freeze();
    stream.write_all(b"2").await.unwrap();
    let mut answer = [0];
    assert!(timeout(MOMENT, stream.read_exact(&mut answer)).await.is_err());
    let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(timeout(MOMENT, echo(&mut second, b"3")).await.is_err());
    proxy.pass().await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"2");
}

#[tokio::test]
async fn a_frozen_connection_can_be_cut() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    proxy.freeze();
    let cut = async {
        tokio::time::sleep(MOMENT).await;
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(echo(&mut stream, b"1"), cut);
    assert!(answer.is_err());
}

#[tokio::test]
async fn delays() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    proxy.delay(MOMENT);
    let start = Instant::now();
    echo(&mut stream, b"1").await.unwrap();
    assert!(start.elapsed() >= 2 * MOMENT, "both directions");
}

#[tokio::test]
async fn a_dropped_proxy_ends_its_connections() {
    let proxy = proxy().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    echo(&mut stream, b"1").await.unwrap();
    drop(proxy);
    assert!(timeout(Duration::from_secs(5), echo(&mut stream, b"2")).await.unwrap().is_err());
}
