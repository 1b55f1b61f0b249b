//! The miner's side of a query.

use argus_protocols::{Rejection, SignedReceipt, VerifiedOpen};
use bytes::Bytes;
use libp2p::PeerId;

use crate::net::StreamError;

/// A query whose open frame was verified: signature, peers, clock, limits, no replay. Its body has not
/// been read yet. Dropping it closes the stream without an answer.
pub struct InboundQuery {}

impl InboundQuery {
    pub fn open(&self) -> &VerifiedOpen {
        todo!()
    }
    pub fn peer(&self) -> PeerId {
        todo!()
    }
    /// Says why not, in five bytes, and closes the stream.
    pub async fn reject(self, _rejection: Rejection) {
        todo!()
    }
    /// Reads the body: bounded by what was announced, checked against the signed hash.
    pub async fn body(&mut self) -> Result<Bytes, StreamError> {
        todo!()
    }
    pub async fn accept(&mut self, _queue_position: u32) -> Result<(), StreamError> {
        todo!()
    }
    pub async fn progress(&mut self, _step: u32, _of: u32) -> Result<(), StreamError> {
        todo!()
    }
    /// Resolves when the validator went away: stop the work. Cancel-safe, to be raced with the work
    /// after the body was read.
    pub async fn closed(&mut self) {
        todo!()
    }
    /// Sends the answer and the receipt for it, signed by the node's hotkey.
    pub async fn finish(
        self,
        _body: Bytes,
        _compute_ms: u32,
    ) -> Result<SignedReceipt, StreamError> {
        todo!()
    }
}
