//! The handle through which everybody else uses the net, the commands it sends to the event loop, and the
//! events that come back.

use std::{sync::Arc, time::Instant};

use argus_protocols::{Hotkey, HotkeyPair, SignedRecord, VerifiedRecord};
use libp2p::{Multiaddr, PeerId};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Answered, AnsweredAndOpen, LookupError, NetError, Offence, OutgoingQuery, QueryError, QueryProgress,
    Reachability, Snapshot,
    directory::Directory,
    limits,
    stream::{AskError, Asker, Clock},
    unix_ms,
};

/// Something that happened. Events are dropped, and counted, when nobody takes them.
#[derive(Clone, Debug)]
pub enum Event {
    /// The addresses to put into this node's record, best first. The node signs a new record and
    /// publishes it.
    AddressesChanged(Vec<Multiaddr>),
    PeerConnected(PeerId),
    PeerDisconnected(PeerId),
    /// Whether at least one address is known to be reachable from outside.
    Reachable(bool),
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Other nodes that took it. 0: kept here, and put again as soon as there is somebody to take it.
    pub stored_on: usize,
}

/// What a handle asks of the event loop. Each is answered, at the latest when its time is over.
pub(super) enum Command {
    Publish(Box<VerifiedRecord>, oneshot::Sender<Result<Published, NetError>>),
    Lookup(Hotkey, oneshot::Sender<Result<VerifiedRecord, LookupError>>),
    Dial(PeerId, Vec<Multiaddr>, oneshot::Sender<Result<(), String>>),
    Reach(PeerId, oneshot::Sender<Option<Reachability>>),
    Report(PeerId, Offence),
    Snapshot(oneshot::Sender<Snapshot>),
}

pub(super) struct Inner {
    pub(super) peer: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) directory: Arc<Directory>,
    pub(super) asker: Asker,
}

/// Cheap to clone; all clones use the one event loop.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Inner>);

impl Handle {
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// Asks a miner. Dropping the future closes the stream, which cancels the work at the miner.
    pub async fn query(
        &self,
        query: OutgoingQuery,
        progress: impl FnMut(QueryProgress) + Send,
    ) -> Result<Answered, QueryError> {
        self.query_to_audit(query, progress).await.map(|(answered, _)| answered)
    }

    /// As [`Handle::query`]; where the receipt commits to a trajectory the stream stays open for a challenge.
    pub async fn query_to_audit(
        &self,
        query: OutgoingQuery,
        mut progress: impl FnMut(QueryProgress) + Send,
    ) -> Result<AnsweredAndOpen, QueryError> {
        let metrics = &self.0.asker.metrics;
        let result = self.attempt_twice(&query, &mut progress).await;
        match &result {
            Ok((answered, _)) => {
                metrics.sent("answered");
                metrics.query_seconds.observe(answered.total.as_secs_f64());
            }
            Err(error) => metrics.sent(error.label()),
        }
        result
    }

    /// When nobody is where the record says, the DHT may know better by now: one more attempt with a
    /// newer record. Nothing was sent by then, so that no work is done twice.
    async fn attempt_twice(
        &self,
        query: &OutgoingQuery,
        progress: &mut (impl FnMut(QueryProgress) + Send),
    ) -> Result<AnsweredAndOpen, QueryError> {
        let hotkey = self.0.asker.check(query)?;
        let mut clock = Clock::start(query.deadlines);
        let record = clock.wait(self.record_of(&query.miner)).await??;
        let error = match self.attempt(query, &hotkey, &record, &mut clock, progress).await {
            Ok(answered) => return Ok(answered),
            Err(AskError::Open(error)) => error,
            Err(error) => return Err(error.into()),
        };
        self.0.directory.doubt(&query.miner);
        let newer = clock.wait(self.lookup(&query.miner)).await??;
        if newer.sequence <= record.sequence {
            return Err(AskError::Open(error).into());
        }
        self.attempt(query, &hotkey, &newer, &mut clock, progress).await.map_err(Into::into)
    }

    /// The record to ask a miner by. One that is not fresh any more but whose peer is connected still
    /// serves, while the DHT is asked behind the query's back.
    async fn record_of(&self, miner: &Hotkey) -> Result<VerifiedRecord, LookupError> {
        let directory = &self.0.directory;
        if directory.fresh(miner, Instant::now(), unix_ms()).is_none()
            && let Some(record) = directory.known(miner, unix_ms())
            && self.0.asker.links.is_connected(&record.peer)
        {
            let (nobody, _) = oneshot::channel();
            if self.0.commands.try_send(Command::Lookup(*miner, nobody)).is_err() {
                self.0.asker.metrics.dropped("refresh");
            }
            return Ok(record);
        }
        self.lookup(miner).await
    }

    async fn attempt(
        &self,
        query: &OutgoingQuery,
        hotkey: &HotkeyPair,
        record: &VerifiedRecord,
        clock: &mut Clock,
        progress: &mut (impl FnMut(QueryProgress) + Send),
    ) -> Result<AnsweredAndOpen, AskError> {
        let asker = &self.0.asker;
        if !asker.links.is_connected(&record.peer) {
            clock.wait(self.connect(record)).await??;
        }
        let result = asker.ask(query, hotkey, record.peer, clock, progress).await;
        if let Err(error) = &result {
            asker.complain(record.peer, error);
        }
        result
    }

    async fn connect(&self, record: &VerifiedRecord) -> Result<(), AskError> {
        if record.peer == self.0.peer {
            return Err(QueryError::Invalid("the miner is this node itself".into()).into());
        }
        let (reply, dialled) = oneshot::channel();
        self.send(Command::Dial(record.peer, record.addresses.clone(), reply))
            .await
            .map_err(|error| QueryError::Unreachable(error.to_string()))?;
        match timeout(limits::DIAL_TIMEOUT, dialled).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(cause))) => Err(AskError::Open(super::stream::OpenError::Dial(cause))),
            Ok(Err(_)) => Err(QueryError::Unreachable(NetError::Closed.to_string()).into()),
            Err(_) => Err(AskError::Open(super::stream::OpenError::TimedOut)),
        }
    }

    /// Puts a record into the DHT, and again and again until another one replaces it.
    pub async fn publish(&self, record: SignedRecord) -> Result<Published, NetError> {
        let verified = record.verify(unix_ms()).map_err(|error| NetError::Record(error.to_string()))?;
        if verified.peer != self.0.peer {
            return Err(NetError::Record("it names another peer than this node".into()));
        }
        let (reply, published) = oneshot::channel();
        self.send(Command::Publish(Box::new(verified), reply)).await?;
        match timeout(limits::PUBLISH_TIMEOUT, published).await {
            Ok(answer) => answer.map_err(|_| NetError::Closed)?,
            Err(_) => Err(NetError::TimedOut(limits::PUBLISH_TIMEOUT)),
        }
    }

    /// The newest verified record of a hotkey: from the cache while fresh, else from the DHT.
    pub async fn lookup(&self, hotkey: &Hotkey) -> Result<VerifiedRecord, LookupError> {
        if let Some(record) = self.0.directory.fresh(hotkey, Instant::now(), unix_ms()) {
            return Ok(record);
        }
        let (reply, found) = oneshot::channel();
        self.send(Command::Lookup(*hotkey, reply)).await.map_err(|error| match error {
            NetError::Busy => LookupError::Busy,
            _ => LookupError::Closed,
        })?;
        // The loop has its own clock for this; the second one is for a loop that is stuck.
        match timeout(limits::LOOKUP_TIMEOUT + limits::COMMAND_TIMEOUT, found).await {
            Ok(answer) => answer.map_err(|_| LookupError::Closed)?,
            Err(_) => Err(LookupError::TimedOut(limits::LOOKUP_TIMEOUT)),
        }
    }

    /// Connects to the record's peer if need be, and measures the way to it.
    pub async fn reach(&self, record: &VerifiedRecord) -> Result<Reachability, NetError> {
        let peer = record.peer;
        if !self.0.asker.links.is_connected(&peer) {
            self.connect(record).await.map_err(|error| NetError::Unreachable {
                peer,
                cause: QueryError::from(error).to_string(),
            })?;
        }
        let (reply, reached) = oneshot::channel();
        self.send(Command::Reach(peer, reply)).await?;
        match timeout(limits::COMMAND_TIMEOUT, reached).await {
            Ok(Ok(Some(reachability))) => Ok(reachability),
            Ok(Ok(None)) => Err(NetError::Unreachable { peer, cause: "the connection ended".into() }),
            Ok(Err(_)) => Err(NetError::Closed),
            Err(_) => Err(NetError::TimedOut(limits::COMMAND_TIMEOUT)),
        }
    }

    /// Counts an offence; enough of them disconnect and block the peer for a time.
    pub async fn report(&self, peer: PeerId, offence: Offence) {
        self.0.asker.metrics.offence(offence.label());
        if self.send(Command::Report(peer, offence)).await.is_err() {
            self.0.asker.metrics.dropped("offence");
        }
    }

    pub async fn snapshot(&self) -> Result<Snapshot, NetError> {
        let (reply, snapshot) = oneshot::channel();
        self.send(Command::Snapshot(reply)).await?;
        match timeout(limits::COMMAND_TIMEOUT, snapshot).await {
            Ok(answer) => answer.map_err(|_| NetError::Closed),
            Err(_) => Err(NetError::TimedOut(limits::COMMAND_TIMEOUT)),
        }
    }

    async fn send(&self, command: Command) -> Result<(), NetError> {
        match timeout(limits::COMMAND_TIMEOUT, self.0.commands.send(command)).await {
            Ok(sent) => sent.map_err(|_| NetError::Closed),
            Err(_) => Err(NetError::Busy),
        }
    }
}
