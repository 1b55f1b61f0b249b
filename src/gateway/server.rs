//! Accepts connections under limits and drains them at the end.
//!
//! HTTP/1.1 alone: a proxy with TLS in front speaks it, and it has the fewest ways to be attacked. A
//! client that dawdles over its headers, or takes nothing of its answer, is cut off.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::limits;

/// How many connections, and how they end.
pub(super) struct Terms {
    pub max_connections: usize,
    pub drain: Duration,
    /// For the request line and headers, and for an idle connection's next request.
    pub head_timeout: Duration,
    pub open: Gauge,
}

/// Serves until `shutdown`, then lets running requests end, for `drain` at most.
pub(super) async fn accept(listener: TcpListener, router: Router, terms: Terms, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(terms.max_connections));
    let terms = Arc::new(terms);
    let addresses = Addresses::default();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file handles, or a connection that was gone before we had it: neither is a
                // reason to stop, and the former would spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (Ok(permit), Some(address)) = (Arc::clone(&room).try_acquire_owned(), addresses.enter(from.ip()))
        else {
            tracing::debug!("a connection over the limit was closed");
            continue;
        };
        let (router, shutdown, terms) = (router.clone(), shutdown.clone(), Arc::clone(&terms));
        connections.spawn(async move {
            let _held = (permit, address);
            terms.open.inc();
            serve(stream, router, shutdown, &terms).await;
            terms.open.dec();
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve(stream: TcpStream, router: Router, shutdown: CancellationToken, terms: &Terms) {
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(terms.head_timeout)
        .max_buf_size(limits::HEAD)
        .serve_connection(
            TokioIo::new(Prompt::new(stream, limits::WRITE_TIMEOUT)),
            TowerToHyperService::new(router),
        );
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(terms.drain, connection).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::info!("a request was cut off: it ran longer than the node drains");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Connections by address.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

struct Entered {
    addresses: Addresses,
    address: Option<IpAddr>,
}

impl Addresses {
    fn enter(&self, address: IpAddr) -> Option<Entered> {
        if address.is_loopback() {
            return Some(Entered { addresses: self.clone(), address: None });
        }
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= limits::CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Entered { addresses: self.clone(), address: Some(address) })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut counts = self.addresses.0.lock();
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// A stream whose writes fail when the other side takes nothing for so long.
struct Prompt<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Prompt<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    /// Passes a write on that could be made; one that could not starts the clock, or ends with it.
    fn judge<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut prompt = Prompt::new(ours, Duration::from_millis(50));
        let error = prompt.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_slow_client_is_served_as_long_as_it_takes_something() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let patience = Duration::from_secs(4);
        let mut prompt = Prompt::new(ours, patience);
        let writing = tokio::spawn(async move { prompt.write_all(&[0; 64]).await });
        // Longer in all than the patience, but never at a time.
        for _ in 0..4 {
            tokio::time::sleep(patience / 3).await;
            tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut [0; 16]).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[test]
    fn connections_of_one_address_are_counted_and_let_go() {
        let addresses = Addresses::default();
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let held: Vec<_> =
            (0..limits::CONNECTIONS_PER_ADDRESS).map(|_| addresses.enter(one).unwrap()).collect();
        assert!(addresses.enter(one).is_none());
        assert!(addresses.enter("192.0.2.2".parse().unwrap()).is_some());
        drop(held);
        assert!(addresses.enter(one).is_some());
        assert!(addresses.0.lock().is_empty());
        assert!(addresses.enter("127.0.0.1".parse().unwrap()).is_some());
    }

    async fn listening(
        terms: Terms,
    ) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = Router::new().route("/", axum::routing::get(|| async { "hello" }));
        let task = tokio::spawn(accept(listener, router, terms, shutdown.clone()));
        (address, shutdown, task)
    }

    fn terms(head_timeout: Duration) -> Terms {
        Terms { max_connections: 2, drain: Duration::from_secs(5), head_timeout, open: Gauge::default() }
    }

    #[tokio::test]
    async fn slow_headers_and_idle_connections_are_cut_off() {
        let (address, shutdown, task) = listening(terms(Duration::from_millis(300))).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut slow, &mut text).await.unwrap();
        assert!(!text.contains("200"), "{text}");
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        text.clear();
        // Ends only because the server closes the connection that asks nothing more.
        tokio::io::AsyncReadExt::read_to_string(&mut idle, &mut text).await.unwrap();
        assert!(text.contains("200 OK") && text.ends_with("hello"), "{text}");
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn connections_over_the_limit_are_closed_and_room_comes_back() {
        let (address, shutdown, task) = listening(terms(Duration::from_secs(20))).await;
        let ask = async |stream: &mut TcpStream| {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            let mut bytes = [0; 512];
            tokio::io::AsyncReadExt::read(stream, &mut bytes).await.unwrap_or(0)
        };
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert!(ask(&mut stream).await > 0);
            held.push(stream);
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut third).await, 0);
        drop(held);
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if ask(&mut stream).await > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        task.await.unwrap();
    }
}
