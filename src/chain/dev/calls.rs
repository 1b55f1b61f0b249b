//! What each call checks and does. The checks on weights and their order are subtensor's.

use argus_protocols::Hotkey;

use super::{
    limits,
    state::{Account, Neuron, State, Subnet},
    wire::Call,
};
use crate::chain::Refusal;

impl State {
    /// Carries out a call, or changes nothing.
    pub(super) fn call(&mut self, signer: &Hotkey, call: Call) -> Result<(), Refusal> {
        match call {
            Call::Faucet { amount } => self.faucet(signer, amount),
            Call::Register { netuid } => self.register(signer, netuid),
            Call::AddStake { netuid, amount } => self.add_stake(signer, netuid, amount),
            Call::RemoveStake { netuid, amount } => self.remove_stake(signer, netuid, amount),
            Call::SetWeights { netuid, uids, values, version_key } => {
                let block = self.head.number;
                let subnet = self.subnet_mut(netuid)?;
                let uid = subnet.check_weights(signer, &uids, &values, version_key, block)?;
                let neuron = &mut subnet.neurons[usize::from(uid)];
                neuron.weights = uids.into_iter().zip(upscaled(&values)).collect();
                neuron.last_update = block;
                Ok(())
            }
        }
    }

    fn subnet_mut(&mut self, netuid: u16) -> Result<&mut Subnet, Refusal> {
        self.subnets.get_mut(&netuid).ok_or(Refusal::SubnetNotExists)
    }

    fn account_mut(&mut self, hotkey: &Hotkey) -> &mut Account {
        self.accounts.entry(*hotkey).or_default()
    }

    fn faucet(&mut self, signer: &Hotkey, amount: u64) -> Result<(), Refusal> {
        if self.genesis.faucet == 0 {
            return Err(Refusal::FaucetDisabled);
        }
        if amount > self.genesis.faucet {
            return Err(Refusal::FaucetLimitExceeded);
        }
        if amount < limits::SMALLEST_AMOUNT {
            return Err(Refusal::AmountTooLow);
        }
        let account = self.account_mut(signer);
        account.balance = account.balance.saturating_add(amount);
        Ok(())
    }

    fn register(&mut self, signer: &Hotkey, netuid: u16) -> Result<(), Refusal> {
        let (block, price) = (self.head.number, self.genesis.registration_cost);
        let subnet = self.subnet(netuid)?;
        if subnet.uid_of(signer).is_some() {
            return Err(Refusal::HotKeyAlreadyRegisteredInSubNet);
        }
        if self.account(signer).balance < price {
            return Err(Refusal::NotEnoughBalanceToStake);
        }
        let full = subnet.neurons.len() >= usize::from(subnet.hyperparameters.max_neurons);
        let place =
            if full { Some(subnet.replaceable(block).ok_or(Refusal::NoNeuronIdAvailable)?) } else { None };
        self.account_mut(signer).balance -= price;
        let neurons = &mut self.subnet_mut(netuid)?.neurons;
        match place {
            Some(uid) => neurons[uid] = Neuron::new(*signer, block),
            None => neurons.push(Neuron::new(*signer, block)),
        }
        Ok(())
    }

    fn add_stake(&mut self, signer: &Hotkey, netuid: u16, amount: u64) -> Result<(), Refusal> {
        if self.subnet(netuid)?.uid_of(signer).is_none() {
            return Err(Refusal::HotKeyNotRegisteredInSubNet);
        }
        if amount < limits::SMALLEST_AMOUNT {
            return Err(Refusal::AmountTooLow);
        }
        let left = self.account(signer).balance.checked_sub(amount);
        self.account_mut(signer).balance = left.ok_or(Refusal::NotEnoughBalanceToStake)?;
        let stake = self.subnet_mut(netuid)?.stake.entry(*signer).or_default();
        *stake = stake.saturating_add(amount);
        Ok(())
    }

    fn remove_stake(&mut self, signer: &Hotkey, netuid: u16, amount: u64) -> Result<(), Refusal> {
        if amount < limits::SMALLEST_AMOUNT {
            return Err(Refusal::AmountTooLow);
        }
        let subnet = self.subnet_mut(netuid)?;
        let left = subnet.stake_of(signer).checked_sub(amount);
        match left.ok_or(Refusal::NotEnoughStakeToWithdraw)? {
            0 => subnet.stake.remove(signer),
            left => subnet.stake.insert(*signer, left),
        };
        let account = self.account_mut(signer);
        account.balance = account.balance.saturating_add(amount);
        Ok(())
    }
}

impl Subnet {
    /// The neuron that gives way to a new one: no longer immune, and of those the one that earned least,
    /// the oldest of equals.
    fn replaceable(&self, block: u64) -> Option<usize> {
        let immunity = u64::from(self.hyperparameters.immunity_period);
        (0..self.neurons.len())
            .filter(|&uid| block.saturating_sub(self.neurons[uid].registered_at) >= immunity)
            .min_by_key(|&uid| {
                let neuron = &self.neurons[uid];
                (neuron.permit, neuron.emission, neuron.registered_at)
            })
    }

    /// Whether this hotkey may set these weights in this block; its uid if so.
    fn check_weights(
        &self,
        signer: &Hotkey,
        uids: &[u16],
        values: &[u16],
        version_key: u64,
        block: u64,
    ) -> Result<u16, Refusal> {
        let parameters = &self.hyperparameters;
        let ensure = |holds: bool, refusal: Refusal| if holds { Ok(()) } else { Err(refusal) };
        ensure(uids.len() == values.len(), Refusal::WeightVecNotEqualSize)?;
        ensure(uids.len() <= self.neurons.len(), Refusal::UidsLengthExceedUidsInSubNet)?;
        let uid = self.uid_of(signer).ok_or(Refusal::HotKeyNotRegisteredInSubNet)?;
        let neuron = &self.neurons[usize::from(uid)];
        ensure(self.stake_of(signer) >= parameters.min_stake, Refusal::NotEnoughStakeToSetWeights)?;
        ensure(version_key >= parameters.version_key, Refusal::IncorrectWeightVersionKey)?;
        let since = block.saturating_sub(neuron.last_update);
        ensure(since >= parameters.weights_rate_limit, Refusal::SettingWeightsTooFast)?;
        let self_weight = uids == [uid];
        ensure(self_weight || neuron.permit, Refusal::NeuronNoValidatorPermit)?;
        let mut sorted = uids.to_vec();
        sorted.sort_unstable();
        ensure(sorted.windows(2).all(|pair| pair[0] != pair[1]), Refusal::DuplicateUids)?;
        let exists = |uid: &u16| usize::from(*uid) < self.neurons.len();
        ensure(uids.iter().all(exists), Refusal::UidVecContainInvalidOne)?;
        let least = usize::from(parameters.min_allowed_weights).min(self.neurons.len());
        ensure(self_weight || uids.len() >= least, Refusal::WeightVecLengthIsLow)?;
        let fair = max_limited(&upscaled(values), parameters.max_weights_limit);
        ensure(self_weight || fair, Refusal::MaxWeightExceeded)?;
        Ok(uid)
    }
}

/// Scaled so that the largest is 65535.
fn upscaled(values: &[u16]) -> Vec<u16> {
    let Some(largest) = values.iter().copied().max().filter(|&m| m > 0) else {
        return values.to_vec();
    };
    let largest = u32::from(largest);
    let scale = |&value: &u16| {
        let doubled = u64::from(value) * 65535 * 2 + u64::from(largest);
        (doubled / (2 * u64::from(largest))) as u16
    };
    values.iter().map(scale).collect()
}

/// Whether no weight is a larger share of all than `limit` of 65535.
fn max_limited(values: &[u16], limit: u16) -> bool {
    let total: u64 = values.iter().map(|&v| u64::from(v)).sum();
    let largest = values.iter().copied().max().map_or(0, u64::from);
    limit == u16::MAX || largest * u64::from(u16::MAX) <= total * u64::from(limit)
}
