//! A subnet at one block: who is registered, with what stake, permit and consensus results.

use std::collections::HashSet;

use argus_protocols::Hotkey;
use serde::{Deserialize, Serialize};

/// Neurons a subnet can have at most; subtensor's own subnets have 256.
pub const MAX_NEURONS: usize = 4096;

/// A subnet at one block. Fixed-point values are subtensor's: a `u16` of 65535 is 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metagraph {
    pub netuid: u16,
    /// The block this is of.
    pub block: u64,
    /// The block of the last epoch, 0 before the first.
    pub last_epoch: u64,
    /// The block at which the next epoch is due.
    pub next_epoch: u64,
    pub hyperparameters: Hyperparameters,
    /// In the order of the uids, which count from 0 without a gap.
    pub neurons: Vec<Neuron>,
}

/// What a subnet's owner sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Blocks from one epoch to the next.
    pub tempo: u16,
    /// Blocks between two weight sets of one validator.
    pub weights_rate_limit: u64,
    /// The oldest version key that weights may carry; 0 allows any.
    pub version_key: u64,
    /// Weights must name so many uids, or all there are.
    pub min_allowed_weights: u16,
    /// The largest share one weight may have, of 65535.
    pub max_weights_limit: u16,
    /// Blocks without a weight set after which a validator counts as inactive.
    pub activity_cutoff: u16,
    /// Permits given at an epoch.
    pub max_validators: u16,
    /// Neurons the subnet takes.
    pub max_neurons: u16,
    /// Stake that a validator needs, rao.
    pub min_stake: u64,
    /// Share of stake that makes a majority, of 65535.
    pub kappa: u16,
    /// How slowly bonds move: millionths kept from one epoch to the next.
    pub bonds_moving_average: u64,
    /// How far weights for bonds are clipped to consensus, of 65535.
    pub bonds_penalty: u16,
    /// Blocks for which a new neuron cannot be replaced.
    pub immunity_period: u16,
}

/// One registered hotkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neuron {
    pub uid: u16,
    pub hotkey: Hotkey,
    /// On this subnet, rao.
    pub stake: u64,
    /// Whether its weights count and miners serve it.
    pub permit: bool,
    /// Whether it set weights within the activity cutoff, at the last epoch.
    pub active: bool,
    pub incentive: u16,
    pub dividends: u16,
    pub consensus: u16,
    pub vtrust: u16,
    /// Of the last epoch, rao.
    pub emission: u64,
    /// The block of its last weight set (its registration before that).
    pub last_update: u64,
    pub registered_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetagraphError {
    #[error("this is subnet {found}, asked was {asked}")]
    Netuid { asked: u16, found: u16 },
    #[error("{0} neurons are more than a subnet can have")]
    TooMany(usize),
    #[error("uid {found} stands in place {place}")]
    Order { place: usize, found: u16 },
    #[error("hotkey {0} is registered twice")]
    Twice(Hotkey),
}

impl Metagraph {
    /// Checks what a chain sent, so that uids can index [`neurons`](Self::neurons) without a doubt.
    pub fn checked(self, netuid: u16) -> Result<Self, MetagraphError> {
        if self.netuid != netuid {
            return Err(MetagraphError::Netuid { asked: netuid, found: self.netuid });
        }
        if self.neurons.len() > MAX_NEURONS {
            return Err(MetagraphError::TooMany(self.neurons.len()));
        }
        let mut seen = HashSet::with_capacity(self.neurons.len());
        for (place, neuron) in self.neurons.iter().enumerate() {
            if neuron.uid as usize != place {
                return Err(MetagraphError::Order { place, found: neuron.uid });
            }
            if !seen.insert(neuron.hotkey) {
                return Err(MetagraphError::Twice(neuron.hotkey));
            }
        }
        Ok(self)
    }

    pub fn by_hotkey(&self, hotkey: &Hotkey) -> Option<&Neuron> {
        self.neurons.iter().find(|n| n.hotkey == *hotkey)
    }

    pub fn by_uid(&self, uid: u16) -> Option<&Neuron> {
        self.neurons.get(uid as usize)
    }

    /// Neurons with a permit.
    pub fn validators(&self) -> impl Iterator<Item = &Neuron> {
        self.neurons.iter().filter(|n| n.permit)
    }

    /// Neurons without a permit. Whether one really mines, its record says.
    pub fn miners(&self) -> impl Iterator<Item = &Neuron> {
        self.neurons.iter().filter(|n| !n.permit)
    }

    /// Stake of all neurons with a permit, rao.
    pub fn validator_stake(&self) -> u64 {
        self.validators().fold(0, |sum, n| sum.saturating_add(n.stake))
    }

    /// The block from which this validator may set weights again.
    pub fn weights_allowed_from(&self, neuron: &Neuron) -> u64 {
        neuron.last_update.saturating_add(self.hyperparameters.weights_rate_limit)
    }
}

impl Default for Hyperparameters {
    /// Subtensor's defaults, with limits that let a small network live.
    fn default() -> Self {
        Self {
            tempo: 360,
            weights_rate_limit: 100,
            version_key: 0,
            min_allowed_weights: 1,
            max_weights_limit: u16::MAX,
            activity_cutoff: 5000,
            max_validators: 64,
            max_neurons: 256,
            min_stake: 1000 * super::TAO,
            kappa: 32_767,
            bonds_moving_average: 900_000,
            bonds_penalty: u16::MAX,
            immunity_period: 4096,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neuron(uid: u16, key: u8) -> Neuron {
        Neuron {
            uid,
            hotkey: Hotkey::from_bytes([key; 32]),
            stake: 10,
            permit: uid == 0,
            active: true,
            incentive: 0,
            dividends: 0,
            consensus: 0,
            vtrust: 0,
            emission: 0,
            last_update: 7,
            registered_at: 7,
        }
    }

    fn metagraph(neurons: Vec<Neuron>) -> Metagraph {
        Metagraph {
            netuid: 1,
            block: 9,
            last_epoch: 0,
            next_epoch: 10,
            hyperparameters: Hyperparameters::default(),
            neurons,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = metagraph(vec![neuron(0, 1), neuron(1, 2)]);
        assert_eq!(good.clone().checked(1).unwrap(), good);
        assert_eq!(good.clone().checked(2).unwrap_err(), MetagraphError::Netuid { asked: 2, found: 1 });
        let gap = metagraph(vec![neuron(0, 1), neuron(2, 2)]);
        assert_eq!(gap.checked(1).unwrap_err(), MetagraphError::Order { place: 1, found: 2 });
        let twice = metagraph(vec![neuron(0, 1), neuron(1, 1)]);
        assert!(matches!(twice.checked(1).unwrap_err(), MetagraphError::Twice(_)));
    }

    #[test]
    fn neurons_are_found_and_parted() {
        let graph = metagraph(vec![neuron(0, 1), neuron(1, 2)]);
        assert_eq!(graph.by_hotkey(&Hotkey::from_bytes([2; 32])).unwrap().uid, 1);
        assert!(graph.by_hotkey(&Hotkey::from_bytes([3; 32])).is_none());
        assert_eq!(graph.validators().map(|n| n.uid).collect::<Vec<_>>(), [0]);
        assert_eq!(graph.miners().map(|n| n.uid).collect::<Vec<_>>(), [1]);
        assert_eq!(graph.validator_stake(), 10);
        assert_eq!(graph.weights_allowed_from(&graph.neurons[0]), 107);
        assert!(graph.by_uid(2).is_none());
    }
}
