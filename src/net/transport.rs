//! How bytes travel: QUIC, TCP with Noise and Yamux, names by DNS, circuits through relays, and memory
//! for tests.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, future::Either};
use libp2p::{
    PeerId, Transport,
    core::{muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    dns,
    identity::Keypair,
    noise, quic, relay, tcp,
};

use super::{NetError, limits, muxer};

/// QUIC's windows: a picture travels without waiting for the other side, and one peer with many streams
/// stays bounded.
const QUIC_STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const QUIC_CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
const QUIC_STREAMS: u32 = 256;

/// Every transport of a node.
pub(super) fn build(
    key: &Keypair,
    relay: relay::client::Transport,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, NetError> {
    let noise = noise::Config::new(key).map_err(|e| NetError::Transport(e.to_string()))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .map(|stream, _| ReadAhead::new(stream))
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(muxer::Config)
        .timeout(limits::CONNECTION_SETUP)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let mut config = quic::Config::new(key);
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    config.max_concurrent_stream_limit = QUIC_STREAMS;
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let direct = quic.or_transport(tcp).map(|either, _| either_output(either));
    let named = match dns::tokio::Transport::system(direct) {
        Ok(transport) => transport,
        Err(error) => {
            return Err(NetError::Transport(format!("names cannot be resolved: {error}")));
        }
    };
    let relayed = relay
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(muxer::Config)
        .timeout(limits::CONNECTION_SETUP)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let memory = libp2p::core::transport::MemoryTransport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(muxer::Config)
        .timeout(limits::CONNECTION_SETUP)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // The relay transport comes first, since the others would take the first hop of a circuit for its
    // end; the one that resolves names last, since it takes any address.
    Ok(relayed
        .or_transport(memory)
        .map(|either, _| either_output(either))
        .or_transport(named)
        .map(|either, _| either_output(either))
        .boxed())
}

fn either_output<T>(either: Either<T, T>) -> T {
    match either {
        Either::Left(output) | Either::Right(output) => output,
    }
}

/// Reads ahead on connections that carry bodies: Noise asks for 8 KiB at a time, which would be a system
/// call each. Quiet connections hold no buffer.
struct ReadAhead<T> {
    io: T,
    /// Nothing came since the last time there was nothing.
    quiet: bool,
    buffer: Vec<u8>,
    /// What has been read and not yet been asked for.
    start: usize,
    end: usize,
}

/// A read that fills so much has more behind it.
const BUSY_READ: usize = 8 * 1024;
const READ_AHEAD: usize = 128 * 1024;

impl<T> ReadAhead<T> {
    fn new(io: T) -> Self {
        Self { io, quiet: true, buffer: Vec::new(), start: 0, end: 0 }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.start == this.end {
            if this.buffer.is_empty() {
                let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                if read == buf.len() && read >= BUSY_READ {
                    this.buffer = vec![0; READ_AHEAD];
                }
                return Poll::Ready(Ok(read));
            }
            this.start = 0;
            this.end = 0;
            let read = match Pin::new(&mut this.io).poll_read(cx, &mut this.buffer) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if this.quiet {
                        this.buffer = Vec::new();
                    }
                    this.quiet = true;
                    return Poll::Pending;
                }
            };
            this.end = read;
            this.quiet = false;
        }
        let length = buf.len().min(this.end - this.start);
        buf[..length].copy_from_slice(&this.buffer[this.start..this.start + length]);
        this.start += length;
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_close(cx)
    }
}
