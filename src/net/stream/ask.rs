//! The validator's side of a query: one stream, three deadlines, nothing believed before it is checked.
//!
//! The order of work keeps signatures off the waiting: the connection opens the stream while this task
//! hashes and signs, the request's body is hashed once, the answer's as it comes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use argus_protocols::{
    Hotkey, HotkeyPair, Open, QueryId, Rejection, ResultHeader, SignedOpen, SignedReceipt, TaskKind,
    VerifiedReceipt,
    codec::FrameKind,
    limits as wire,
    query::{Accepted, Deadlines, Progress},
};
use bytes::Bytes;
use libp2p::{PeerId, Stream};
use tokio::time::{Instant as Time, timeout_at};

use super::{
    Answered, AnsweredAndOpen, Auditor, OutgoingQuery, QueryProgress,
    frames::{Body, FrameError, Frames, Sending},
    links::{Links, OpenError},
};
use crate::net::{
    Deadline, Offence, QueryError,
    metrics::{Metrics, Open as OpenGauge},
    penalties::Complaints,
    unix_ms,
};

/// What every query of this node needs.
pub(in crate::net) struct Asker {
    pub(in crate::net) peer: PeerId,
    pub(in crate::net) hotkey: Option<Arc<HotkeyPair>>,
    pub(in crate::net) netuid: u16,
    pub(in crate::net) links: Links,
    pub(in crate::net) complaints: Complaints,
    pub(in crate::net) metrics: Metrics,
}

/// When each deadline of one query passes.
pub(in crate::net) struct Clock {
    begun: Instant,
    deadlines: Deadlines,
    first_byte: Option<Instant>,
    /// Start of the present wait.
    since: Instant,
}

impl Clock {
    pub(in crate::net) fn start(deadlines: Deadlines) -> Self {
        let begun = Instant::now();
        Self { begun, deadlines, first_byte: None, since: begun }
    }

    /// The next deadline, and which one it is.
    pub(in crate::net) fn next(&self) -> (Time, Deadline) {
        let after = |from: Instant, ms: u32| from + Duration::from_millis(ms.into());
        let total = after(self.begun, self.deadlines.total_ms);
        let (nearer, which) = match self.first_byte {
            None => (after(self.begun, self.deadlines.first_byte_ms), Deadline::FirstByte),
            Some(_) => (after(self.since, self.deadlines.idle_ms), Deadline::Idle),
        };
        if nearer < total { (nearer.into(), which) } else { (total.into(), Deadline::Total) }
    }

    /// The miner sent something.
    fn heard(&mut self) {
        self.since = Instant::now();
        self.first_byte.get_or_insert(self.since);
    }

    /// The connection took some of the request.
    fn sent(&mut self) {
        self.since = Instant::now();
    }

    /// Runs a step of the query under the next deadline.
    pub(in crate::net) async fn wait<T>(&self, step: impl Future<Output = T>) -> Result<T, QueryError> {
        let (until, which) = self.next();
        timeout_at(until, step).await.map_err(|_| QueryError::TimedOut(which))
    }
}

impl Asker {
    /// Checks what would be refused anyway.
    pub(in crate::net) fn check(&self, query: &OutgoingQuery) -> Result<Arc<HotkeyPair>, QueryError> {
        let invalid = |text: String| Err(QueryError::Invalid(text));
        if query.body.len() > wire::BODY {
            return invalid(format!("the body has {} bytes, the limit is {}", query.body.len(), wire::BODY));
        }
        match &self.hotkey {
            Some(hotkey) => Ok(hotkey.clone()),
            None => invalid("this node has no hotkey; configure a wallet".into()),
        }
    }

    /// One query on a connection that is there. `miner_peer` is the peer that the miner's record names.
    pub(in crate::net) async fn ask(
        &self,
        query: &OutgoingQuery,
        hotkey: &HotkeyPair,
        miner_peer: PeerId,
        clock: &mut Clock,
        mut progress: impl FnMut(QueryProgress) + Send,
    ) -> Result<AnsweredAndOpen, AskError> {
        let stream = self.links.request(&miner_peer)?;
        let gauge = OpenGauge::new(&self.metrics.outbound_streams);
        let open = self.open(query, hotkey.hotkey(), miner_peer);
        open.check().map_err(|error| QueryError::Invalid(error.to_string()))?;
        let signed = SignedOpen::sign(&open, hotkey);
        let request_hash = signed.request_hash();
        let opened = clock.wait(stream).await??;
        // Held until the stream is gone, as is the gauge.
        let permit = opened.permit;
        let mut exchange = Exchange { frames: Frames::new(opened.stream), clock };
        exchange.frames.push(FrameKind::Open, &signed.to_bytes());
        let early = exchange.send_body(&query.body).await?;
        let header = exchange.header(early, &mut progress).await?;
        let body = exchange.body(header.body_length, header.body_hash).await?;
        let receipt = exchange.receipt(&open, request_hash, header.body_hash).await?;
        let begun = exchange.clock.begun;
        let first_byte = exchange.clock.first_byte.unwrap_or(begun) - begun;
        let frames = exchange.frames;
        let auditor = receipt.trajectory.map(|_| Auditor {
            frames,
            peer: miner_peer,
            complaints: self.complaints.clone(),
            _permit: permit,
            _open: gauge,
        });
        let answered =
            Answered { body, receipt, header, first_byte, total: begun.elapsed(), peer: miner_peer };
        Ok((answered, auditor))
    }

    fn open(&self, query: &OutgoingQuery, validator: Hotkey, miner_peer: PeerId) -> Open {
        Open {
            id: QueryId(rand::random()),
            netuid: self.netuid,
            validator,
            miner: query.miner,
            validator_peer: self.peer.to_bytes(),
            miner_peer: miner_peer.to_bytes(),
            issued_at_ms: unix_ms(),
            deadlines: query.deadlines,
            task: TaskKind::code(query.task),
            model: query.model.clone(),
            body_length: query.body.len() as u32,
            body_hash: *blake3::hash(&query.body).as_bytes(),
        }
    }

    /// Counts a miner's offence, when it is one.
    pub(in crate::net) fn complain(&self, miner_peer: PeerId, error: &AskError) {
        if let AskError::Broken(_, offence) = error {
            self.complaints.add(miner_peer, *offence);
        }
    }
}

/// Why one attempt failed.
#[derive(Debug)]
pub(in crate::net) enum AskError {
    /// No stream: another address may help.
    Open(OpenError),
    /// The miner broke the protocol.
    Broken(String, Offence),
    Query(QueryError),
}

impl From<OpenError> for AskError {
    fn from(error: OpenError) -> Self {
        AskError::Open(error)
    }
}

impl From<QueryError> for AskError {
    fn from(error: QueryError) -> Self {
        AskError::Query(error)
    }
}

impl From<FrameError> for AskError {
    fn from(error: FrameError) -> Self {
        match &error {
            // Connections end; that is nobody's offence.
            FrameError::Ended | FrameError::Truncated => AskError::Query(QueryError::Closed),
            FrameError::Hash => AskError::Broken(error.to_string(), Offence::WrongHash),
            error if error.is_oversized() => AskError::Broken(error.to_string(), Offence::Oversized),
            error => AskError::Broken(error.to_string(), Offence::BadFrame),
        }
    }
}

impl From<AskError> for QueryError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Open(error) => QueryError::Unreachable(error.to_string()),
            AskError::Broken(text, _) => QueryError::Protocol(text),
            AskError::Query(error) => error,
        }
    }
}

type Frame = (FrameKind, Bytes);

/// One stream with its deadlines, from the open frame on.
pub(super) struct Exchange<'a> {
    pub(super) frames: Frames<Stream>,
    pub(super) clock: &'a mut Clock,
}

impl Exchange<'_> {
    /// Sends the open frame and the body. The miner may answer before it has all of it, to refuse.
    async fn send_body(&mut self, body: &Bytes) -> Result<Option<Frame>, AskError> {
        let mut sending = Sending::new(body.clone());
        if sending.is_small() {
            self.clock.wait(self.frames.send_part(&mut sending)).await??;
        }
        while sending.left() > 0 {
            let before = sending.sent();
            let step = self.frames.send_part_or_frame(&mut sending);
            match self.clock.wait(step).await?? {
                Ok(_) if sending.sent() > before => self.clock.sent(),
                Ok(_) => {}
                Err(frame) => {
                    self.clock.heard();
                    // Accepted is welcome early; all else ends the sending.
                    if frame.0 != FrameKind::Accepted {
                        return Ok(Some(frame));
                    }
                    while !self.clock.wait(self.frames.send_part(&mut sending)).await?? {
                        self.clock.sent();
                    }
                    self.clock.wait(self.frames.flush()).await??;
                    return Ok(Some(frame));
                }
            }
        }
        self.clock.wait(self.frames.flush()).await??;
        Ok(None)
    }

    pub(super) async fn frame(&mut self) -> Result<Frame, AskError> {
        let frame = self.clock.wait(self.frames.frame()).await??;
        self.clock.heard();
        Ok(frame)
    }

    /// Everything up to the announcement of the result.
    async fn header(
        &mut self,
        mut early: Option<Frame>,
        progress: &mut (impl FnMut(QueryProgress) + Send),
    ) -> Result<ResultHeader, AskError> {
        let bad = |what: &str| AskError::Broken(format!("undecodable {what}"), Offence::BadFrame);
        loop {
            let (kind, payload) = match early.take() {
                Some(frame) => frame,
                None => self.frame().await?,
            };
            match kind {
                FrameKind::Accepted => {
                    let accepted = Accepted::decode(&payload).map_err(|_| bad("acceptance"))?;
                    progress(QueryProgress::Accepted { queue_position: accepted.queue_position });
                }
                FrameKind::Progress => {
                    let step = Progress::decode(&payload).map_err(|_| bad("progress"))?;
                    progress(QueryProgress::Step { step: step.step, of: step.of });
                }
                FrameKind::Rejected => {
                    let rejection = Rejection::from_bytes(&payload).map_err(|_| bad("rejection"))?;
                    return Err(QueryError::Rejected(rejection).into());
                }
                FrameKind::Result => {
                    return ResultHeader::decode(&payload).map_err(|_| bad("result header"));
                }
                FrameKind::Open
                | FrameKind::Chunk
                | FrameKind::Receipt
                | FrameKind::Challenge
                | FrameKind::Opening => {
                    return Err(FrameError::Unexpected(kind).into());
                }
            }
        }
    }

    pub(super) async fn body(&mut self, length: u32, hash: [u8; 32]) -> Result<Bytes, AskError> {
        let mut body = Body::announced(length, hash);
        while !self.clock.wait(self.frames.body_part(&mut body)).await?? {
            self.clock.heard();
        }
        Ok(body.into_bytes())
    }

    async fn receipt(
        &mut self,
        open: &Open,
        request_hash: [u8; 32],
        response_hash: [u8; 32],
    ) -> Result<VerifiedReceipt, AskError> {
        let (kind, payload) = self.frame().await?;
        if kind != FrameKind::Receipt {
            return Err(FrameError::Unexpected(kind).into());
        }
        SignedReceipt::from_bytes(&payload)
            .map_err(|error| error.to_string())
            .and_then(|signed| {
                signed.verify(open, request_hash, response_hash).map_err(|error| error.to_string())
            })
            .map_err(|text| {
                AskError::Broken(format!("the receipt does not hold: {text}"), Offence::BadReceipt)
            })
    }
}
