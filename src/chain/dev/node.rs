//! The running chain: the pool of extrinsics that wait, and the state that readers see.
//!
//! A block is made on a copy of the state and becomes visible when it is on the disk. When the disk refuses
//! it, the copy is dropped, the extrinsics stay in the pool, and the next attempt begins anew.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use argus_protocols::Hotkey;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    ledger::{Ledger, LedgerError},
    limits,
    state::State,
    wire::{Account, Block, Extrinsic, Info, Status},
};
use crate::chain::{Hash, Head, Refusal};

pub(super) struct Node {
    ledger: Ledger,
    block_time: Duration,
    shared: Mutex<Shared>,
    /// The number of the newest block.
    height: watch::Sender<u64>,
}

struct Shared {
    state: Arc<State>,
    pool: VecDeque<(Hash, Extrinsic)>,
}

impl Node {
    pub(super) fn new(ledger: Ledger, state: State, block_time: Duration) -> Self {
        let height = watch::channel(state.head.number).0;
        let shared = Shared { state: Arc::new(state), pool: VecDeque::new() };
        Self { ledger, block_time, shared: Mutex::new(shared), height }
    }

    /// The state after the newest block.
    pub(super) fn state(&self) -> Arc<State> {
        self.shared.lock().state.clone()
    }

    /// Tells when there is a new block.
    pub(super) fn height(&self) -> watch::Receiver<u64> {
        self.height.subscribe()
    }

    pub(super) fn head(&self) -> Head {
        let head = self.state().head;
        Head { block: head.number, hash: head.hash, block_time: self.block_time }
    }

    pub(super) fn info(&self) -> Info {
        let pending = self.shared.lock().pool.len();
        let state = self.state();
        Info {
            genesis: state.genesis_hash,
            head: self.head(),
            netuids: state.genesis.netuids.clone(),
            faucet: state.genesis.faucet,
            pending,
        }
    }

    pub(super) fn account(&self, hotkey: Hotkey) -> Account {
        let shared = self.shared.lock();
        let account = shared.state.account(&hotkey);
        let subnets = shared.state.subnets.iter();
        Account {
            genesis: shared.state.genesis_hash,
            hotkey,
            nonce: account.nonce + shared.waiting(&hotkey),
            balance: account.balance,
            stake: subnets
                .filter_map(|(netuid, subnet)| Some((*netuid, *subnet.stake.get(&hotkey)?)))
                .collect(),
        }
    }

    /// Takes an extrinsic into the pool. One that is there or in a block already is taken as well.
    pub(super) fn submit(&self, extrinsic: Extrinsic) -> Result<Hash, SubmitError> {
        let hash = extrinsic.hash();
        // The costly part, before the lock.
        extrinsic.verify().map_err(|_| Refusal::BadProof)?;
        if self.ledger.receipt(&hash)?.is_some() {
            return Ok(hash);
        }
        let mut shared = self.shared.lock();
        if shared.pool.iter().any(|(waiting, _)| *waiting == hash) {
            return Ok(hash);
        }
        let payload = shared.state.payload(&extrinsic)?;
        let waiting = shared.waiting(&extrinsic.signer);
        let next = shared.state.account(&extrinsic.signer).nonce + waiting;
        match payload.nonce.cmp(&next) {
            // It may have been included since the look into the ledger.
            std::cmp::Ordering::Less if self.ledger.receipt(&hash)?.is_some() => return Ok(hash),
            std::cmp::Ordering::Less => return Err(Refusal::Stale.into()),
            std::cmp::Ordering::Greater => return Err(Refusal::Future.into()),
            std::cmp::Ordering::Equal => {}
        }
        if shared.pool.len() >= limits::POOL || waiting >= limits::POOL_OF_ONE as u64 {
            return Err(Refusal::ExhaustsResources.into());
        }
        if waiting == 0 {
            // What the next block would refuse need not wait for it, as with subtensor's pool.
            let mut next = State::clone(&shared.state);
            next.head.number += 1;
            next.call(&extrinsic.signer, payload.call)?;
        }
        shared.pool.push_back((hash, extrinsic));
        Ok(hash)
    }

    pub(super) fn status(&self, hash: &Hash) -> Result<Status, LedgerError> {
        let (waits, head) = {
            let shared = self.shared.lock();
            (shared.pool.iter().any(|(waiting, _)| waiting == hash), shared.state.head.number)
        };
        if waits {
            return Ok(Status::Pending);
        }
        Ok(match self.ledger.receipt(hash)? {
            // On the disk, but readers do not see that block yet.
            Some(receipt) if receipt.block > head => Status::Pending,
            Some(receipt) => Status::Included { block: receipt.block, refusal: receipt.refusal },
            None => Status::Unknown,
        })
    }

    pub(super) fn block(&self, number: u64) -> Result<Option<Block>, LedgerError> {
        if number > self.state().head.number {
            return Ok(None);
        }
        self.ledger.block(number)
    }

    /// Makes the next block. Waits for the disk.
    pub(super) fn produce(&self, time_ms: u64) -> Result<(), LedgerError> {
        let (state, waiting) = {
            let shared = self.shared.lock();
            let waiting: Vec<Extrinsic> =
                shared.pool.iter().take(limits::BLOCK).map(|(_, e)| e.clone()).collect();
            (shared.state.clone(), waiting)
        };
        let taken = waiting.len();
        let mut next = State::clone(&state);
        let block = next.build(waiting, time_ms);
        let outcomes = next.apply(&block);
        self.ledger.append(&block, outcomes, &next)?;
        let mut shared = self.shared.lock();
        // New ones went to the end; what did not fit into the block never will.
        shared.pool.drain(..taken);
        shared.state = Arc::new(next);
        drop(shared);
        self.height.send_replace(block.number);
        Ok(())
    }
}

impl Shared {
    fn waiting(&self, hotkey: &Hotkey) -> u64 {
        self.pool.iter().filter(|(_, extrinsic)| extrinsic.signer == *hotkey).count() as u64
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SubmitError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
