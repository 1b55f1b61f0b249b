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
    most: usize,
    writer: Writer,
}

impl VerifiedStore {
    /// Loads what was persisted, verifying it again.
    pub(super) fn load(
        local: PeerId,
        most: usize,
        persisted: Vec<Vec<u8>>,
        writer: Writer,
    ) -> Self {
        let mut store = Self {
            local: local.into(),
            kept: HashMap::new(),
            most,
            writer,
        };
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
        match self.kept.get(&key) {
            Some(kept) if kept.sequence >= verified.sequence => return Fate::Stale,
            Some(_) => {}
            None if self.kept.len() >= self.most => {
                if !self.make_room(&key) {
                    return Fate::Full;
                }
            }
            None => {}
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
        self.kept.insert(
            key,
            Kept {
                record,
                sequence: verified.sequence,
                expires_at_ms: verified.expires_at_ms,
            },
        );
        Fate::Stored(Box::new(verified))
    }

    /// Drops the record furthest from this node, if the new one is nearer.
    fn make_room(&mut self, new: &RecordKey) -> bool {
        self.expire();
        if self.kept.len() < self.most {
            return true;
        }
        let distance = |key: &RecordKey| self.local.distance(&KBucketKey::new(key.clone()));
        let Some(furthest) = self.kept.keys().max_by_key(|key| distance(key)).cloned() else {
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
        SignedRecord::from_bytes(&kept.record.value)
            .ok()?
            .verify(unix_ms())
            .ok()
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
