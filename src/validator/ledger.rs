//! What the validator keeps on disk: scores with their receipts, closed periods, and its way to the chain.
//!
//! Keys begin with the period (big endian), so that whole periods are read and forgotten by range.

use std::collections::BTreeMap;

use argus_protocols::{
    Hotkey, SignedReceipt, TaskKind, VerifiedReceipt, codec, limits, receipt::ReceiptError,
};
use serde::{Deserialize, Serialize};

use super::{
    core::Restored,
    period::{PeriodId, Tallies, Tally},
    round::{Score, ScoreRow},
    weights::{Included, Intent},
};
use crate::store::{Batch, Durability, Store, StoreError, Table};

const INTENT: &[u8] = b"weights/intent";
const INCLUDED: &[u8] = b"weights/included";
/// Rows read at once.
const PAGE: usize = 4096;

/// One line of a closed period.
#[derive(Serialize, Deserialize)]
struct TallyRow {
    task: TaskKind,
    miner: Hotkey,
    tally: Tally,
}

#[derive(Clone)]
pub struct Ledger {
    store: Store,
}

impl Ledger {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Writes scores and the receipts behind them, all or none.
    pub fn store_scores(&self, scores: &[Score]) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for Score { row, receipt } in scores {
            let key = score_key(row);
            batch.put_json(Table::Scores, &key, row)?;
            if let Some(receipt) = receipt {
                batch.put(Table::Receipts, &key, &codec::encode(receipt.as_ref()));
            }
        }
        self.store.write(batch, Durability::Synced)
    }

    /// Writes a closed period, and forgets those before `oldest` with all that belongs to them.
    pub fn store_period(
        &self,
        period: PeriodId,
        tallies: &Tallies,
        oldest: PeriodId,
    ) -> Result<(), StoreError> {
        let rows = tallies.iter().map(|((task, miner), tally)| TallyRow {
            task: *task,
            miner: *miner,
            tally: *tally,
        });
        let mut batch = Batch::new();
        batch.put_json(Table::Periods, &period.to_be_bytes(), &rows.collect::<Vec<_>>())?;
        for table in [Table::Periods, Table::Scores, Table::Receipts] {
            batch.delete_range(table, &[], &oldest.to_be_bytes());
        }
        self.store.write(batch, Durability::Synced)
    }

    /// Written before weights are sent.
    pub fn store_intent(&self, intent: &Intent) -> Result<(), StoreError> {
        self.store.put_json(Table::Intents, INTENT, intent, Durability::Synced)
    }

    pub fn store_included(&self, included: &Included) -> Result<(), StoreError> {
        self.store.put_json(Table::Intents, INCLUDED, included, Durability::Synced)
    }

    /// Everything as the last run left it.
    pub fn restore(&self) -> Result<Restored, StoreError> {
        let mut closed = BTreeMap::new();
        for (key, _) in self.store.scan(Table::Periods, &[], PAGE)? {
            let Ok(period) = <[u8; 8]>::try_from(key.as_slice()).map(PeriodId::from_be_bytes) else {
                continue;
            };
            let rows: Option<Vec<TallyRow>> = self.store.get_json(Table::Periods, &key)?;
            let rows = rows.unwrap_or_default().into_iter();
            let tallies: Tallies = rows.map(|row| ((row.task, row.miner), row.tally)).collect();
            closed.insert(period, tallies);
        }
        Ok(Restored {
            scores: self.scores_but_of(&closed)?,
            closed,
            included: self.store.get_json(Table::Intents, INCLUDED)?,
            intent: self.store.get_json(Table::Intents, INTENT)?,
        })
    }

    /// Scores of periods that were not closed.
    fn scores_but_of(&self, closed: &BTreeMap<PeriodId, Tallies>) -> Result<Vec<ScoreRow>, StoreError> {
        let mut scores = Vec::new();
        self.each(Table::Scores, |value| {
            let row: ScoreRow = serde_json::from_slice(value)
                .map_err(|e| StoreError::Value { table: Table::Scores.name(), detail: e.to_string() })?;
            if !closed.contains_key(&row.period) {
                scores.push(row);
            }
            Ok(())
        })?;
        Ok(scores)
    }

    /// Every kept receipt, oldest first, checked again: a store is a file like any other.
    pub fn receipts(&self) -> Result<Vec<Result<VerifiedReceipt, ReceiptError>>, StoreError> {
        let mut receipts = Vec::new();
        self.each(Table::Receipts, |value| {
            let signed = codec::decode::<SignedReceipt, { limits::FRAME }>(value);
            receipts.push(signed.map_err(ReceiptError::from).and_then(SignedReceipt::verify_alone));
            Ok(())
        })?;
        Ok(receipts)
    }

    /// Reads a table page by page.
    fn each(
        &self,
        table: Table,
        mut take: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let page = self.store.range(table, &from, &[u8::MAX; 64], PAGE)?;
            page.iter().try_for_each(|(_, value)| take(value))?;
            match page.last() {
                Some((last, _)) if page.len() == PAGE => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => return Ok(()),
            }
        }
    }
}

/// Period, time, round, miner: unique, in the order in which scores were given.
fn score_key(row: &ScoreRow) -> Vec<u8> {
    let mut key = row.period.to_be_bytes().to_vec();
    key.extend(row.at_ms.to_be_bytes());
    key.extend(row.round.to_be_bytes());
    key.extend(row.miner.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use argus_protocols::Signature;

    use super::{super::round::Origin, *};

    fn score(period: PeriodId, round: u64, score: f32) -> Score {
        let row = ScoreRow {
            period,
            at_ms: period * 1000 + round,
            round,
            origin: Origin::Synthetic,
            task: TaskKind::TextToImage,
            miner: Hotkey::from_bytes([round as u8; 32]),
            score,
            verdict: "right".into(),
            elapsed_ms: 5,
            voids: 0.0,
        };
        let receipt = SignedReceipt { receipt: vec![1, 2], signature: Signature([3; 64]) };
        Score { row, receipt: Some(Arc::new(receipt)) }
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(Store::open(folder.path()).unwrap());
        (folder, ledger)
    }

    #[test]
    fn what_was_written_comes_back_after_a_restart() {
        let (folder, ledger) = ledger();
        let tallies = Tallies::from([(
            (TaskKind::TextToImage, Hotkey::from_bytes([1; 32])),
            Tally { sum: 2.25, count: 2, ..Tally::default() },
        )]);
        ledger.store_scores(&[score(7, 1, 1.25), score(8, 2, 0.75)]).unwrap();
        ledger.store_scores(&[score(8, 3, 0.0)]).unwrap();
        ledger.store_period(7, &tallies, 0).unwrap();
        let intent = Intent { period: 7, block: 40, weights: vec![(1, 65535)], version_key: 2 };
        ledger.store_intent(&intent).unwrap();
        let included = Included { period: 7, block: 41, hash: "0x12".into(), weights: vec![(1, 65535)] };
        ledger.store_included(&included).unwrap();
        drop(ledger);

        let restored = Ledger::new(Store::open(folder.path()).unwrap()).restore().unwrap();
        assert_eq!(restored.closed, BTreeMap::from([(7, tallies)]));
        assert_eq!(restored.scores.iter().map(|row| row.round).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(restored.included, Some(included));
        assert_eq!(restored.intent, Some(intent));
    }

    #[test]
    fn old_periods_are_forgotten_with_their_receipts() {
        let (_folder, ledger) = ledger();
        for period in 1..6 {
            ledger.store_scores(&[score(period, period, 1.0)]).unwrap();
            ledger.store_period(period, &Tallies::new(), period.saturating_sub(2)).unwrap();
        }
        let restored = ledger.restore().unwrap();
        assert_eq!(restored.closed.keys().copied().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(ledger.store.scan(Table::Receipts, &[], 100).unwrap().len(), 3);
        assert_eq!(ledger.store.scan(Table::Scores, &[], 100).unwrap().len(), 3);
    }

    #[test]
    fn many_scores_are_read_page_by_page() {
        let (_folder, ledger) = ledger();
        let scores: Vec<Score> = (0..PAGE as u64 + 10).map(|round| score(1, round, 1.0)).collect();
        ledger.store_scores(&scores).unwrap();
        assert_eq!(ledger.restore().unwrap().scores.len(), scores.len());
    }
}
