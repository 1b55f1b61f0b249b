//! The chain on disk: its genesis, its blocks, and now and then a snapshot of the state.
//!
//! Opening reads the last snapshot and replays the blocks after it. A block is written together with the
//! receipts of its extrinsics. One that holds extrinsics is synced to the disk, and with it all before it;
//! an empty one is handed to the operating system, so that an idle chain does not wear the disk.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    limits,
    settings::{Genesis, Rules, SettingsError},
    state::{Header, State},
    wire::Block,
};
use crate::{
    chain::{Hash, Refusal},
    store::{Batch, Durability, Store, StoreError, Table},
};

const GENESIS: &[u8] = b"genesis";
const PORT: &[u8] = b"port";
const HEAD: &[u8] = b"snapshot/head";
const ACCOUNTS: &[u8] = b"snapshot/accounts";

fn subnet_key(netuid: u16) -> Vec<u8> {
    format!("snapshot/subnet/{netuid}").into_bytes()
}

fn block_key(number: u64) -> Vec<u8> {
    [b"block/".as_slice(), &number.to_be_bytes()].concat()
}

fn receipt_key(hash: &Hash) -> Vec<u8> {
    [b"receipt/".as_slice(), &hash.0].concat()
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(
        "the development chain in {path} does not fit together ({detail}): move the folder away to begin anew"
    )]
    Damaged { path: String, detail: String },
}

/// A block and what became of its extrinsics.
#[derive(Serialize, Deserialize)]
struct StoredBlock {
    block: Block,
    outcomes: Vec<Option<Refusal>>,
}

/// Where an extrinsic went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub block: u64,
    pub refusal: Option<Refusal>,
}

#[derive(Clone, Debug)]
pub struct Ledger {
    store: Store,
}

impl Ledger {
    /// Opens a chain, or makes one by these rules with this entropy.
    pub fn open(store: Store, rules: &Rules, entropy: Hash) -> Result<(Self, State), LedgerError> {
        let ledger = Self { store };
        let Some(genesis) = ledger.read::<Genesis>(GENESIS)? else {
            let genesis = rules.genesis(entropy)?;
            let state = State::new(genesis);
            ledger.begin(&state)?;
            return Ok((ledger, state));
        };
        rules.agree(&genesis)?;
        let mut state = ledger.snapshot(genesis)?;
        ledger.replay(&mut state)?;
        Ok((ledger, state))
    }

    fn begin(&self, state: &State) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        batch.put_json(Table::ChainState, GENESIS, &state.genesis)?;
        write_snapshot(&mut batch, state)?;
        Ok(self.store.write(batch, Durability::Synced)?)
    }

    fn snapshot(&self, genesis: Genesis) -> Result<State, LedgerError> {
        let missing = |what: &str| self.damaged(format!("{what} is missing"));
        let mut state = State::new(genesis);
        state.head = self.read::<Header>(HEAD)?.ok_or_else(|| missing("the snapshot"))?;
        state.accounts = self.read(ACCOUNTS)?.ok_or_else(|| missing("the list of accounts"))?;
        for (netuid, subnet) in &mut state.subnets {
            *subnet = self.read(&subnet_key(*netuid))?.ok_or_else(|| missing("a subnet"))?;
        }
        Ok(state)
    }

    fn replay(&self, state: &mut State) -> Result<(), LedgerError> {
        while let Some(stored) = self.stored_block(state.head.number + 1)? {
            let block = &stored.block;
            let again = state.build(block.extrinsics.clone(), block.time_ms);
            if again != *block {
                return Err(self.damaged(format!("block {} does not follow", block.number)));
            }
            if state.apply(block) != stored.outcomes {
                return Err(self.damaged(format!("block {} has another effect now", block.number)));
            }
        }
        Ok(())
    }

    /// Writes a block that was just applied, and a snapshot when one is due.
    pub fn append(
        &self,
        block: &Block,
        outcomes: Vec<Option<Refusal>>,
        state: &State,
    ) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        for (extrinsic, refusal) in block.extrinsics.iter().zip(&outcomes) {
            let receipt = Receipt { block: block.number, refusal: refusal.clone() };
            batch.put_json(Table::ChainBlocks, &receipt_key(&extrinsic.hash()), &receipt)?;
        }
        let durability = match block.extrinsics.is_empty() {
            true => Durability::Buffered,
            false => Durability::Synced,
        };
        let stored = StoredBlock { block: block.clone(), outcomes };
        batch.put_json(Table::ChainBlocks, &block_key(block.number), &stored)?;
        if block.number.is_multiple_of(limits::SNAPSHOT_BLOCKS) {
            write_snapshot(&mut batch, state)?;
            self.prune(&mut batch, block.number)?;
        }
        Ok(self.store.write(batch, durability)?)
    }

    /// Forgets blocks beyond the history, with their receipts.
    fn prune(&self, batch: &mut Batch, number: u64) -> Result<(), LedgerError> {
        let keep_from = block_key(number.saturating_sub(limits::HISTORY));
        // A little more than comes in between two snapshots, so that it catches up.
        let count = 2 * limits::SNAPSHOT_BLOCKS as usize;
        let old = self.store.range(Table::ChainBlocks, &block_key(0), &keep_from, count)?;
        for (key, value) in old {
            // What cannot be read cannot name its receipts.
            if let Ok(stored) = serde_json::from_slice::<StoredBlock>(&value) {
                for extrinsic in &stored.block.extrinsics {
                    batch.delete(Table::ChainBlocks, &receipt_key(&extrinsic.hash()));
                }
            }
            batch.delete(Table::ChainBlocks, &key);
        }
        Ok(())
    }

    pub fn block(&self, number: u64) -> Result<Option<Block>, LedgerError> {
        Ok(self.stored_block(number)?.map(|stored| stored.block))
    }

    pub fn receipt(&self, hash: &Hash) -> Result<Option<Receipt>, LedgerError> {
        Ok(self.store.get_json(Table::ChainBlocks, &receipt_key(hash))?)
    }

    /// Where the chain listened last, so that clients find it again.
    pub fn port(&self) -> Result<Option<u16>, LedgerError> {
        self.read(PORT)
    }

    pub fn set_port(&self, port: u16) -> Result<(), LedgerError> {
        Ok(self.store.put_json(Table::ChainState, PORT, &port, Durability::Synced)?)
    }

    fn stored_block(&self, number: u64) -> Result<Option<StoredBlock>, LedgerError> {
        Ok(self.store.get_json(Table::ChainBlocks, &block_key(number))?)
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, LedgerError> {
        Ok(self.store.get_json(Table::ChainState, key)?)
    }

    fn damaged(&self, detail: String) -> LedgerError {
        LedgerError::Damaged { path: self.store.path().display().to_string(), detail }
    }
}

fn write_snapshot(batch: &mut Batch, state: &State) -> Result<(), StoreError> {
    batch.put_json(Table::ChainState, HEAD, &state.head)?;
    batch.put_json(Table::ChainState, ACCOUNTS, &state.accounts)?;
    for (netuid, subnet) in &state.subnets {
        batch.put_json(Table::ChainState, &subnet_key(*netuid), subnet)?;
    }
    Ok(())
}
