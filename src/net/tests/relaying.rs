//! A miner that cannot be reached directly, found and asked through a relay.

use super::*;
use crate::net::{AddressStatus, PathKind};

#[tokio::test(flavor = "multi_thread")]
async fn a_query_goes_through_a_relay() {
    let mut recipe = Recipe::new("/ip4/127.0.0.1/tcp/0");
    recipe.settings.relay_server = true;
    let relay = recipe.start().await;

    // Listens nowhere: only a reservation makes it reachable.
    let mut recipe = Recipe::new("/ip4/127.0.0.1/tcp/0").joins(&relay);
    recipe.settings.listen.clear();
    recipe.settings.dht = Dht::Auto;
    recipe.settings.relay_after_secs = 0;
    let mut miner = recipe.start().await;
    let circuit = loop {
        match tokio::time::timeout(PATIENCE, miner.events.recv()).await.unwrap().unwrap() {
            Event::AddressesChanged(addresses) if !addresses.is_empty() => break addresses,
            _ => continue,
        }
    };
    assert!(circuit.iter().all(|address| PathKind::of(address) == PathKind::Relayed), "{circuit:?}");
    let snapshot = miner.handle.snapshot().await.unwrap();
    assert_eq!(snapshot.external[0].status, AddressStatus::Relayed);
    assert_eq!(snapshot.dht.mode, crate::net::DhtMode::Client, "a circuit is no reason to serve");
    miner.handle.publish(miner.record_at(circuit, unix_ms())).await.unwrap();
    miner.echo();

    let validator = Recipe::new("/ip4/127.0.0.1/tcp/0").joins(&relay).start().await;
    validator.until_routed().await;
    let body = picture(500_000);
    let answered = validator.handle.query(validator.query(&miner, body.clone()), |_| {}).await.unwrap();
    assert_eq!(answered.body, body);
    let snapshot = validator.handle.snapshot().await.unwrap();
    let way = snapshot.peers.iter().find(|peer| peer.peer == miner.peer()).unwrap();
    // Hole punching may have made it direct by now, since nothing is in the way here.
    assert!(way.connections >= 1);
}
