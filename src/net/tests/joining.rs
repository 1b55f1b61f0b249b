//! Joining, and joining again with the bootstrap node gone.

use super::*;
use crate::net::{DhtMode, KnownPeer, Offence, PathKind};

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_rejoins_by_its_address_book() {
    let listen = "/ip4/127.0.0.1/tcp/0";
    let bootstrap = Recipe::new(listen).start().await;
    let miner = Recipe::new(listen).joins(&bootstrap).start().await;
    let persist = Arc::new(InMemory::default());
    let mut recipe = Recipe::new(listen).joins(&bootstrap);
    recipe.persist = persist.clone();
    let node = recipe.start().await;
    let identified = |snapshot: &Snapshot| {
        snapshot.peers.iter().any(|peer| peer.peer == miner.peer() && peer.agent.is_some())
    };
    node.until("it knows where the miner listens", identified).await;
    let bootstrap_address = bootstrap.dialable();
    node.stop().await;
    bootstrap.stop().await;
    let known: Vec<PeerId> = persist.peers().iter().map(|known| known.peer).collect();
    assert!(known.contains(&miner.peer()));

    // A hundred peers that are long gone, seen later than the miner.
    for port in 1..=100 {
        persist.put_peer(&KnownPeer {
            peer: PeerId::random(),
            addresses: vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()],
            seen_at_ms: unix_ms() + port,
        });
    }
    let mut recipe = Recipe::new(listen);
    recipe.settings.bootstrap = vec![bootstrap_address];
    recipe.persist = persist;
    let again = recipe.start().await;
    again.until_connected(&miner).await;
}

#[tokio::test]
async fn a_node_without_anybody_says_what_to_do() {
    let node = Recipe::memory().start().await;
    let snapshot = node.handle.snapshot().await.unwrap();
    assert!(snapshot.advice[0].contains("bootstrap"), "{:?}", snapshot.advice);
    assert_eq!(snapshot.dht.mode, DhtMode::Server);
    let json = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(json["peer"], node.peer().to_string());
}

#[tokio::test]
async fn reach_tells_the_way_to_a_peer() {
    let (miner, validator) = miner_and_validator("/memory/0").await;
    let record = miner.record(unix_ms()).await.verify(unix_ms()).unwrap();
    let way = validator.handle.reach(&record).await.unwrap();
    assert_eq!((way.peer, way.path), (miner.peer(), PathKind::Direct));
    assert!(way.rtt.is_some());
    let gone = Recipe::memory().start().await;
    let record = gone.record(unix_ms()).await.verify(unix_ms()).unwrap();
    gone.stop().await;
    let error = validator.handle.reach(&record).await.unwrap_err();
    assert_eq!(error.reason(), "unreachable");
}

#[tokio::test]
async fn addresses_and_peers_are_told() {
    let mut first = Recipe::memory().start().await;
    let told = loop {
        match tokio::time::timeout(PATIENCE, first.events.recv()).await.unwrap().unwrap() {
            Event::AddressesChanged(addresses) => break addresses,
            _ => continue,
        }
    };
    assert_eq!(told, first.handle.snapshot().await.unwrap().listen);
    let second = Recipe::memory().joins(&first).start().await;
    second.until_connected(&first).await;
    loop {
        match tokio::time::timeout(PATIENCE, first.events.recv()).await.unwrap().unwrap() {
            Event::PeerConnected(peer) => break assert_eq!(peer, second.peer()),
            _ => continue,
        }
    }
}

#[tokio::test]
async fn a_reported_peer_is_blocked_and_cannot_come_back() {
    let (miner, validator) = miner_and_validator("/memory/0").await;
    for _ in 0..5 {
        miner.handle.report(validator.peer(), Offence::Misconduct).await;
    }
    let gone = |snapshot: &Snapshot| snapshot.peers.is_empty() && snapshot.blocked == 1;
    miner.until("the peer is gone", gone).await;
    let record = miner.record(unix_ms()).await.verify(unix_ms()).unwrap();
    validator.until("disconnected", |snapshot| snapshot.peers.is_empty()).await;
    assert!(validator.handle.reach(&record).await.is_err());
}

#[tokio::test]
async fn lists_of_peers_hold() {
    let open = Recipe::memory().start().await;
    let mut recipe = Recipe::memory();
    recipe.settings.blocked_peers = vec![open.peer()];
    let closed = recipe.start().await;
    let record = closed.record(unix_ms()).await.verify(unix_ms()).unwrap();
    assert!(open.handle.reach(&record).await.is_err());

    let friend = Recipe::memory();
    let mut recipe = Recipe::memory();
    recipe.settings.allowed_peers = vec![friend.key.peer()];
    let private = recipe.start().await;
    let record = private.record(unix_ms()).await.verify(unix_ms()).unwrap();
    assert!(open.handle.reach(&record).await.is_err());
    let friend = friend.start().await;
    assert!(friend.handle.reach(&record).await.is_ok());
}

#[tokio::test]
async fn bad_settings_say_what_to_do() {
    let start = |settings: Settings| {
        start(
            settings,
            NodeKey::generate(),
            None,
            1,
            Arc::new(InMemory::default()),
            &mut Registry::default(),
            CancellationToken::new(),
        )
    };
    let without_peer =
        Settings { bootstrap: vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()], ..Settings::default() };
    let nowhere = Settings { announce: vec!["/ip4/0.0.0.0/tcp/1".parse().unwrap()], ..Settings::default() };
    for (settings, hint) in [(without_peer, "/p2p/"), (nowhere, "public address")] {
        let error = start(settings).err().unwrap();
        assert_eq!(error.reason(), "settings");
        assert!(error.to_string().contains(hint), "{error}");
    }
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = Settings {
        listen: vec![format!("/ip4/127.0.0.1/tcp/{}", busy.local_addr().unwrap().port()).parse().unwrap()],
        ..Settings::default()
    };
    assert_eq!(start(taken).err().unwrap().reason(), "listen");
}
