//! Frames on one query stream, reading and writing.
//!
//! Invariants: a header is checked before its payload is awaited or any memory taken for it; a body is
//! never longer than was announced and its memory grows only with what has come; hashing goes along with
//! reading. Writes gather until [`Frames::flush`], so that a small message is one write.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use argus_protocols::{
    CodecError,
    codec::{self, FRAME_HEADER, FrameKind},
    limits as wire,
};
use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, AsyncWrite};

/// Read at a time while looking for headers.
const READ: usize = 4 * 1024;
/// Read at a time into a body.
const BODY_READ: usize = 64 * 1024;
/// Hashed at a time.
const HASH_BLOCK: usize = 64 * 1024;
/// A body up to this size is copied behind its header, so that both are one write.
const INLINE_BODY: usize = 8 * 1024;
/// Memory a body gets before its first byte has come.
const FIRST_BODY: usize = 256 * 1024;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The other side closed or reset the stream.
    #[error("the stream ended")]
    Ended,
    /// The other side closed the stream within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("{0:?} frame out of place")]
    Unexpected(FrameKind),
    #[error("the body is longer than announced")]
    TooLong,
    #[error("an empty chunk")]
    EmptyChunk,
    /// The body's bytes do not have the announced hash.
    #[error("the body does not have the announced hash")]
    Hash,
}

impl FrameError {
    /// Whether this is more than was announced or allowed, rather than nonsense.
    pub(super) fn is_oversized(&self) -> bool {
        matches!(self, FrameError::TooLong | FrameError::Codec(CodecError::TooLarge { .. }))
    }
}

impl From<io::Error> for FrameError {
    fn from(_: io::Error) -> Self {
        FrameError::Ended
    }
}

/// A stream cut into frames.
pub(super) struct Frames<S> {
    stream: S,
    read: BytesMut,
    write: Vec<u8>,
    written: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: BytesMut::new(), write: Vec::new(), written: 0 }
    }

    /// Reads more bytes behind those not yet used; `Ended` at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
        let used = self.read.len();
        self.read.resize(used + READ, 0);
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut self.read[used..]);
        let count = match &result {
            Poll::Ready(Ok(count)) => *count,
            _ => 0,
        };
        self.read.truncate(used + count);
        match ready!(result)? {
            0 if used > 0 => Poll::Ready(Err(FrameError::Truncated)),
            0 => Poll::Ready(Err(FrameError::Ended)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// The next header, left in the buffer.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<(FrameKind, usize), FrameError>> {
        while self.read.len() < FRAME_HEADER {
            ready!(self.poll_fill(cx))?;
        }
        let header = self.read[..FRAME_HEADER].try_into().expect("the length was checked");
        Poll::Ready(Ok(codec::parse_frame_header(header)?))
    }

    /// The next frame, which must not be a chunk. Cancel-safe.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(FrameKind, Bytes), FrameError>> {
        let (kind, length) = ready!(self.poll_header(cx))?;
        if kind == FrameKind::Chunk {
            return Poll::Ready(Err(FrameError::Unexpected(kind)));
        }
        while self.read.len() < FRAME_HEADER + length {
            ready!(self.poll_fill(cx))?;
        }
        self.read.advance(FRAME_HEADER);
        Poll::Ready(Ok((kind, self.read.split_to(length).freeze())))
    }

    pub(super) async fn frame(&mut self) -> Result<(FrameKind, Bytes), FrameError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Whether the other side has gone away or says something although it is not its turn. Cancel-safe.
    pub(super) async fn interrupted(&mut self) -> FrameError {
        if !self.read.is_empty() {
            return FrameError::TooLong;
        }
        match poll_fn(|cx| self.poll_fill(cx)).await {
            Ok(()) => FrameError::TooLong,
            Err(error) => error,
        }
    }

    /// Takes the next part of a body; cancel-safe between parts. `Ok(true)` when it is complete.
    pub(super) async fn body_part(&mut self, body: &mut Body) -> Result<bool, FrameError> {
        poll_fn(|cx| self.poll_body_part(cx, body)).await
    }

    fn poll_body_part(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Poll<Result<bool, FrameError>> {
        if body.bytes.len() == body.length {
            return Poll::Ready(body.complete());
        }
        if body.chunk_left == 0 {
            let (kind, length) = ready!(self.poll_header(cx))?;
            if kind != FrameKind::Chunk {
                return Poll::Ready(Err(FrameError::Unexpected(kind)));
            }
            if length == 0 {
                return Poll::Ready(Err(FrameError::EmptyChunk));
            }
            if length > body.length - body.bytes.len() {
                return Poll::Ready(Err(FrameError::TooLong));
            }
            self.read.advance(FRAME_HEADER);
            body.chunk_left = length;
        }
        let before = body.bytes.len();
        if self.read.is_empty() {
            // Straight into the body: no copy in between.
            body.bytes.resize(before + body.chunk_left.min(BODY_READ), 0);
            let result = Pin::new(&mut self.stream).poll_read(cx, &mut body.bytes[before..]);
            let count = match &result {
                Poll::Ready(Ok(count)) => *count,
                _ => 0,
            };
            body.bytes.truncate(before + count);
            if ready!(result)? == 0 {
                return Poll::Ready(Err(FrameError::Truncated));
            }
        } else {
            let take = self.read.len().min(body.chunk_left);
            body.bytes.extend_from_slice(&self.read[..take]);
            self.read.advance(take);
        }
        body.chunk_left -= body.bytes.len() - before;
        body.hash_arrived();
        if body.bytes.len() == body.length {
            return Poll::Ready(body.complete());
        }
        Poll::Ready(Ok(false))
    }

    /// Appends a frame to what [`Frames::flush`] will send.
    pub(super) fn push(&mut self, kind: FrameKind, payload: &[u8]) {
        self.write.reserve(FRAME_HEADER + payload.len());
        self.write.extend_from_slice(&codec::frame_header(kind, payload.len()));
        self.write.extend_from_slice(payload);
    }

    /// Writes what was pushed, without flushing.
    fn poll_write_pushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
        while self.written < self.write.len() {
            let rest = &self.write[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(FrameError::Ended)),
                count => self.written += count,
            }
        }
        self.write.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Sends what was pushed.
    pub(super) async fn flush(&mut self) -> Result<(), FrameError> {
        poll_fn(|cx| {
            ready!(self.poll_write_pushed(cx))?;
            Pin::new(&mut self.stream).poll_flush(cx).map_err(Into::into)
        })
        .await
    }

    /// Sends some more of a body in chunks; `Ok(true)` when all of it is with the connection. Small bodies
    /// are pushed instead, to go out with what comes next.
    pub(super) fn poll_send_part(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
    ) -> Poll<Result<bool, FrameError>> {
        if sending.left() == 0 {
            return Poll::Ready(Ok(true));
        }
        if sending.chunk_left == 0 {
            let length = sending.left().min(wire::CHUNK);
            if sending.left() <= INLINE_BODY {
                self.push(FrameKind::Chunk, &sending.body[sending.sent..]);
                sending.sent = sending.body.len();
                return Poll::Ready(Ok(true));
            }
            self.write.extend_from_slice(&codec::frame_header(FrameKind::Chunk, length));
            sending.chunk_left = length;
        }
        ready!(self.poll_write_pushed(cx))?;
        let rest = &sending.body[sending.sent..sending.sent + sending.chunk_left];
        match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
            0 => Poll::Ready(Err(FrameError::Ended)),
            count => {
                sending.sent += count;
                sending.chunk_left -= count;
                Poll::Ready(Ok(sending.left() == 0))
            }
        }
    }

    pub(super) async fn send_part(&mut self, sending: &mut Sending) -> Result<bool, FrameError> {
        poll_fn(|cx| self.poll_send_part(cx, sending)).await
    }

    /// Sends some more of a body, unless the other side speaks first.
    pub(super) async fn send_part_or_frame(
        &mut self,
        sending: &mut Sending,
    ) -> Result<Result<bool, (FrameKind, Bytes)>, FrameError> {
        poll_fn(|cx| {
            if let Poll::Ready(frame) = self.poll_frame(cx) {
                return Poll::Ready(frame.map(Err));
            }
            self.poll_send_part(cx, sending).map_ok(Ok)
        })
        .await
    }

    /// Sends what was pushed and closes this side.
    pub(super) async fn close(&mut self) -> Result<(), FrameError> {
        poll_fn(|cx| {
            ready!(self.poll_write_pushed(cx))?;
            Pin::new(&mut self.stream).poll_close(cx).map_err(Into::into)
        })
        .await
    }
}

/// A body on its way in.
pub(super) struct Body {
    bytes: Vec<u8>,
    length: usize,
    hash: [u8; 32],
    hasher: blake3::Hasher,
    hashed: usize,
    chunk_left: usize,
}

impl Body {
    /// `length` is within `argus_protocols::limits::BODY`: whoever decoded the announcement checked it.
    pub(super) fn announced(length: u32, hash: [u8; 32]) -> Self {
        let length = length as usize;
        debug_assert!(length <= wire::BODY);
        Self {
            bytes: Vec::with_capacity(length.min(FIRST_BODY)),
            length,
            hash,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            chunk_left: 0,
        }
    }

    /// Hashes what has come, in blocks: BLAKE3 is several times faster on whole ones.
    fn hash_arrived(&mut self) {
        let blocks = self.bytes.len() - (self.bytes.len() - self.hashed) % HASH_BLOCK;
        self.hasher.update(&self.bytes[self.hashed..blocks]);
        self.hashed = blocks;
    }

    fn complete(&mut self) -> Result<bool, FrameError> {
        self.hasher.update(&self.bytes[self.hashed..]);
        self.hashed = self.bytes.len();
        if *self.hasher.finalize().as_bytes() == self.hash { Ok(true) } else { Err(FrameError::Hash) }
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

/// A body on its way out.
pub(super) struct Sending {
    body: Bytes,
    sent: usize,
    chunk_left: usize,
}

impl Sending {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body, sent: 0, chunk_left: 0 }
    }

    pub(super) fn left(&self) -> usize {
        self.body.len() - self.sent
    }

    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    pub(super) fn is_small(&self) -> bool {
        self.body.len() <= INLINE_BODY
    }
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    /// What one side wrote, as the other will read it.
    fn written(write: impl AsyncFnOnce(&mut Frames<Cursor<Vec<u8>>>)) -> Frames<Cursor<Vec<u8>>> {
        let mut frames = Frames::new(Cursor::new(Vec::new()));
        block_on(async {
            write(&mut frames).await;
            frames.flush().await.unwrap();
        });
        Frames::new(Cursor::new(frames.stream.into_inner()))
    }

    async fn read(frames: &mut Frames<Cursor<Vec<u8>>>, mut body: Body) -> Result<Bytes, FrameError> {
        while !frames.body_part(&mut body).await? {}
        Ok(body.into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever comes, reading ends without a panic and without more memory than came.
        #[test]
        fn garbage_ends_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000), length in 1u32..100_000) {
            block_on(async {
                let mut frames = Frames::new(Cursor::new(bytes.clone()));
                while frames.frame().await.is_ok() {}
                let mut frames = Frames::new(Cursor::new(bytes));
                prop_assert!(read(&mut frames, Body::announced(length, [0; 32])).await.is_err());
                Ok(())
            })?;
        }

        /// Frames and bodies of any size come back as they were, cut anywhere.
        #[test]
        fn bodies_come_back(size in prop_oneof![1usize..20_000, 200_000usize..900_000], payload in 1usize..200) {
            let body = Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
            let mut frames = written(async |frames| {
                frames.push(FrameKind::Open, &vec![7; payload]);
                let mut sending = Sending::new(body.clone());
                while !frames.send_part(&mut sending).await.unwrap() {}
                frames.push(FrameKind::Accepted, &[0]);
            });
            block_on(async {
                let (kind, open) = frames.frame().await.unwrap();
                prop_assert_eq!((kind, open.len()), (FrameKind::Open, payload));
                let announced = Body::announced(size as u32, *blake3::hash(&body).as_bytes());
                prop_assert_eq!(&read(&mut frames, announced).await.unwrap(), &body);
                prop_assert_eq!(frames.frame().await.unwrap().0, FrameKind::Accepted);
                prop_assert!(matches!(frames.frame().await, Err(FrameError::Ended)));
                Ok(())
            })?;
        }
    }
}
