//! The miner's side of a query: admission of inbound streams, then [`InboundQuery`].
//!
//! A stream costs its peer a slot from the moment it is open. Its open frame must be there within
//! [`limits::OPEN_FRAME`], is bounded, and is verified (peers, clock, signature, replay) before anybody
//! else hears of it. What breaks these rules is refused in five bytes and counts against the peer.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use argus_protocols::{
    Commitment, HotkeyPair, QueryId, Reason, Receipt, Rejection, ResultHeader, SignedOpen, SignedReceipt,
    VerifiedOpen,
    codec::{self, FrameKind},
    limits as wire,
    query::{Accepted, OpenError, Progress},
};
use bytes::Bytes;
use libp2p::{PeerId, Stream};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant as Time, error::Elapsed, timeout_at},
};

use super::{
    audit::Committed,
    frames::{Body, FrameError, Frames, Sending},
    replay::Replay,
};
use crate::net::{
    Deadline, Limits, Offence, StreamError, limits,
    metrics::{Metrics, Open},
    penalties::Complaints,
    unix_ms,
};

/// Takes inbound streams of all connections.
#[derive(Clone)]
pub(in crate::net) struct Admission(Arc<Inner>);

struct Inner {
    peer: PeerId,
    /// Without one, nothing is answered.
    hotkey: Option<Arc<HotkeyPair>>,
    netuid: u16,
    queries: mpsc::Sender<InboundQuery>,
    complaints: Complaints,
    metrics: Metrics,
    replay: Mutex<Replay>,
    streams: Arc<Semaphore>,
    /// Streams that are over the limit and being told so.
    refusals: Arc<Semaphore>,
    per_peer: Arc<Mutex<HashMap<PeerId, usize>>>,
    most_per_peer: usize,
}

/// Streams refused at once; beyond, they are reset.
const REFUSALS: usize = 64;
/// What a refused peer should wait.
const RETRY_MS: u32 = 1000;

/// A stream's place among all and among its peer's.
struct Slot {
    peer: PeerId,
    per_peer: Arc<Mutex<HashMap<PeerId, usize>>>,
    _permit: OwnedSemaphorePermit,
    _open: Open,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut per_peer = self.per_peer.lock();
        if let Some(count) = per_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                per_peer.remove(&self.peer);
            }
        }
    }
}

/// Why a stream got no further than its open frame.
enum Refusal {
    /// Slow, gone or garbage: nothing to answer.
    Silent(Option<Offence>, &'static str),
    /// Refused in five bytes.
    Said(Rejection, Option<Offence>, &'static str),
}

impl Admission {
    pub(in crate::net) fn new(
        peer: PeerId,
        hotkey: Option<Arc<HotkeyPair>>,
        netuid: u16,
        limits: &Limits,
        queries: mpsc::Sender<InboundQuery>,
        complaints: Complaints,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            peer,
            hotkey,
            netuid,
            queries,
            complaints,
            metrics,
            replay: Mutex::default(),
            streams: Arc::new(Semaphore::new(limits.inbound_queries)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            per_peer: Arc::default(),
            most_per_peer: limits.inbound_queries_per_peer,
        }))
    }

    /// Query streams of others open now.
    pub(in crate::net) fn open_streams(&self) -> usize {
        self.0.per_peer.lock().values().sum()
    }

    /// Takes a stream off a connection. Never blocks: a full house is told so.
    pub(super) fn take(&self, peer: PeerId, stream: Stream) {
        let Some(slot) = self.slot(peer) else {
            return self.refuse_full(stream);
        };
        let inner = self.0.clone();
        tokio::spawn(async move {
            let mut frames = Frames::new(stream);
            match inner.admit(peer, &mut frames).await {
                Ok((open, hotkey)) => inner.hand_over(peer, frames, open, hotkey, slot).await,
                Err(refusal) => inner.refuse(peer, frames, refusal).await,
            }
        });
    }

    fn slot(&self, peer: PeerId) -> Option<Slot> {
        let inner = &self.0;
        {
            let mut per_peer = inner.per_peer.lock();
            let count = per_peer.entry(peer).or_default();
            if *count >= inner.most_per_peer {
                drop(per_peer);
                inner.complaints.add(peer, Offence::TooManyStreams);
                return None;
            }
            *count += 1;
        }
        // From here on the count goes down with the slot.
        let permit = inner.streams.clone().try_acquire_owned();
        match permit {
            Ok(permit) => Some(Slot {
                peer,
                per_peer: inner.per_peer.clone(),
                _permit: permit,
                _open: Open::new(&inner.metrics.inbound_streams),
            }),
            Err(_) => {
                let mut per_peer = inner.per_peer.lock();
                if let Some(count) = per_peer.get_mut(&peer) {
                    *count -= 1;
                    if *count == 0 {
                        per_peer.remove(&peer);
                    }
                }
                None
            }
        }
    }

    fn refuse_full(&self, stream: Stream) {
        self.0.metrics.received("full");
        let Ok(permit) = self.0.refusals.clone().try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            say_no(&mut Frames::new(stream), Rejection::busy(RETRY_MS)).await;
            drop(permit);
        });
    }
}

/// Sends a rejection and closes, within a time.
async fn say_no(frames: &mut Frames<Stream>, rejection: Rejection) {
    frames.push(FrameKind::Rejected, &rejection.to_bytes());
    let _ = tokio::time::timeout(limits::WRITE_IDLE, frames.close()).await;
}

impl Inner {
    /// Reads and verifies the open frame.
    async fn admit(
        &self,
        peer: PeerId,
        frames: &mut Frames<Stream>,
    ) -> Result<(VerifiedOpen, Arc<HotkeyPair>), Refusal> {
        let frame = tokio::time::timeout(limits::OPEN_FRAME, frames.frame()).await;
        let payload = match frame {
            Err(_) => return Err(Refusal::Silent(Some(Offence::SlowLoris), "slow_loris")),
            // Whoever closes before saying anything has changed its mind, no more.
            Ok(Err(FrameError::Ended)) => return Err(Refusal::Silent(None, "closed")),
            Ok(Err(error)) if error.is_oversized() => {
                return Err(refuse(Reason::Invalid, Offence::Oversized, "oversized"));
            }
            Ok(Err(FrameError::Truncated)) => {
                return Err(Refusal::Silent(Some(Offence::BadFrame), "truncated"));
            }
            Ok(Ok((FrameKind::Open, payload))) => payload,
            Ok(_) => return Err(refuse(Reason::Invalid, Offence::BadFrame, "bad_frame")),
        };
        let Some(hotkey) = self.hotkey.clone() else {
            let rejection = Rejection::new(Reason::Incapable);
            return Err(Refusal::Said(rejection, None, "no_hotkey"));
        };
        let signed = SignedOpen::from_bytes(&payload)
            .map_err(|_| refuse(Reason::Invalid, Offence::BadFrame, "bad_frame"))?;
        let open = signed
            .verify(&peer, &self.peer, &hotkey.hotkey(), unix_ms())
            .map_err(|error| refuse_open(&error))?;
        if open.netuid != self.netuid {
            let rejection = Rejection::new(Reason::Incapable);
            return Err(Refusal::Said(rejection, None, "other_netuid"));
        }
        if !self.replay.lock().admit(&peer, &open.id, Instant::now()) {
            return Err(refuse(Reason::Invalid, Offence::Replay, "replay"));
        }
        Ok((open, hotkey))
    }

    async fn hand_over(
        self: &Arc<Self>,
        peer: PeerId,
        frames: Frames<Stream>,
        open: VerifiedOpen,
        hotkey: Arc<HotkeyPair>,
        slot: Slot,
    ) {
        let deadline = Time::now() + Duration::from_millis(open.deadlines.total_ms.into());
        let query = InboundQuery {
            inner: self.clone(),
            frames,
            peer,
            open,
            hotkey,
            deadline,
            taken_at_ms: unix_ms(),
            _slot: slot,
        };
        if let Err(refused) = self.queries.try_send(query) {
            let (mpsc::error::TrySendError::Full(query) | mpsc::error::TrySendError::Closed(query)) = refused;
            self.metrics.dropped("inbound_query");
            query.reject(Rejection::busy(RETRY_MS)).await;
        }
    }

    async fn refuse(&self, peer: PeerId, mut frames: Frames<Stream>, refusal: Refusal) {
        let (rejection, offence, label) = match refusal {
            Refusal::Silent(offence, label) => (None, offence, label),
            Refusal::Said(rejection, offence, label) => (Some(rejection), offence, label),
        };
        self.metrics.received(label);
        if let Some(offence) = offence {
            self.complaints.add(peer, offence);
        }
        if let Some(rejection) = rejection {
            say_no(&mut frames, rejection).await;
        }
    }
}

fn refuse(reason: Reason, offence: Offence, label: &'static str) -> Refusal {
    Refusal::Said(Rejection::new(reason), Some(offence), label)
}

fn refuse_open(error: &OpenError) -> Refusal {
    match error {
        OpenError::Codec(_) => refuse(Reason::Invalid, Offence::BadFrame, "bad_frame"),
        OpenError::Signature(_) => refuse(Reason::Unauthorised, Offence::BadSignature, "bad_signature"),
        OpenError::Peer => refuse(Reason::Unauthorised, Offence::BadSignature, "other_connection"),
        OpenError::Body(_) => refuse(Reason::Invalid, Offence::Oversized, "oversized"),
        OpenError::Limits => refuse(Reason::Invalid, Offence::Oversized, "limits"),
        // A clock that is off, or a record that is out of date: honest mistakes.
        OpenError::Stale(_) => Refusal::Said(Rejection::new(Reason::Invalid), None, "stale"),
        OpenError::Miner => Refusal::Said(Rejection::new(Reason::Incapable), None, "other_miner"),
    }
}

/// A query whose open frame was verified: signature, peers, clock, limits, no replay. Its body has not
/// been read yet. Dropping it closes the stream without an answer.
pub struct InboundQuery {
    inner: Arc<Inner>,
    pub(super) frames: Frames<Stream>,
    peer: PeerId,
    pub(super) open: VerifiedOpen,
    pub(super) hotkey: Arc<HotkeyPair>,
    deadline: Time,
    taken_at_ms: u64,
    _slot: Slot,
}

impl InboundQuery {
    pub fn open(&self) -> &VerifiedOpen {
        &self.open
    }

    pub fn peer(&self) -> PeerId {
        self.peer
    }

    pub fn id(&self) -> QueryId {
        self.open.id
    }

    /// When the validator stops waiting.
    pub fn deadline(&self) -> Instant {
        self.deadline.into_std()
    }

    /// Says why not, in five bytes, and closes the stream.
    pub async fn reject(mut self, rejection: Rejection) {
        self.inner.metrics.received(rejection.reason.label());
        say_no(&mut self.frames, rejection).await;
    }

    /// Reads the body: bounded by what was announced, checked against the signed hash.
    pub async fn body(&mut self) -> Result<Bytes, StreamError> {
        let mut body = Body::announced(self.open.body_length, self.open.body_hash);
        loop {
            let until = self.until(limits::BODY_IDLE);
            match timeout_at(until, self.frames.body_part(&mut body)).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => return Ok(body.into_bytes()),
                Ok(Err(error)) => return Err(self.broken(&error)),
                Err(_) if Time::now() >= self.deadline => {
                    return Err(StreamError::TimedOut(Deadline::Total));
                }
                Err(_) => {
                    self.inner.complaints.add(self.peer, Offence::SlowLoris);
                    self.inner.metrics.received("slow_loris");
                    return Err(StreamError::TimedOut(Deadline::Idle));
                }
            }
        }
    }

    /// Tells the validator that the query was taken, with `queue_position` others before it.
    pub async fn accept(&mut self, queue_position: u32) -> Result<(), StreamError> {
        let accepted = codec::encode(&Accepted { queue_position });
        self.send(FrameKind::Accepted, &accepted).await
    }

    pub async fn progress(&mut self, step: u32, of: u32) -> Result<(), StreamError> {
        let progress = codec::encode(&Progress { step, of });
        self.send(FrameKind::Progress, &progress).await
    }

    /// Resolves when the validator went away: stop the work. Cancel-safe, to be raced with the work
    /// after the body was read.
    pub async fn closed(&mut self) {
        let error = self.frames.interrupted().await;
        if matches!(error, FrameError::TooLong) {
            // It is not the validator's turn to speak.
            let _ = self.broken(&error);
        }
    }

    /// Sends the answer and the receipt for it, signed by the node's hotkey.
    pub async fn finish(mut self, body: Bytes, compute_ms: u32) -> Result<SignedReceipt, StreamError> {
        let receipt = self.answer(body, compute_ms, None).await?;
        self.close().await?;
        self.inner.metrics.received("answered");
        Ok(receipt)
    }

    /// As [`Self::finish`], with a receipt that commits to the run's states: the validator may challenge it.
    pub async fn finish_committed(
        mut self,
        body: Bytes,
        compute_ms: u32,
        commitment: Commitment,
    ) -> Result<Committed, StreamError> {
        let receipt = self.answer(body, compute_ms, Some(commitment)).await?;
        self.flush().await?;
        self.inner.metrics.received("answered");
        Ok(Committed { query: self, receipt, commitment })
    }

    async fn answer(
        &mut self,
        body: Bytes,
        compute_ms: u32,
        trajectory: Option<Commitment>,
    ) -> Result<SignedReceipt, StreamError> {
        if body.is_empty() || body.len() > wire::BODY {
            self.inner.metrics.received("bad_answer");
            let length = body.len();
            say_no(&mut self.frames, Rejection::new(Reason::Failed)).await;
            return Err(StreamError::Size(length));
        }
        let header = ResultHeader {
            body_length: body.len() as u32,
            body_hash: *blake3::hash(&body).as_bytes(),
            compute_ms,
        };
        self.frames.push(FrameKind::Result, &codec::encode(&header));
        let mut sending = Sending::new(body);
        if !sending.is_small() {
            // The connection's task encrypts the first part while this one signs.
            self.send_part(&mut sending).await?;
        }
        let receipt = Receipt { trajectory, ..self.receipt(header.body_hash) };
        let receipt = SignedReceipt::sign(&receipt, &self.hotkey);
        while !self.send_part(&mut sending).await? {}
        self.frames.push(FrameKind::Receipt, &receipt.to_bytes());
        Ok(receipt)
    }

    /// Another time until which the validator waits.
    pub(super) fn extend_to(&mut self, deadline: Time) {
        self.deadline = deadline;
    }

    /// A receipt that commits to no trajectory.
    pub(super) fn receipt(&self, response_hash: [u8; 32]) -> Receipt {
        Receipt {
            id: self.open.id,
            netuid: self.open.netuid,
            validator: self.open.validator,
            miner: self.open.miner,
            task: self.open.task,
            model: self.open.model.clone(),
            request_hash: self.open.request_hash(),
            response_hash,
            accepted_at_ms: self.taken_at_ms,
            // Clocks may be set back meanwhile.
            finished_at_ms: unix_ms().max(self.taken_at_ms),
            trajectory: None,
        }
    }

    pub(super) async fn send_part(&mut self, sending: &mut Sending) -> Result<bool, StreamError> {
        let until = self.until(self.write_idle());
        match timeout_at(until, self.frames.send_part(sending)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(self.stuck()),
        }
    }

    async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), StreamError> {
        self.frames.push(kind, payload);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        let until = self.until(self.write_idle());
        let flushed = timeout_at(until, pin!(self.frames.flush())).await;
        self.written(flushed)
    }

    /// Sends what was pushed, and closes this side.
    pub(super) async fn close(&mut self) -> Result<(), StreamError> {
        let until = self.until(self.write_idle());
        let closed = timeout_at(until, pin!(self.frames.close())).await;
        self.written(closed)
    }

    fn written(&self, wrote: Result<Result<(), FrameError>, Elapsed>) -> Result<(), StreamError> {
        match wrote {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(self.stuck()),
        }
    }

    /// The sooner of the total deadline and `idle` from now.
    fn until(&self, idle: Duration) -> Time {
        self.deadline.min(Time::now() + idle)
    }

    fn write_idle(&self) -> Duration {
        limits::WRITE_IDLE.max(Duration::from_millis(self.open.deadlines.idle_ms.into()))
    }

    fn gone(&self) -> StreamError {
        self.inner.metrics.received("cancelled");
        StreamError::Closed
    }

    fn stuck(&self) -> StreamError {
        self.inner.metrics.received("timed_out");
        let total = Time::now() >= self.deadline;
        StreamError::TimedOut(if total { Deadline::Total } else { Deadline::Idle })
    }

    /// Counts what a validator did to its stream.
    pub(super) fn broken(&self, error: &FrameError) -> StreamError {
        let (offence, stream_error) = match error {
            FrameError::Ended => return self.gone(),
            FrameError::Hash => (Offence::WrongHash, StreamError::Hash),
            error if error.is_oversized() => (Offence::Oversized, StreamError::Protocol(error.to_string())),
            error => (Offence::BadFrame, StreamError::Protocol(error.to_string())),
        };
        self.inner.complaints.add(self.peer, offence);
        self.inner.metrics.received(offence.label());
        stream_error
    }
}
