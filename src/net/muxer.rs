//! Yamux over TCP connections: the `/yamux/1.0.0` upgrade, made for query streams.
//!
//! libp2p's own wrapper fixes frames of 16 KiB, flushes the encryption layer after each of them and lets
//! windows grow to 1 GiB a connection. This one speaks the same protocol and differs in four things:
//! - frames of up to [`FRAME`] bytes, so that a picture is not cut into hundreds of pieces;
//! - the layer below is flushed when there is nothing more to write ([`Corked`]), so that frames written
//!   together are encrypted and sent together;
//! - small writes on a stream are gathered until they are flushed ([`Substream`]), so that a protocol
//!   name, an open frame and a small body make one frame;
//! - windows may grow by [`limits::MUXED_WINDOW_GROWTH`] in all.
//!
//! Invariant: whenever [`Muxer`] returns `Pending`, everything written is flushed or the waker is
//! registered for when it can be.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures::{AsyncRead, AsyncWrite, future};
use libp2p::core::{
    muxing::{StreamMuxer, StreamMuxerEvent},
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
};
use parking_lot::Mutex;
use yamux::{Connection, ConnectionError, Mode};

use super::limits;

/// Payload of one Yamux frame at most.
const FRAME: usize = 64 * 1024;
/// Writes are gathered up to this size.
const GATHER: usize = 8 * 1024;
/// Flushes that are put off before one is made, so that one direction does not wait for the other.
const CORKED_FLUSHES: usize = 32;
/// Inbound streams waiting to be accepted. Yamux keeps an honest peer below.
const WAITING_STREAMS: usize = limits::NEGOTIATING_STREAMS;

/// The upgrade. Interoperates with every Yamux.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config;

impl Config {
    fn muxer<C: AsyncRead + AsyncWrite + Unpin>(self, io: C, mode: Mode) -> Muxer<C> {
        let mut config = yamux::Config::default();
        let floor = limits::MUXED_STREAMS * yamux::DEFAULT_CREDIT as usize;
        // The order matters: each setter asserts that the window covers all streams.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(limits::MUXED_STREAMS);
        config.set_max_connection_receive_window(Some(floor + limits::MUXED_WINDOW_GROWTH));
        config.set_split_send_size(FRAME);
        let cork = Arc::new(Mutex::new(Cork { io, put_off: 0 }));
        Muxer {
            connection: Connection::new(Corked(cork.clone()), config, mode),
            cork,
            waiting: VecDeque::new(),
            acceptor: None,
        }
    }
}

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, io: C, _: Self::Info) -> Self::Future {
        future::ready(Ok(self.muxer(io, Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, io: C, _: Self::Info) -> Self::Future {
        future::ready(Ok(self.muxer(io, Mode::Client)))
    }
}

/// The layer below, and how many flushes of it were put off.
struct Cork<C> {
    io: C,
    put_off: usize,
}

/// The layer below as Yamux sees it: flushing succeeds at once and is put off until the muxer has
/// nothing more to write.
struct Corked<C>(Arc<Mutex<Cork<C>>>);

impl<C: AsyncRead + Unpin> AsyncRead for Corked<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.lock().io).poll_read(cx, buf)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Corked<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut cork = self.0.lock();
        let written = ready!(Pin::new(&mut cork.io).poll_write(cx, buf))?;
        // Something to flush from here on, also when Yamux forgets to ask for it.
        cork.put_off = cork.put_off.max(1);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cork = self.0.lock();
        if cork.put_off > 0 {
            cork.put_off += 1;
        }
        if cork.put_off > CORKED_FLUSHES {
            return cork.poll_flush(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_close(cx)
    }
}

impl<C: AsyncWrite + Unpin> Cork<C> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.put_off > 0 {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.put_off = 0;
        }
        Poll::Ready(Ok(()))
    }
}

/// A connection that carries many streams.
pub struct Muxer<C> {
    connection: Connection<Corked<C>>,
    cork: Arc<Mutex<Cork<C>>>,
    /// Inbound streams that came while the connection was driven for other reasons.
    waiting: VecDeque<Substream>,
    acceptor: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Reads and writes all there is, and gathers new inbound streams.
    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        while let Poll::Ready(next) = self.connection.poll_next_inbound(cx) {
            let stream = next.ok_or(ConnectionError::Closed)??;
            if self.waiting.len() < WAITING_STREAMS {
                self.waiting.push_back(Substream::new(stream));
            }
            // Else it is dropped, which resets it.
        }
        match self.cork.lock().poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(ConnectionError::Io(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + 'static> StreamMuxer for Muxer<C> {
    type Substream = Substream;
    type Error = Error;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        if this.waiting.is_empty() {
            this.drive(cx)?;
        }
        if let Some(stream) = this.waiting.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        this.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(self.get_mut().connection.poll_new_outbound(cx))?;
        Poll::Ready(Ok(Substream::new(stream)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.get_mut().connection.poll_close(cx).map_err(Error)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let this = self.get_mut();
        this.drive(cx)?;
        if !this.waiting.is_empty()
            && let Some(acceptor) = this.acceptor.take()
        {
            acceptor.wake();
        }
        Poll::Pending
    }
}

/// One stream. What is written travels when it is flushed, when [`GATHER`] bytes have come together, or
/// when the stream is closed.
///
/// When the other side's window is full, what was gathered goes out as soon as it opens, with the next
/// call of any kind; flushing does not wait for that. It must not: a protocol name that is not yet
/// confirmed is flushed before each read, and the other side may refuse without reading on.
pub struct Substream {
    stream: yamux::Stream,
    gathered: Vec<u8>,
    sent: usize,
    /// A flush was asked for and what was gathered is not out yet.
    flushing: bool,
}

impl Substream {
    fn new(stream: yamux::Stream) -> Self {
        Self { stream, gathered: Vec::new(), sent: 0, flushing: false }
    }

    fn poll_send_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let rest = &self.gathered[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.gathered.clear();
        self.sent = 0;
        self.flushing = false;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.gathered.is_empty() && self.flushing {
            // An error here shows in the read as well, behind what came before it.
            let _ = self.poll_send_gathered(cx);
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.sent == 0 && this.gathered.len() + buf.len() <= GATHER {
            this.gathered.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_send_gathered(cx))?;
        if buf.len() <= GATHER {
            this.gathered.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flushing = true;
        if let Poll::Ready(Err(error)) = this.poll_send_gathered(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_gathered(cx))?;
        Pin::new(&mut this.stream).poll_close(cx)
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] ConnectionError);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt as _;
    use libp2p::{
        Multiaddr, Swarm, Transport as _,
        core::{muxing::StreamMuxerBox, transport::MemoryTransport, upgrade::Version},
        identity::Keypair,
        noise, ping,
        swarm::{self, SwarmEvent},
    };

    use super::*;

    /// A node that pings, over noise and either this Yamux or libp2p's own.
    fn pinger(stock: bool) -> Swarm<ping::Behaviour> {
        let key = Keypair::generate_ed25519();
        let encrypted = MemoryTransport::default()
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&key).unwrap());
        let transport = if stock {
            let muxed = encrypted.multiplex(libp2p::yamux::Config::default());
            muxed.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed()
        } else {
            let muxed = encrypted.multiplex(Config);
            muxed.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed()
        };
        let behaviour = ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_millis(10)));
        let peer = key.public().to_peer_id();
        Swarm::new(transport, behaviour, peer, swarm::Config::with_tokio_executor())
    }

    #[tokio::test]
    async fn it_speaks_with_any_yamux() {
        for (listener_is_stock, dialer_is_stock) in [(true, false), (false, true), (false, false)] {
            let (mut listener, mut dialer) = (pinger(listener_is_stock), pinger(dialer_is_stock));
            listener.listen_on("/memory/0".parse().unwrap()).unwrap();
            let address: Multiaddr = loop {
                if let SwarmEvent::NewListenAddr { address, .. } = listener.select_next_some().await {
                    break address;
                }
            };
            dialer.dial(address).unwrap();
            let mut pinged = [false; 2];
            while pinged != [true; 2] {
                let (event, side) = tokio::select! {
                    event = listener.select_next_some() => (event, 0),
                    event = dialer.select_next_some() => (event, 1),
                };
                if let SwarmEvent::Behaviour(ping::Event { result, .. }) = event {
                    result.unwrap();
                    pinged[side] = true;
                }
            }
        }
    }
}
