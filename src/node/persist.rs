//! What the net keeps over a restart, in the node's store.

use argus_protocols::PeerId;

use crate::{
    net::{KnownPeer, Persist},
    store::{Durability, Store, StoreError, Table},
};

/// More than the net holds itself, of either.
const SCAN_LIMIT: usize = 65_536;

/// Records and the address book in RocksDB. A failed write is logged and forgotten: the DHT and the
/// peers themselves bring it back.
pub struct Kept(pub Store);

fn log(what: &str, result: Result<(), StoreError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot keep {what}");
    }
}

impl Persist for Kept {
    fn records(&self) -> Vec<Vec<u8>> {
        self.scan(Table::Records).into_iter().map(|(_, record)| record).collect()
    }

    fn put_record(&self, key: [u8; 32], signed: &[u8]) {
        log("a record", self.0.put(Table::Records, &key, signed, Durability::Buffered));
    }

    fn remove_record(&self, key: [u8; 32]) {
        log("a record", self.0.delete(Table::Records, &key, Durability::Buffered));
    }

    fn peers(&self) -> Vec<KnownPeer> {
        let known = |(_, value): (Vec<u8>, Vec<u8>)| serde_json::from_slice(&value).ok();
        self.scan(Table::Peers).into_iter().filter_map(known).collect()
    }

    fn put_peer(&self, peer: &KnownPeer) {
        log("a peer", self.0.put_json(Table::Peers, &peer.peer.to_bytes(), peer, Durability::Buffered));
    }

    fn remove_peer(&self, peer: &PeerId) {
        log("a peer", self.0.delete(Table::Peers, &peer.to_bytes(), Durability::Buffered));
    }
}

impl Kept {
    fn scan(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.0.scan(table, &[], SCAN_LIMIT).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read what was kept; starting without it");
            Vec::new()
        })
    }
}
