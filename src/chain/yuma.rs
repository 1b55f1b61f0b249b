//! Yuma consensus: one epoch of a subnet, as subtensor computes it (its original form, without liquid
//! alpha; Yuma 3 off).
//!
//! A pure function: what stake, weights and bonds there were goes in, what everybody earns comes out. The
//! arithmetic is subtensor's, fixed point with 32 fractional bits that rounds down, so that results agree to
//! the last bit on every machine and with the real chain's.
//!
//! In short: weights of validators with a permit count, self-weights and weights from before a neuron's
//! registration do not, and each row is scaled to 1. A miner's consensus is the largest weight that
//! validators with a majority (kappa) of the active stake support; weights are clipped to it. Clipped
//! weights times stake are the incentive. Bonds follow the clipped weights slowly, and a validator's
//! dividends are its bonds times the incentive. What a validator had clipped it loses in trust (vtrust).

mod fixed;
#[cfg(test)]
mod tests;

use fixed::{
    Fixed, add_rows, clip, normalize, normalize_columns, normalize_rows, scale_columns_to_maximum, sum,
    times_columns, times_rows,
};

use super::Hyperparameters;

/// One neuron before the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Neuron<'a> {
    /// Rao.
    pub stake: u64,
    /// Whether it had a validator permit.
    pub permit: bool,
    /// The block of its last weight set.
    pub last_update: u64,
    pub registered_at: u64,
    /// (uid, weight).
    pub weights: &'a [(u16, u16)],
    /// (uid, bond), of the last epoch.
    pub bonds: &'a [(u16, u16)],
}

/// When the epoch takes place, and what it distributes.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    pub block: u64,
    /// The block of the epoch before; 0 when there was none.
    pub last_epoch: u64,
    /// Rao.
    pub emission: u64,
}

/// One neuron after the epoch. A `u16` of 65535 is 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub active: bool,
    pub permit: bool,
    pub consensus: u16,
    pub incentive: u16,
    pub dividends: u16,
    pub vtrust: u16,
    /// Share of the stake that counts.
    pub stake_weight: u16,
    /// Paid for incentive, rao.
    pub server_emission: u64,
    /// Paid for dividends, rao.
    pub validator_emission: u64,
    /// Of both together, rounded once.
    pub emission: u64,
    /// (uid, bond), for the next epoch.
    pub bonds: Vec<(u16, u16)>,
}

/// Rows of (column, value), columns ascending, zeros left out.
type Matrix = Vec<Vec<(usize, Fixed)>>;

/// Runs one epoch. Weights and bonds that name a uid that does not exist are left out.
pub fn epoch(neurons: &[Neuron], parameters: &Hyperparameters, epoch: &Epoch) -> Vec<Outcome> {
    let stake = counted_stake(neurons, parameters.min_stake);
    let active: Vec<bool> = neurons
        .iter()
        .map(|n| n.last_update.saturating_add(u64::from(parameters.activity_cutoff)) >= epoch.block)
        .collect();
    let permits = largest(&stake, usize::from(parameters.max_validators));

    let mut active_stake = stake.clone();
    for (uid, value) in active_stake.iter_mut().enumerate() {
        if !active[uid] || !neurons[uid].permit {
            *value = Fixed::ZERO;
        }
    }
    normalize(&mut active_stake);

    let weights = counted_weights(neurons);
    let consensus = consensus(&active_stake, &weights, Fixed::ratio(parameters.kappa.into(), 65535));
    let clipped = clip(&weights, &consensus);
    let vtrust: Vec<Fixed> = clipped.iter().map(|row| sum(row.iter().map(|e| e.1))).collect();
    let mut incentive = times_rows(&clipped, &active_stake, neurons.len());
    normalize(&mut incentive);

    let mut bonds = next_bonds(neurons, parameters, epoch, &active_stake, &weights, &clipped);
    let mut dividends = times_columns(&bonds, &incentive);
    normalize(&mut dividends);
    scale_columns_to_maximum(&mut bonds, neurons.len());

    let shares = Shares::new(&incentive, &dividends, &active_stake, &stake);
    let row = |uid: usize| match (permits[uid], neurons[uid].permit) {
        (true, _) => bonds[uid].iter().map(|&(to, bond)| (to as u16, bond.to_u16())).collect(),
        // A permit that is lost takes the bonds with it.
        (false, true) => Vec::new(),
        (false, false) => neurons[uid].bonds.to_vec(),
    };
    (0..neurons.len())
        .map(|uid| Outcome {
            active: active[uid],
            permit: permits[uid],
            consensus: consensus[uid].to_u16(),
            incentive: incentive[uid].to_u16(),
            dividends: dividends[uid].to_u16(),
            vtrust: vtrust[uid].to_u16(),
            stake_weight: stake[uid].to_u16(),
            server_emission: shares.server[uid].of(epoch.emission),
            validator_emission: shares.validator[uid].of(epoch.emission),
            emission: shares.both[uid].of(epoch.emission),
            bonds: row(uid),
        })
        .collect()
}

/// Stake that reaches the minimum, as shares of 1.
fn counted_stake(neurons: &[Neuron], minimum: u64) -> Vec<Fixed> {
    let counted = |n: &Neuron| if n.stake < minimum { 0 } else { n.stake };
    let total: u128 = neurons.iter().map(|n| u128::from(counted(n))).sum();
    neurons.iter().map(|n| Fixed::ratio(counted(n).into(), total.max(1))).collect()
}

/// Which of the values are among the `count` largest and not zero; of equal ones the later.
fn largest(values: &[Fixed], count: usize) -> Vec<bool> {
    let mut chosen: Vec<bool> = values.iter().map(|&v| v > Fixed::ZERO).collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&uid| values[uid]);
    for &uid in order.iter().take(values.len().saturating_sub(count)) {
        chosen[uid] = false;
    }
    chosen
}

/// Weights that count, each row scaled to 1.
fn counted_weights(neurons: &[Neuron]) -> Matrix {
    let mut weights: Matrix = neurons
        .iter()
        .enumerate()
        .map(|(uid, neuron)| {
            let counts = |to: usize| {
                neuron.permit
                    && to != uid
                    && neurons.get(to).is_some_and(|n| neuron.last_update > n.registered_at)
            };
            row(neuron.weights, counts)
        })
        .collect();
    normalize_rows(&mut weights);
    weights
}

/// A stored row as it is computed with: columns ascending, the last of repeated ones, no zeros.
fn row(stored: &[(u16, u16)], counts: impl Fn(usize) -> bool) -> Vec<(usize, Fixed)> {
    let sorted: std::collections::BTreeMap<usize, u16> =
        stored.iter().map(|&(to, value)| (usize::from(to), value)).collect();
    sorted
        .into_iter()
        .filter(|&(to, value)| value > 0 && counts(to))
        .map(|(to, value)| (to, Fixed::integer(value)))
        .collect()
}

/// For each column the smallest score at which validators with more than `1 - kappa` of the stake agree
/// that it is enough: the stake-weighted median for a kappa of one half.
fn consensus(stake: &[Fixed], weights: &Matrix, kappa: Fixed) -> Vec<Fixed> {
    let mut shares = stake.to_vec();
    normalize(&mut shares);
    let total = sum(shares.iter().copied());
    let minority = total.minus(kappa);
    let mut scores: Vec<Vec<(Fixed, Fixed)>> = vec![Vec::new(); stake.len()];
    let mut named = vec![Fixed::ZERO; stake.len()];
    for (row, &share) in weights.iter().zip(&shares).filter(|(_, share)| **share > Fixed::ZERO) {
        for &(to, score) in row {
            scores[to].push((score, share));
            named[to] = named[to].plus(share);
        }
    }
    scores
        .into_iter()
        .zip(named)
        .map(|(mut column, named)| {
            column.sort();
            // Everybody else gave it nothing.
            let mut agreeing = total.minus(named);
            if agreeing > minority || column.is_empty() {
                return Fixed::ZERO;
            }
            let highest = column.last().expect("not empty").0;
            for (score, share) in column {
                agreeing = agreeing.plus(share);
                if agreeing > minority {
                    return score;
                }
            }
            highest
        })
        .collect()
}

/// The exponential moving average of bonds, each column scaled to 1.
fn next_bonds(
    neurons: &[Neuron],
    parameters: &Hyperparameters,
    epoch: &Epoch,
    active_stake: &[Fixed],
    weights: &Matrix,
    clipped: &Matrix,
) -> Matrix {
    let n = neurons.len();
    let since = match epoch.last_epoch {
        0 => epoch.block.saturating_sub(parameters.tempo.into()),
        last => last.saturating_add(1),
    };
    // Bonds in a neuron that registered since belong to its predecessor.
    let counts = |to: usize| neurons.get(to).is_some_and(|n| n.registered_at < since);
    let mut old: Matrix = neurons.iter().map(|neuron| row(neuron.bonds, counts)).collect();
    normalize_columns(&mut old, n);

    let penalty = Fixed::ratio(parameters.bonds_penalty.into(), 65535);
    let mut delta: Matrix = fixed::between(weights, clipped, penalty);
    for (row, &stake) in delta.iter_mut().zip(active_stake) {
        for (_, value) in row {
            *value = value.times(stake);
        }
    }
    normalize_columns(&mut delta, n);

    let kept = Fixed::ratio(parameters.bonds_moving_average.into(), 1_000_000).min(Fixed::ONE);
    let mut bonds = add_rows(&delta, Fixed::ONE.minus(kept), &old, kept);
    normalize_columns(&mut bonds, n);
    bonds
}

/// How the emission is divided.
struct Shares {
    server: Vec<Fixed>,
    validator: Vec<Fixed>,
    both: Vec<Fixed>,
}

impl Shares {
    fn new(incentive: &[Fixed], dividends: &[Fixed], active_stake: &[Fixed], stake: &[Fixed]) -> Self {
        let mut both: Vec<Fixed> = incentive.iter().zip(dividends).map(|(i, d)| i.plus(*d)).collect();
        let total = sum(both.iter().copied());
        if total == Fixed::ZERO {
            // Nobody set weights that count: it goes to the validators by stake.
            let idle = active_stake.iter().all(|&s| s == Fixed::ZERO);
            let by_stake = if idle { stake } else { active_stake }.to_vec();
            return Self { server: incentive.to_vec(), validator: by_stake.clone(), both: by_stake };
        }
        normalize(&mut both);
        let share = |values: &[Fixed]| values.iter().map(|v| v.over(total)).collect();
        Self { server: share(incentive), validator: share(dividends), both }
    }
}
