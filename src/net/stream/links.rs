//! Query streams as a libp2p behaviour: which connections there are, and how streams are got from them.
//!
//! An asker's request goes straight to the connection's own task, not through the event loop: the loop
//! only learns of connections. Any number of streams negotiate at once (libp2p-stream: one), and none is
//! dropped because somebody was slow to accept it; over the limits it is refused with a reason.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use argus_protocols::query::PROTOCOL;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::answer::Admission;
use crate::net::{PathKind, limits};

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(in crate::net) enum OpenError {
    #[error("there is no connection")]
    NotConnected,
    #[error("none of its addresses answers ({0})")]
    Dial(String),
    #[error("the peer does not answer queries")]
    Unsupported,
    #[error("the connection ended")]
    ConnectionLost,
    #[error("the peer did not take the stream in time")]
    TimedOut,
}

/// A stream, and the permit that it counts against its connection's limit.
pub(super) struct OpenedStream {
    pub(super) stream: Stream,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Who waits for a stream.
pub struct Reply(oneshot::Sender<Result<Stream, OpenError>>);

/// One connection, as askers see it.
#[derive(Clone)]
struct Link {
    id: ConnectionId,
    path: PathKind,
    requests: mpsc::Sender<Reply>,
    permits: Arc<Semaphore>,
}

/// The connections of all peers. Shared by the behaviour, which keeps it, and all askers.
#[derive(Clone, Default)]
pub(in crate::net) struct Links(Arc<RwLock<HashMap<PeerId, Vec<Link>>>>);

impl Links {
    pub(in crate::net) fn is_connected(&self, peer: &PeerId) -> bool {
        self.0.read().contains_key(peer)
    }

    /// Asks the best connection with this peer for a stream. The request is on its way when this
    /// returns; the future waits for the stream.
    pub(super) fn request(
        &self,
        peer: &PeerId,
    ) -> Result<impl Future<Output = Result<OpenedStream, OpenError>> + use<>, OpenError> {
        let link = {
            let links = self.0.read();
            let of_peer = links.get(peer).ok_or(OpenError::NotConnected)?;
            // Direct before relayed; of two direct ones the younger, which hole punching or a
            // reconnect made.
            of_peer
                .iter()
                .max_by_key(|link| link.path == PathKind::Direct)
                .ok_or(OpenError::NotConnected)?
                .clone()
        };
        let (sender, stream) = oneshot::channel();
        let reply = Reply(sender);
        // The usual case is decided here and now, so that the connection's task opens the stream while
        // the asker signs; a connection with all its streams in use is waited for.
        let at_once = match link.permits.clone().try_acquire_owned() {
            Ok(permit) => match link.requests.try_send(reply) {
                Ok(()) => Ok(permit),
                Err(mpsc::error::TrySendError::Full(reply)) => Err(reply),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(OpenError::ConnectionLost),
            },
            Err(_) => Err(reply),
        };
        Ok(async move {
            let permit = match at_once {
                Ok(permit) => permit,
                Err(reply) => {
                    let permit = link.permits.acquire_owned().await.map_err(|_| OpenError::ConnectionLost)?;
                    link.requests.send(reply).await.map_err(|_| OpenError::ConnectionLost)?;
                    permit
                }
            };
            let stream = stream.await.map_err(|_| OpenError::ConnectionLost)??;
            Ok(OpenedStream { stream, permit })
        })
    }
}

/// The behaviour: keeps [`Links`] and gives each connection its handler.
pub(in crate::net) struct Behaviour {
    links: Links,
    admission: Admission,
    /// Handlers made for connections that the other behaviours may still refuse.
    unconfirmed: HashMap<ConnectionId, Link>,
}

impl Behaviour {
    pub(in crate::net) fn new(links: Links, admission: Admission) -> Self {
        Self { links, admission, unconfirmed: HashMap::new() }
    }

    fn handler(&mut self, peer: PeerId, id: ConnectionId, path: PathKind) -> Handler {
        let (requests, incoming) = mpsc::channel(limits::STREAMS_OUT);
        let link = Link { id, path, requests, permits: Arc::new(Semaphore::new(limits::STREAMS_OUT)) };
        self.unconfirmed.insert(id, link);
        Handler { peer, incoming, admission: self.admission.clone() }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local_addr: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, id, PathKind::of(local_addr)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, id, PathKind::of(addr)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                if let Some(link) = self.unconfirmed.remove(&established.connection_id) {
                    let mut links = self.links.0.write();
                    links.entry(established.peer_id).or_default().push(link);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                let mut links = self.links.0.write();
                if let Some(of_peer) = links.get_mut(&closed.peer_id) {
                    of_peer.retain(|link| link.id != closed.connection_id);
                    if of_peer.is_empty() {
                        links.remove(&closed.peer_id);
                    }
                }
            }
            FromSwarm::ListenFailure(failure) => {
                self.unconfirmed.remove(&failure.connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.unconfirmed.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// One connection's side of it.
pub struct Handler {
    peer: PeerId,
    incoming: mpsc::Receiver<Reply>,
    admission: Admission,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(StreamProtocol::new(PROTOCOL)), ())
            .with_timeout(limits::NEGOTIATION)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Reply, Self::ToBehaviour>> {
        while let Poll::Ready(Some(reply)) = self.incoming.poll_recv(cx) {
            if reply.0.is_closed() {
                // Nobody waits for it any more.
                continue;
            }
            let upgrade = ReadyUpgrade::new(StreamProtocol::new(PROTOCOL));
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(upgrade, reply).with_timeout(limits::STREAM_BEGINS),
            });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Reply>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                self.admission.take(self.peer, stream)
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: reply,
            }) => {
                // An asker that went away drops the stream, which resets it.
                let _ = reply.0.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::TimedOut,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Apply(never) => match never {},
                    StreamUpgradeError::Io(_) => OpenError::ConnectionLost,
                };
                let _ = reply.0.send(Err(error));
            }
            _ => {}
        }
    }
}
