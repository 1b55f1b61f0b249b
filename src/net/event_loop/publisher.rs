//! The own record: put into the DHT, and again until another one replaces it.

use std::time::{Duration, Instant};

use argus_protocols::VerifiedRecord;
use libp2p::kad::QueryId;
use tokio::sync::oneshot;

use crate::net::{NetError, Published, limits};

type Reply = oneshot::Sender<Result<Published, NetError>>;

struct Own {
    record: VerifiedRecord,
    reply: Option<Reply>,
    /// The put under way.
    putting: Option<QueryId>,
    next: Instant,
    stored_on: Option<usize>,
}

#[derive(Default)]
pub(super) struct Publisher(Option<Own>);

/// New peers are given this time to settle before the record is put on them.
const SETTLE: Duration = Duration::from_secs(1);

impl Publisher {
    /// Takes a record to publish; a caller waiting for an older one learns that it was replaced.
    pub(super) fn publish(&mut self, record: VerifiedRecord, reply: Reply, now: Instant) {
        if let Some(own) = &mut self.0 {
            if own.record.sequence > record.sequence {
                let text = "a newer one was published before";
                let _ = reply.send(Err(NetError::Record(text.into())));
                return;
            }
            if let Some(waiting) = own.reply.take() {
                let text = "a newer one took its place";
                let _ = waiting.send(Err(NetError::Record(text.into())));
            }
        }
        self.0 = Some(Own { record, reply: Some(reply), putting: None, next: now, stored_on: None });
    }

    /// The record to put now.
    pub(super) fn due(&self, now: Instant, now_ms: u64) -> Option<&VerifiedRecord> {
        let own = self.0.as_ref()?;
        let due = own.putting.is_none() && own.next <= now && own.record.expires_at_ms > now_ms;
        due.then_some(&own.record)
    }

    pub(super) fn putting(&mut self, id: QueryId, now: Instant) {
        if let Some(own) = &mut self.0 {
            own.putting = Some(id);
            own.next = now + limits::REPUBLISH;
        }
    }

    /// The put could not even begin.
    pub(super) fn failed(&mut self, error: NetError, now: Instant) {
        if let Some(own) = &mut self.0 {
            own.next = now + limits::REPUBLISH;
            if let Some(reply) = own.reply.take() {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// A put ended on so many other nodes.
    pub(super) fn put(&mut self, id: &QueryId, stored_on: usize, now: Instant) {
        let Some(own) = &mut self.0 else { return };
        if own.putting != Some(*id) {
            return;
        }
        own.putting = None;
        own.stored_on = Some(stored_on);
        if stored_on == 0 {
            own.next = now + limits::REPUBLISH_SOON;
        }
        if let Some(reply) = own.reply.take() {
            let _ = reply.send(Ok(Published { stored_on }));
        }
    }

    /// There is a new node that may take the record.
    pub(super) fn new_peer(&mut self, now: Instant) {
        if let Some(own) = &mut self.0 {
            own.next = own.next.min(now + SETTLE);
        }
    }

    pub(super) fn stored_on(&self) -> Option<usize> {
        self.0.as_ref()?.stored_on
    }
}
