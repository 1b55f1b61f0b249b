//! The records this node keeps for the DHT, each verified before it is kept.
//!
//! In memory, bounded, written through to [`super::Persist`]. A record is kept only if its key is the hotkey's,
//! signature, limits and expiry hold, and its sequence is larger than that of the one kept; the publisher
//! that Kademlia names is ignored, since anybody can carry a record. When full, the record furthest from this
//! node makes room, so that nobody can push out what belongs here. Provider records are not used and never
//! kept.

use std::{
    borrow::Cow,
    collections::HashMap,
    time::{Duration, Instant},
};

use argus_protocols::{RecordError, SignedRecord, VerifiedRecord, record};
use libp2p::{
    PeerId,
    kad::{
        self, KBucketKey, ProviderRecord, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

use super::{
    persist::{Write, Writer},
    unix_ms,
};

/// What became of a record that somebody sent.
#[derive(Debug)]
pub(super) enum Fate {
    /// New, or newer than the one kept.
    Stored(Box<VerifiedRecord>),
    /// The very record that is kept.
    Known,
    /// Older than the one kept: nodes that were away carry such, in good faith.
    Stale,
    /// Forged, malformed, expired or under another's key.
    Refused(RecordError),
    /// The store is full of records nearer to this node.
    Full,
}

impl Fate {
    /// A stable label for metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Fate::Stored(_) => "stored",
            Fate::Known => "known",
            Fate::Stale => "stale",
            Fate::Refused(error) => error.reason(),
            Fate::Full => "full",
        }
    }

    /// Whether only a dishonest or broken node sends such. Records expire on their way, and clocks differ.
    pub(super) fn is_offence(&self) -> bool {
        matches!(
            self,
            Fate::Refused(
                RecordError::Codec(_)
                    | RecordError::Signature(_)
                    | RecordError::Peer(_)
                    | RecordError::Address(_)
                    | RecordError::Speed
                    | RecordError::OtherHotkey
            )
        )
    }
}

struct Kept {
    record: kad::Record,
    sequence: u64,
    expires_at_ms: u64,
}

pub(super) struct VerifiedStore {
    local: KBucketKey<PeerId>,
    kept: HashMap<RecordKey, Kept>,
    /// The node's own record is kept wherever it belongs.
    own: Option<RecordKey>,
    most: usize,
    writer: Writer,
}

impl VerifiedStore {
    /// Loads what was persisted, verifying it again.
    pub(super) fn load(local: PeerId, most: usize, persisted: Vec<Vec<u8>>, writer: Writer) -> Self {
        let mut store = Self { local: local.into(), kept: HashMap::new(), own: None, most, writer };
        for bytes in persisted {
            let Ok(signed) = SignedRecord::from_bytes(&bytes) else {
                continue;
            };
            if let Ok(verified) = signed.verify(unix_ms()) {
                store.keep(verified, bytes, false);
            }
        }
        store
    }

    /// Keeps the record under this key even when the store is full.
    pub(super) fn set_own(&mut self, key: RecordKey) {
        self.own = Some(key);
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Checks a record that was sent under `key`, and keeps it if all holds.
    pub(super) fn receive(&mut self, key: &RecordKey, value: &[u8]) -> Fate {
        if let Some(kept) = self.kept.get(key)
            && kept.record.value == value
        {
            return Fate::Known;
        }
        let verified = match SignedRecord::from_bytes(value)
            .map_err(RecordError::from)
            .and_then(|signed| signed.verify(unix_ms()))
        {
            Ok(verified) => verified,
            Err(error) => return Fate::Refused(error),
        };
        if verified.key() != key.as_ref() {
            return Fate::Refused(RecordError::OtherHotkey);
        }
        self.keep(verified, value.to_vec(), true)
    }

    fn keep(&mut self, verified: VerifiedRecord, value: Vec<u8>, persist: bool) -> Fate {
        let hash = verified.key();
        let key = RecordKey::new(&hash);
        match self.kept.get(&key).map(|kept| kept.sequence) {
            Some(sequence) if sequence >= verified.sequence => return Fate::Stale,
            Some(_) => {}
            None if self.own.as_ref() == Some(&key) => {}
            None if self.kept.len() < self.most || self.make_room(&key) => {}
            None => return Fate::Full,
        }
        if persist {
            self.writer.write(Write::PutRecord(hash, value.clone()));
        }
        let lifetime = Duration::from_millis(verified.expires_at_ms.saturating_sub(unix_ms()));
        let record = kad::Record {
            key: key.clone(),
            value,
            publisher: None,
            expires: Instant::now().checked_add(lifetime),
        };
        self.kept
            .insert(key, Kept { record, sequence: verified.sequence, expires_at_ms: verified.expires_at_ms });
        Fate::Stored(Box::new(verified))
    }

    /// Drops the record furthest from this node, if the new one is nearer.
    fn make_room(&mut self, new: &RecordKey) -> bool {
        self.expire();
        if self.kept.len() < self.most {
            return true;
        }
        let distance = |key: &RecordKey| self.local.distance(&KBucketKey::new(key.clone()));
        let others = self.kept.keys().filter(|key| self.own.as_ref() != Some(key));
        let Some(furthest) = others.max_by_key(|key| distance(key)).cloned() else {
            return false;
        };
        if distance(&furthest) <= distance(new) {
            return false;
        }
        self.remove(&furthest);
        true
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self) {
        let now = unix_ms();
        let expired: Vec<_> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.expires_at_ms <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in expired {
            self.remove(&key);
        }
    }

    /// The record kept for a hotkey.
    pub(super) fn record(&self, hotkey: &argus_protocols::Hotkey) -> Option<VerifiedRecord> {
        let kept = self.kept.get(&RecordKey::new(&record::key(hotkey)))?;
        SignedRecord::from_bytes(&kept.record.value).ok()?.verify(unix_ms()).ok()
    }
}

impl RecordStore for VerifiedStore {
    type RecordsIter<'a> = Box<dyn Iterator<Item = Cow<'a, kad::Record>> + 'a>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, kad::Record>> {
        let kept = self.kept.get(key)?;
        (kept.expires_at_ms > unix_ms()).then_some(Cow::Borrowed(&kept.record))
    }

    fn put(&mut self, record: kad::Record) -> Result<()> {
        match self.receive(&record.key, &record.value) {
            // Kademlia puts the own record here before it sends it on; an equal one is fine.
            Fate::Stored(_) | Fate::Known => Ok(()),
            Fate::Stale | Fate::Full => Err(Error::MaxRecords),
            Fate::Refused(_) => Err(Error::ValueTooLarge),
        }
    }

    fn remove(&mut self, key: &RecordKey) {
        if self.kept.remove(key).is_some()
            && let Ok(hash) = key.as_ref().try_into()
        {
            self.writer.write(Write::RemoveRecord(hash));
        }
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        Box::new(self.kept.values().map(|kept| Cow::Borrowed(&kept.record)))
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use argus_protocols::HotkeyPair;
    use proptest::prelude::*;

    use super::*;
    use crate::net::{InMemory, Persist, directory::tests::record};

    fn with_store<T>(most: usize, run: impl FnOnce(&mut VerifiedStore) -> T) -> (T, Arc<InMemory>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let kept = Arc::new(InMemory::default());
        let result = runtime.block_on(async {
            let (writer, writing) = Writer::spawn(kept.clone(), Default::default());
            let mut store = VerifiedStore::load(PeerId::random(), most, Vec::new(), writer);
            let result = run(&mut store);
            drop(store);
            writing.await.unwrap();
            result
        });
        (result, kept)
    }

    fn key(pair: &HotkeyPair) -> RecordKey {
        RecordKey::new(&record::key(&pair.hotkey()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// In whatever order records come, the newest is kept, here and on the disk.
        #[test]
        fn the_newest_is_kept(sequences in prop::collection::vec(1u64..20, 1..12)) {
            let (pair, expiry) = (HotkeyPair::generate(), unix_ms() + 60_000);
            let peer = PeerId::random();
            let (kept, disk) = with_store(4, |store| {
                let mut newest = 0;
                for sequence in &sequences {
                    let bytes = record(&pair, peer, *sequence, expiry).to_bytes();
                    let fate = store.receive(&key(&pair), &bytes);
                    prop_assert_eq!(matches!(fate, Fate::Stored(_)), *sequence > newest);
                    newest = newest.max(*sequence);
                    prop_assert_eq!(store.record(&pair.hotkey()).unwrap().sequence, newest);
                }
                Ok(newest)
            });
            let on_disk = SignedRecord::from_bytes(&disk.records()[0]).unwrap();
            prop_assert_eq!(on_disk.verify(unix_ms()).unwrap().sequence, kept?);
        }

        /// No bytes whatever are kept unless they are a record under its own key.
        #[test]
        fn nothing_else_is_kept(flip in 0usize..200, mask in 1u8.., garbage in prop::collection::vec(any::<u8>(), 0..300)) {
            let (pair, other) = (HotkeyPair::generate(), HotkeyPair::generate());
            let good = record(&pair, PeerId::random(), 1, unix_ms() + 60_000).to_bytes();
            let mut flipped = good.clone();
            let at = flip % flipped.len();
            flipped[at] ^= mask;
            let (checked, disk) = with_store(4, |store| {
                prop_assert!(matches!(store.receive(&key(&pair), &flipped), Fate::Refused(_)));
                prop_assert!(matches!(store.receive(&key(&pair), &garbage), Fate::Refused(_)));
                let foreign = store.receive(&key(&other), &good);
                prop_assert!(matches!(foreign, Fate::Refused(RecordError::OtherHotkey)));
                prop_assert!(foreign.is_offence());
                prop_assert_eq!(store.len(), 0);
                Ok(())
            });
            checked?;
            prop_assert!(disk.records().is_empty());
        }
    }

    #[test]
    fn expired_records_go_and_are_no_offence() {
        let pair = HotkeyPair::generate();
        with_store(4, |store| {
            let old = record(&pair, PeerId::random(), 1, unix_ms() - 1).to_bytes();
            let fate = store.receive(&key(&pair), &old);
            assert_eq!((fate.label(), fate.is_offence()), ("expired", false));
        });
    }

    #[test]
    fn a_full_store_keeps_what_is_nearest() {
        let expiry = unix_ms() + 60_000;
        let pairs: Vec<_> = (0..20).map(|_| HotkeyPair::generate()).collect();
        let (_, disk) = with_store(5, |store| {
            for pair in &pairs {
                let bytes = record(pair, PeerId::random(), 1, expiry).to_bytes();
                store.receive(&key(pair), &bytes);
                assert!(store.len() <= 5);
            }
            let local = store.local;
            let mut nearest: Vec<_> = pairs.iter().map(key).collect();
            nearest.sort_by_key(|key| local.distance(&KBucketKey::new(key.clone())));
            for key in &nearest[..5] {
                assert!(store.get(key).is_some());
            }
            assert!(store.get(&nearest[5]).is_none());
            let own = nearest[19].clone();
            store.set_own(own.clone());
            let pair = pairs.iter().find(|pair| key(pair) == own).unwrap();
            let bytes = record(pair, PeerId::random(), 1, expiry).to_bytes();
            assert_eq!(store.receive(&own, &bytes).label(), "stored", "wherever it belongs");
            assert!(store.get(&own).is_some());
        });
        assert_eq!(disk.records().len(), 6);
    }

    #[test]
    fn providers_are_never_kept() {
        with_store(4, |store| {
            let provider = ProviderRecord::new(b"key".to_vec(), PeerId::random(), Vec::new());
            assert!(store.add_provider(provider).is_err());
            assert_eq!(store.provided().count(), 0);
        });
    }
}
