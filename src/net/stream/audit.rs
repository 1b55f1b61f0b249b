//! What may follow a receipt: a challenge to open states of the run that it commits to, and the opening.
//!
//! It happens on the query's own stream, so that nobody but the validator that got the answer can ask, only
//! once, and only for as long as the miner waits: a few seconds in which it keeps the run's states. A
//! validator that wants nothing closes the stream, and the miner is free at once.

use std::time::Duration;

use argus_protocols::{
    Challenge, Commitment, Opening, Reason, Rejection, SignedReceipt,
    codec::{self, FrameKind},
    limits as wire,
    query::Deadlines,
    trajectory::OpeningHeader,
};
use bytes::Bytes;
use libp2p::{PeerId, Stream};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant as Time, timeout_at},
};

use super::{
    answer::InboundQuery,
    ask::{AskError, Clock, Exchange},
    frames::{FrameError, Frames, Sending},
};
use crate::net::{Offence, QueryError, StreamError, metrics::Open as OpenGauge, penalties::Complaints};

pub(super) const CHALLENGE: Duration = Duration::from_millis(wire::CHALLENGE_MS as u64);
const OPENING: Duration = Duration::from_millis(wire::OPENING_MS as u64);

/// The validator's end of a stream whose miner waits to be challenged. Dropping it lets the miner go.
pub struct Auditor {
    pub(super) frames: Frames<Stream>,
    pub(super) peer: PeerId,
    pub(super) complaints: Complaints,
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _open: OpenGauge,
}

impl Auditor {
    /// Asks for states and waits for them. Whether they are those that the receipt commits to is for the
    /// caller to check ([`Opening::verify`]).
    pub async fn challenge(self, challenge: &Challenge) -> Result<Opening, QueryError> {
        let Self { frames, peer, complaints, _permit, _open } = self;
        let ms = wire::OPENING_MS;
        let mut clock = Clock::start(Deadlines { first_byte_ms: ms, idle_ms: ms, total_ms: ms });
        let result = Exchange { frames, clock: &mut clock }.opening(challenge).await;
        if let Err(AskError::Broken(_, offence)) = &result {
            complaints.add(peer, *offence);
        }
        result.map_err(QueryError::from)
    }
}

impl Exchange<'_> {
    async fn opening(mut self, challenge: &Challenge) -> Result<Opening, AskError> {
        let bad = |what: &str| AskError::Broken(format!("undecodable {what}"), Offence::BadFrame);
        self.frames.push(FrameKind::Challenge, &codec::encode(challenge));
        self.clock.wait(self.frames.flush()).await??;
        let (kind, payload) = self.frame().await?;
        let header = match kind {
            FrameKind::Opening => OpeningHeader::decode(&payload).map_err(|_| bad("opening"))?,
            FrameKind::Rejected => {
                let rejection = Rejection::from_bytes(&payload).map_err(|_| bad("rejection"))?;
                return Err(QueryError::Rejected(rejection).into());
            }
            kind => return Err(FrameError::Unexpected(kind).into()),
        };
        let body = self.body(header.body_length, header.body_hash).await?;
        Opening::from_bytes(&body).map_err(|_| bad("opening"))
    }
}

/// A query that was answered with a commitment: the miner's end, on which a challenge may come.
pub struct Committed {
    pub(super) query: InboundQuery,
    pub(super) receipt: SignedReceipt,
    pub(super) commitment: Commitment,
}

impl Committed {
    pub fn receipt(&self) -> &SignedReceipt {
        &self.receipt
    }

    /// The states that the validator wants to see; `None` when it wants none, or does not say so in time.
    /// What is no challenge to this commitment is refused and counts against the peer.
    pub async fn challenge(mut self) -> Result<Option<(Challenge, Self)>, StreamError> {
        let frame = timeout_at(Time::now() + CHALLENGE, self.query.frames.frame()).await;
        let payload = match frame {
            Err(_) | Ok(Err(FrameError::Ended)) => return Ok(None),
            Ok(Ok((FrameKind::Challenge, payload))) => payload,
            Ok(Ok((kind, _))) => return Err(self.query.broken(&FrameError::Unexpected(kind))),
            Ok(Err(error)) => return Err(self.query.broken(&error)),
        };
        let refused = match Challenge::decode(&payload) {
            Ok(challenge) if challenge.states.iter().all(|state| *state < self.commitment.states) => {
                self.query.extend_to(Time::now() + OPENING);
                return Ok(Some((challenge, self)));
            }
            Ok(_) => self.query.broken(&FrameError::TooLong),
            Err(error) => self.query.broken(&FrameError::Codec(error)),
        };
        self.query.reject(Rejection::new(Reason::Invalid)).await;
        Err(refused)
    }

    /// Sends what was asked for: an encoded [`Opening`], one time, and closes.
    pub async fn open(mut self, body: Bytes) -> Result<(), StreamError> {
        if body.is_empty() || body.len() > wire::BODY {
            let length = body.len();
            self.query.reject(Rejection::new(Reason::Failed)).await;
            return Err(StreamError::Size(length));
        }
        let header =
            OpeningHeader { body_length: body.len() as u32, body_hash: *blake3::hash(&body).as_bytes() };
        self.query.frames.push(FrameKind::Opening, &codec::encode(&header));
        let mut sending = Sending::new(body);
        while !self.query.send_part(&mut sending).await? {}
        self.query.close().await
    }

    /// Says why not, in five bytes, and closes.
    pub async fn refuse(self, rejection: Rejection) {
        self.query.reject(rejection).await;
    }
}
