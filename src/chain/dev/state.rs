//! The chain's state and what blocks do to it. No clock, no I/O: replaying the blocks gives the same state.

use std::collections::BTreeMap;

use argus_protocols::Hotkey;
use serde::{Deserialize, Serialize};

use super::{
    limits,
    settings::Genesis,
    wire::{Block, Call, Extrinsic, Payload, WeightRow},
};
use crate::chain::{Hash, Hyperparameters, Metagraph, Refusal, yuma};

/// Everything the chain knows after a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub genesis: Genesis,
    pub genesis_hash: Hash,
    pub head: Header,
    pub accounts: BTreeMap<Hotkey, Account>,
    pub subnets: BTreeMap<u16, Subnet>,
}

/// The newest block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub number: u64,
    pub hash: Hash,
    pub time_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Extrinsics of it that are in blocks.
    pub nonce: u64,
    /// Free balance, rao.
    pub balance: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub hyperparameters: Hyperparameters,
    pub last_epoch: u64,
    /// Emission since the last epoch, rao.
    pub pending: u64,
    /// Stake of every hotkey that ever had some here, rao.
    pub stake: BTreeMap<Hotkey, u64>,
    pub neurons: Vec<Neuron>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neuron {
    pub hotkey: Hotkey,
    pub registered_at: u64,
    pub last_update: u64,
    pub permit: bool,
    pub active: bool,
    pub incentive: u16,
    pub dividends: u16,
    pub consensus: u16,
    pub vtrust: u16,
    pub emission: u64,
    pub weights: Vec<(u16, u16)>,
    pub bonds: Vec<(u16, u16)>,
}

impl Neuron {
    pub fn new(hotkey: Hotkey, block: u64) -> Self {
        Self {
            hotkey,
            registered_at: block,
            last_update: block,
            permit: false,
            active: true,
            incentive: 0,
            dividends: 0,
            consensus: 0,
            vtrust: 0,
            emission: 0,
            weights: Vec::new(),
            bonds: Vec::new(),
        }
    }
}

impl State {
    /// Before the first block.
    pub fn new(genesis: Genesis) -> Self {
        let subnet = Subnet {
            hyperparameters: genesis.hyperparameters,
            last_epoch: 0,
            pending: 0,
            stake: BTreeMap::new(),
            neurons: Vec::new(),
        };
        let genesis_hash = genesis.hash();
        Self {
            subnets: genesis.netuids.iter().map(|&netuid| (netuid, subnet.clone())).collect(),
            head: Header { number: 0, hash: genesis_hash, time_ms: 0 },
            accounts: BTreeMap::new(),
            genesis_hash,
            genesis,
        }
    }

    /// The next block with these extrinsics. Those that cannot be in it (wrong chain, wrong nonce, garbage)
    /// are left out.
    pub fn build(&self, extrinsics: Vec<Extrinsic>, time_ms: u64) -> Block {
        let mut nonces = BTreeMap::new();
        let mut fitting = Vec::new();
        for extrinsic in extrinsics {
            let Ok(payload) = self.payload(&extrinsic) else { continue };
            let next =
                nonces.entry(extrinsic.signer).or_insert_with(|| self.account(&extrinsic.signer).nonce);
            if payload.nonce == *next {
                *next += 1;
                fitting.push(extrinsic);
            }
        }
        let number = self.head.number + 1;
        // Time never runs backwards on a chain, whatever the machine's clock does.
        let time_ms = time_ms.max(self.head.time_ms);
        let hash = block_hash(self.head.hash, number, time_ms, &fitting);
        Block { number, hash, parent: self.head.hash, time_ms, extrinsics: fitting }
    }

    /// Applies the next block: epochs that are due, then its extrinsics. Returns for each of these why it
    /// had no effect. The block must be one that [`build`](Self::build) made of this state.
    pub fn apply(&mut self, block: &Block) -> Vec<Option<Refusal>> {
        self.head = Header { number: block.number, hash: block.hash, time_ms: block.time_ms };
        for subnet in self.subnets.values_mut() {
            subnet.pending = subnet.pending.saturating_add(self.genesis.emission);
            if subnet.next_epoch() <= block.number {
                subnet.epoch(block.number, &mut self.accounts);
            }
        }
        let mut registrations = BTreeMap::new();
        block.extrinsics.iter().map(|e| self.execute(e, &mut registrations).err()).collect()
    }

    fn execute(
        &mut self,
        extrinsic: &Extrinsic,
        registrations: &mut BTreeMap<u16, u32>,
    ) -> Result<(), Refusal> {
        let payload = self.payload(extrinsic)?;
        let signer = extrinsic.signer;
        if !self.accounts.contains_key(&signer) && self.accounts.len() >= limits::ACCOUNTS {
            return Err(Refusal::ExhaustsResources);
        }
        self.accounts.entry(signer).or_default().nonce += 1;
        if let Call::Register { netuid } = payload.call {
            let count = registrations.entry(netuid).or_default();
            if *count >= limits::REGISTRATIONS_PER_BLOCK {
                return Err(Refusal::TooManyRegistrationsThisBlock);
            }
            *count += 1;
        }
        self.call(&signer, payload.call)
    }

    /// What an extrinsic says, when it is for this chain.
    pub fn payload(&self, extrinsic: &Extrinsic) -> Result<Payload, Refusal> {
        let payload: Payload = serde_json::from_str(&extrinsic.payload).map_err(|_| Refusal::BadRequest)?;
        if payload.genesis != self.genesis_hash {
            return Err(Refusal::AncientBirthBlock);
        }
        Ok(payload)
    }

    pub fn account(&self, hotkey: &Hotkey) -> Account {
        self.accounts.get(hotkey).copied().unwrap_or_default()
    }

    pub fn subnet(&self, netuid: u16) -> Result<&Subnet, Refusal> {
        self.subnets.get(&netuid).ok_or(Refusal::SubnetNotExists)
    }

    pub fn metagraph(&self, netuid: u16) -> Result<Metagraph, Refusal> {
        let subnet = self.subnet(netuid)?;
        let neuron = |(uid, neuron): (usize, &Neuron)| crate::chain::Neuron {
            uid: uid as u16,
            hotkey: neuron.hotkey,
            stake: subnet.stake_of(&neuron.hotkey),
            permit: neuron.permit,
            active: neuron.active,
            incentive: neuron.incentive,
            dividends: neuron.dividends,
            consensus: neuron.consensus,
            vtrust: neuron.vtrust,
            emission: neuron.emission,
            last_update: neuron.last_update,
            registered_at: neuron.registered_at,
        };
        Ok(Metagraph {
            netuid,
            block: self.head.number,
            last_epoch: subnet.last_epoch,
            next_epoch: subnet.next_epoch(),
            hyperparameters: subnet.hyperparameters,
            neurons: subnet.neurons.iter().enumerate().map(neuron).collect(),
        })
    }

    pub fn weights(&self, netuid: u16) -> Result<Vec<WeightRow>, Refusal> {
        let neurons = self.subnet(netuid)?.neurons.iter().enumerate();
        Ok(neurons
            .filter(|(_, n)| !n.weights.is_empty() || !n.bonds.is_empty())
            .map(|(uid, neuron)| WeightRow {
                uid: uid as u16,
                hotkey: neuron.hotkey,
                weights: neuron.weights.clone(),
                bonds: neuron.bonds.clone(),
            })
            .collect())
    }
}

fn block_hash(parent: Hash, number: u64, time_ms: u64, extrinsics: &[Extrinsic]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("argus/devchain/block/1");
    hasher.update(&parent.0);
    hasher.update(&number.to_le_bytes());
    hasher.update(&time_ms.to_le_bytes());
    for extrinsic in extrinsics {
        hasher.update(&extrinsic.hash().0);
    }
    Hash(*hasher.finalize().as_bytes())
}

impl Subnet {
    pub fn uid_of(&self, hotkey: &Hotkey) -> Option<u16> {
        self.neurons.iter().position(|n| n.hotkey == *hotkey).map(|uid| uid as u16)
    }

    pub fn stake_of(&self, hotkey: &Hotkey) -> u64 {
        self.stake.get(hotkey).copied().unwrap_or(0)
    }

    /// The block of the next epoch.
    pub fn next_epoch(&self) -> u64 {
        self.last_epoch + u64::from(self.hyperparameters.tempo)
    }

    /// Consensus over the weights, and payment: incentives go to free balances, dividends into stake. (On
    /// subtensor both become stake; here a miner must not earn itself a validator permit unasked.)
    fn epoch(&mut self, block: u64, accounts: &mut BTreeMap<Hotkey, Account>) {
        let neurons: Vec<yuma::Neuron> = self
            .neurons
            .iter()
            .map(|neuron| yuma::Neuron {
                stake: self.stake_of(&neuron.hotkey),
                permit: neuron.permit,
                last_update: neuron.last_update,
                registered_at: neuron.registered_at,
                weights: &neuron.weights,
                bonds: &neuron.bonds,
            })
            .collect();
        let epoch = yuma::Epoch { block, last_epoch: self.last_epoch, emission: self.pending };
        let outcomes = yuma::epoch(&neurons, &self.hyperparameters, &epoch);
        self.last_epoch = block;
        self.pending = 0;
        for (neuron, outcome) in self.neurons.iter_mut().zip(outcomes) {
            if outcome.server_emission > 0 {
                let account = accounts.entry(neuron.hotkey).or_default();
                account.balance = account.balance.saturating_add(outcome.server_emission);
            }
            if outcome.validator_emission > 0 {
                let stake = self.stake.entry(neuron.hotkey).or_default();
                *stake = stake.saturating_add(outcome.validator_emission);
            }
            neuron.active = outcome.active;
            neuron.permit = outcome.permit;
            neuron.incentive = outcome.incentive;
            neuron.dividends = outcome.dividends;
            neuron.consensus = outcome.consensus;
            neuron.vtrust = outcome.vtrust;
            neuron.emission = outcome.emission;
            neuron.bonds = outcome.bonds;
        }
    }
}
