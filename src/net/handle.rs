//! The handle through which everybody else uses the net, and the events it gives.

use std::sync::Arc;

use argus_protocols::{Hotkey, HotkeyPair, SignedRecord, VerifiedRecord};
use libp2p::{Multiaddr, PeerId};
use prometheus_client::registry::Registry;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Answered, InboundQuery, LookupError, NetError, NodeKey, Offence, OutgoingQuery, Persist,
    QueryError, QueryProgress, Reachability, Settings, Snapshot,
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

/// A running net.
pub struct Net {
    pub handle: Handle,
    pub events: mpsc::Receiver<Event>,
    /// Queries that passed every check of the net. Not taking them answers `busy` to the askers.
    pub queries: mpsc::Receiver<InboundQuery>,
    pub task: JoinHandle<Result<(), NetError>>,
}

/// Starts the net; must be called within a tokio runtime. Without a hotkey (a relay) queries are neither
/// sent nor answered.
pub fn start(
    _settings: Settings,
    _node_key: NodeKey,
    _hotkey: Option<Arc<HotkeyPair>>,
    _netuid: u16,
    _persist: Arc<dyn Persist>,
    _registry: &mut Registry,
    _shutdown: CancellationToken,
) -> Result<Net, NetError> {
    todo!()
}

/// Cheap to clone; all clones use the one event loop.
#[derive(Clone)]
pub struct Handle {}

impl Handle {
    pub fn peer(&self) -> PeerId {
        todo!()
    }
    /// Asks a miner. Dropping the future closes the stream, which cancels the work at the miner.
    pub async fn query(
        &self,
        _query: OutgoingQuery,
        _progress: impl FnMut(QueryProgress) + Send,
    ) -> Result<Answered, QueryError> {
        todo!()
    }
    /// Puts a record into the DHT, and again and again until another one replaces it.
    pub async fn publish(&self, _record: SignedRecord) -> Result<Published, NetError> {
        todo!()
    }
    /// The newest verified record of a hotkey: from the cache while fresh, else from the DHT.
    pub async fn lookup(&self, _hotkey: &Hotkey) -> Result<VerifiedRecord, LookupError> {
        todo!()
    }
    /// Connects to the record's peer if need be, and measures the way to it.
    pub async fn reach(&self, _record: &VerifiedRecord) -> Result<Reachability, NetError> {
        todo!()
    }
    /// Counts an offence; enough of them disconnect and block the peer for a time.
    pub async fn report(&self, _peer: PeerId, _offence: Offence) {
        todo!()
    }
    pub async fn snapshot(&self) -> Result<Snapshot, NetError> {
        todo!()
    }
}
