//! Hotkey → newest verified record, cached.
//!
//! Shared by all handles, so that a warm query needs no word with the event loop. An entry is fresh for
//! [`limits::DIRECTORY_FRESH`] and never outlives its record; a newer record replaces at once, an older one
//! never does.

use std::{collections::HashMap, time::Instant};

use argus_protocols::{Hotkey, VerifiedRecord};
use parking_lot::Mutex;

use super::limits;

struct Entry {
    record: VerifiedRecord,
    /// When the DHT last said so.
    at: Instant,
}

#[derive(Default)]
pub(super) struct Directory(Mutex<HashMap<Hotkey, Entry>>);

impl Directory {
    /// The record, when it is fresh enough to be used without asking again.
    pub(super) fn fresh(&self, hotkey: &Hotkey, now: Instant, now_ms: u64) -> Option<VerifiedRecord> {
        let entries = self.0.lock();
        let entry = entries.get(hotkey)?;
        let fresh = now.saturating_duration_since(entry.at) < limits::DIRECTORY_FRESH
            && entry.record.expires_at_ms > now_ms;
        fresh.then(|| entry.record.clone())
    }

    /// The record that is known, fresh or not, unless it has expired.
    pub(super) fn known(&self, hotkey: &Hotkey, now_ms: u64) -> Option<VerifiedRecord> {
        let entries = self.0.lock();
        let entry = entries.get(hotkey)?;
        (entry.record.expires_at_ms > now_ms).then(|| entry.record.clone())
    }

    /// Learns a record; `false` when a newer one is known.
    pub(super) fn learn(&self, record: &VerifiedRecord, now: Instant) -> bool {
        let mut entries = self.0.lock();
        if let Some(entry) = entries.get_mut(&record.hotkey) {
            if entry.record.sequence > record.sequence {
                return false;
            }
            entry.record = record.clone();
            entry.at = now;
            return true;
        }
        if entries.len() >= limits::DIRECTORY
            && let Some(oldest) = entries.iter().min_by_key(|(_, e)| e.at).map(|(k, _)| *k)
        {
            entries.remove(&oldest);
        }
        entries.insert(record.hotkey, Entry { record: record.clone(), at: now });
        true
    }

    /// Replaces a cached record by a newer one that came by itself. Records nobody asked for are not
    /// cached.
    pub(super) fn refresh(&self, record: &VerifiedRecord, now: Instant) {
        if self.0.lock().contains_key(&record.hotkey) {
            self.learn(record, now);
        }
    }

    /// The record was of no use (nobody there): the next lookup asks the DHT.
    pub(super) fn doubt(&self, hotkey: &Hotkey) {
        if let Some(entry) = self.0.lock().get_mut(hotkey)
            && let Some(long_ago) = entry.at.checked_sub(limits::DIRECTORY_FRESH)
        {
            entry.at = long_ago;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use argus_protocols::{HotkeyPair, PeerId, Record, Role, SignedRecord};

    use super::*;

    pub(in crate::net) fn record(
        pair: &HotkeyPair,
        peer: PeerId,
        sequence: u64,
        expires_at_ms: u64,
    ) -> SignedRecord {
        let record = Record {
            hotkey: pair.hotkey(),
            peer,
            addresses: vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()],
            role: Role::Miner,
            netuid: 1,
            capabilities: Vec::new(),
            sequence,
            expires_at_ms,
        };
        SignedRecord::sign(&record, pair).unwrap()
    }

    #[test]
    fn newer_replaces_older_and_never_the_other_way() {
        let (directory, pair, now) = (Directory::default(), HotkeyPair::generate(), Instant::now());
        let peers = [PeerId::random(), PeerId::random()];
        let old = record(&pair, peers[0], 10, 5_000).verify(100).unwrap();
        let new = record(&pair, peers[1], 11, 5_000).verify(100).unwrap();
        assert!(directory.learn(&old, now));
        assert!(directory.learn(&new, now));
        assert!(!directory.learn(&old, now));
        assert_eq!(directory.fresh(&pair.hotkey(), now, 100).unwrap().peer, peers[1]);
        assert!(directory.fresh(&pair.hotkey(), now, 5_000).is_none(), "expired");
        assert!(directory.fresh(&pair.hotkey(), now + limits::DIRECTORY_FRESH, 100).is_none());
    }

    #[test]
    fn a_doubted_record_is_looked_up_again_and_strangers_are_not_cached() {
        let (directory, pair, now) = (Directory::default(), HotkeyPair::generate(), Instant::now());
        let known = record(&pair, PeerId::random(), 1, 5_000).verify(100).unwrap();
        directory.refresh(&known, now);
        assert!(directory.fresh(&pair.hotkey(), now, 100).is_none());
        directory.learn(&known, now);
        directory.doubt(&pair.hotkey());
        assert!(directory.fresh(&pair.hotkey(), now, 100).is_none());
    }
}
