//! Records in the DHT: found, replaced, refused.

use argus_protocols::record;
use libp2p::kad::RecordKey;

use super::*;
use crate::net::{LookupError, record_store::Fate};

#[tokio::test]
async fn a_record_is_found_over_ten_nodes_and_replaced_by_a_newer_one() {
    let first = Recipe::memory().start().await;
    let mut nodes = Vec::new();
    for _ in 0..9 {
        nodes.push(Recipe::memory().joins(&first).start().await);
    }
    for node in &nodes {
        node.until("it knows most of the others", |snapshot| snapshot.dht.peers >= 7).await;
    }
    let (miner, others) = nodes.split_first().unwrap();
    let now = unix_ms();
    let published = miner.handle.publish(miner.record(now).await).await.unwrap();
    assert!(published.stored_on >= 7, "{published:?}");
    for node in others {
        let found = node.handle.lookup(&miner.hotkey.hotkey()).await.unwrap();
        assert_eq!((found.peer, found.sequence), (miner.peer(), now));
    }
    // An address change reaches those who have the old record in their cache.
    let moved: Vec<Multiaddr> = vec!["/ip4/10.1.2.3/tcp/7".parse().unwrap()];
    let newer = miner.record_at(moved.clone(), now + 1);
    miner.handle.publish(newer).await.unwrap();
    for node in others {
        let found = node.handle.lookup(&miner.hotkey.hotkey()).await.unwrap();
        assert_eq!((found.sequence, &found.addresses), (now + 1, &moved));
    }
    let old = miner.record(now).await;
    let refused = miner.handle.publish(old).await.unwrap_err();
    assert_eq!(refused.reason(), "record");
}

#[tokio::test]
async fn a_lookup_that_finds_nothing_answers() {
    let alone = Recipe::memory().start().await;
    let nobody = HotkeyPair::generate().hotkey();
    let answer = alone.handle.lookup(&nobody).await;
    assert!(matches!(answer, Err(LookupError::TimedOut(_))), "{answer:?}");
    let other = Recipe::memory().joins(&alone).start().await;
    other.until_routed().await;
    assert_eq!(other.handle.lookup(&nobody).await, Err(LookupError::NotFound));
}

#[tokio::test]
async fn a_lookup_that_comes_before_the_first_peer_waits_for_it() {
    let (miner, _validator) = miner_and_validator("/memory/0").await;
    let early = Recipe::memory().joins(&miner).start().await;
    let found = early.handle.lookup(&miner.hotkey.hotkey()).await.unwrap();
    assert_eq!(found.peer, miner.peer());
}

#[tokio::test]
async fn only_ones_own_record_is_published() {
    let (miner, validator) = miner_and_validator("/memory/0").await;
    let of_miner = miner.record(unix_ms()).await;
    let refused = validator.handle.publish(of_miner).await.unwrap_err();
    assert_eq!(refused.reason(), "record");
}

/// A node that puts whatever it likes into the DHT: its own store is the attacker's.
mod attacker {
    use libp2p::{
        StreamProtocol, Swarm, identify,
        kad::{self, store::MemoryStore},
        swarm::NetworkBehaviour,
    };
    use libp2p_swarm_test::SwarmExt as _;

    use super::*;

    #[derive(NetworkBehaviour)]
    pub struct Attack {
        pub kad: kad::Behaviour<MemoryStore>,
        identify: identify::Behaviour,
    }

    pub async fn joined(victim: &Node) -> Swarm<Attack> {
        let key = libp2p::identity::Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let (relay, _) = libp2p::relay::client::new(peer);
        let transport = crate::net::transport::build(&key, relay).unwrap();
        let protocol = StreamProtocol::new(record::KAD_PROTOCOL);
        let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), kad::Config::new(protocol));
        kad.set_mode(Some(kad::Mode::Server));
        let identify = identify::Behaviour::new(identify::Config::new("/argus/1".into(), key.public()));
        let config = libp2p::swarm::Config::with_tokio_executor();
        let mut swarm = Swarm::new(transport, Attack { kad, identify }, peer, config);
        swarm.listen().with_memory_addr_external().await;
        let address = victim.dialable();
        swarm.behaviour_mut().kad.add_address(&victim.peer(), address.clone());
        swarm.dial(address).unwrap();
        swarm
    }

    /// Sends a record to the victim alone.
    pub fn put(swarm: &mut Swarm<Attack>, victim: &Node, key: [u8; 32], value: Vec<u8>) {
        let record = kad::Record::new(RecordKey::new(&key), value);
        swarm.behaviour_mut().kad.put_record_to(record, [victim.peer()].into_iter(), kad::Quorum::One);
    }
}

#[tokio::test]
async fn forged_foreign_and_stale_records_are_refused_and_counted() {
    use libp2p_swarm_test::SwarmExt as _;
    let (miner, victim) = miner_and_validator("/memory/0").await;
    let sequence = victim.handle.lookup(&miner.hotkey.hotkey()).await.unwrap().sequence;
    let mut attacker = attacker::joined(&victim).await;
    let key = record::key(&miner.hotkey.hotkey());

    let mut forged = miner.record(sequence + 10).await;
    forged.signature.0[5] ^= 1;
    let thief = HotkeyPair::generate();
    let mut own = (**victim.handle.lookup(&miner.hotkey.hotkey()).await.as_ref().unwrap()).clone();
    own.hotkey = thief.hotkey();
    own.sequence += 10;
    let own = SignedRecord::sign(&own, &thief).unwrap();
    let stale = miner.record(sequence - 1).await;
    for bytes in [forged.to_bytes(), own.to_bytes(), stale.to_bytes()] {
        attacker::put(&mut attacker, &victim, key, bytes);
    }
    tokio::spawn(attacker.loop_on_next());
    for fate in ["signature", "other_hotkey", "stale"] {
        victim.until_counted(&format!("argus_net_records_total{{kind=\"{fate}\"}}")).await;
    }
    assert_eq!(victim.counter(r#"argus_net_offences_total{kind="bad_record"}"#), 2);
    let kept = victim.handle.lookup(&miner.hotkey.hotkey()).await.unwrap();
    assert_eq!((kept.peer, kept.sequence), (miner.peer(), sequence));
}

#[tokio::test]
async fn whoever_keeps_sending_forgeries_is_blocked() {
    use libp2p_swarm_test::SwarmExt as _;
    let (miner, victim) = miner_and_validator("/memory/0").await;
    let mut attacker = attacker::joined(&victim).await;
    let key = record::key(&miner.hotkey.hotkey());
    for number in 0..8u64 {
        let mut forged = miner.record(unix_ms() + number).await;
        forged.signature.0[5] ^= 1;
        attacker::put(&mut attacker, &victim, key, forged.to_bytes());
    }
    let attacker_id = *attacker.local_peer_id();
    tokio::spawn(attacker.loop_on_next());
    let blocked = victim.until("the attacker is blocked", |snapshot| snapshot.blocked == 1).await;
    assert!(blocked.peers.iter().all(|peer| peer.peer != attacker_id));
    assert_eq!(victim.counter("argus_net_blocks_total"), 1);
}

#[tokio::test]
async fn lies_of_the_dht_do_not_reach_a_reader() {
    use libp2p::kad::store::RecordStore as _;
    use libp2p_swarm_test::SwarmExt as _;
    let reader = Recipe::memory().start().await;
    let miner = Recipe::memory().joins(&reader).start().await;
    let mut liar = attacker::joined(&reader).await;
    let hotkey = miner.hotkey.hotkey();
    let mut forged = miner.record(unix_ms()).await;
    forged.signature.0[5] ^= 1;
    let lie = libp2p::kad::Record::new(RecordKey::new(&record::key(&hotkey)), forged.to_bytes());
    liar.behaviour_mut().kad.store_mut().put(lie).unwrap();
    tokio::spawn(liar.loop_on_next());
    reader.until("both are in the routing table", |snapshot| snapshot.dht.peers >= 2).await;
    assert_eq!(reader.handle.lookup(&hotkey).await, Err(LookupError::NotFound));
    reader.until_counted(r#"argus_net_records_total{kind="bad_answer"}"#).await;
}

#[tokio::test]
async fn records_survive_a_restart_and_expired_ones_do_not() {
    let persist = Arc::new(InMemory::default());
    let mut recipe = Recipe::memory();
    recipe.persist = persist.clone();
    let (key, hotkey) = (recipe.key.clone(), recipe.hotkey.clone());
    let node = recipe.start().await;
    let record = node.record(unix_ms()).await;
    let verified = record.clone().verify(unix_ms()).unwrap();
    node.handle.publish(record).await.unwrap();
    node.stop().await;
    assert_eq!(persist.records().len(), 1);
    persist.put_record([7; 32], b"garbage");

    let mut recipe = Recipe::memory();
    (recipe.key, recipe.hotkey, recipe.persist) = (key, hotkey, persist);
    let again = recipe.start().await;
    let snapshot = again.handle.snapshot().await.unwrap();
    assert_eq!(snapshot.dht.records, 1, "garbage is left out");
    let kept = again.handle.lookup(&again.hotkey.hotkey()).await.unwrap();
    assert_eq!(kept, verified);
    let _ = Fate::Known;
}
