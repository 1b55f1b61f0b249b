//! The yardstick: libp2p's stock TCP, Noise and Yamux, one stream a call, the same bytes there and back,
//! and nothing else.

use std::{
    collections::VecDeque,
    convert::Infallible,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    multiaddr::Protocol,
    noise,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
    tcp, yamux,
};
use tokio::sync::{mpsc, oneshot};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bare/1");

type Reply = oneshot::Sender<Stream>;

#[derive(Default)]
struct Bare {
    requests: Option<mpsc::Receiver<Reply>>,
}

struct Handler {
    requests: Option<mpsc::Receiver<Reply>>,
    waiting: VecDeque<Reply>,
    waker: Option<Waker>,
}

impl Bare {
    fn handler(&mut self) -> Handler {
        Handler { requests: self.requests.take(), waiting: VecDeque::new(), waker: None }
    }
}

impl NetworkBehaviour for Bare {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Infallible>> {
        self.waker = Some(cx.waker().clone());
        if let Some(requests) = &mut self.requests
            && let Poll::Ready(Some(reply)) = requests.poll_recv(cx)
        {
            self.waiting.push_back(reply);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ()),
            });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                tokio::spawn(answer(stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream, ..
            }) => {
                if let Some(reply) = self.waiting.pop_front() {
                    let _ = reply.send(stream);
                }
            }
            _ => {}
        }
    }
}

/// Reads a length and so many bytes, and sends them back.
async fn answer(mut stream: Stream) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).await?;
    stream.write_all(&length).await?;
    stream.write_all(&body).await?;
    stream.close().await
}

fn swarm(requests: Option<mpsc::Receiver<Reply>>) -> Swarm<Bare> {
    libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|_| Bare { requests })
        .expect("a behaviour")
        .with_swarm_config(|config| {
            config.with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        })
        .build()
}

pub async fn serve() {
    let mut swarm = swarm(None);
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("listening");
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            let peer = *swarm.local_peer_id();
            super::announce(&address.with(Protocol::P2p(peer)).to_string());
        }
    }
}

#[derive(Clone)]
pub struct Client(mpsc::Sender<Reply>);

impl Client {
    pub async fn connect(line: &str) -> Self {
        let (sender, requests) = mpsc::channel(64);
        let mut swarm = swarm(Some(requests));
        let address: Multiaddr = line.trim().parse().expect("an address");
        swarm.dial(address).expect("a dial");
        while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self(sender)
    }

    pub async fn echo(&self, body: Bytes) {
        let (reply, stream) = oneshot::channel();
        self.0.send(reply).await.expect("a connection");
        let mut stream = stream.await.expect("a stream");
        let exchange = async {
            stream.write_all(&(body.len() as u32).to_be_bytes()).await?;
            stream.write_all(&body).await?;
            stream.flush().await?;
            let mut back = vec![0; 4 + body.len()];
            stream.read_exact(&mut back).await?;
            stream.close().await?;
            Ok::<_, std::io::Error>(back)
        };
        let back = exchange.await.expect("an echo");
        assert_eq!(back.len(), 4 + body.len());
    }
}
