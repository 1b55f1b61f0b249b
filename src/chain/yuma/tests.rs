use proptest::prelude::*;
use serde::Deserialize;

use super::*;

/// A neuron that owns its rows.
#[derive(Clone, Debug, Deserialize)]
struct Owned {
    stake: u64,
    permit: bool,
    last_update: u64,
    registered_at: u64,
    weights: Vec<(u16, u16)>,
    bonds: Vec<(u16, u16)>,
}

impl Owned {
    fn new(stake: u64) -> Self {
        Self {
            stake,
            permit: false,
            last_update: 0,
            registered_at: 0,
            weights: Vec::new(),
            bonds: Vec::new(),
        }
    }

    fn set(&mut self, block: u64, weights: &[(u16, u16)]) {
        self.weights = weights.to_vec();
        self.last_update = block;
    }

    fn view(&self) -> Neuron<'_> {
        Neuron {
            stake: self.stake,
            permit: self.permit,
            last_update: self.last_update,
            registered_at: self.registered_at,
            weights: &self.weights,
            bonds: &self.bonds,
        }
    }
}

fn run(neurons: &[Owned], parameters: &Hyperparameters, at: &Epoch) -> Vec<Outcome> {
    let views: Vec<Neuron> = neurons.iter().map(Owned::view).collect();
    epoch(&views, parameters, at)
}

/// A subnet that lives on from epoch to epoch, as in subtensor's own tests: tempo 1, no minimum of stake,
/// 1 TAO an epoch.
struct Subnet {
    neurons: Vec<Owned>,
    parameters: Hyperparameters,
    /// The block of the epoch before, 0 at first, as those tests leave it.
    block: u64,
}

impl Subnet {
    fn new(stakes: &[u64]) -> Self {
        let parameters = Hyperparameters {
            tempo: 1,
            min_stake: 0,
            max_validators: stakes.len() as u16,
            ..Hyperparameters::default()
        };
        let neurons = stakes.iter().map(|&stake| Owned::new(stake)).collect();
        let mut subnet = Self { neurons, parameters, block: 0 };
        subnet.epoch(1);
        subnet
    }

    fn epoch(&mut self, block: u64) -> Vec<Outcome> {
        self.block = block;
        let at = Epoch { block, last_epoch: 0, emission: super::super::TAO };
        let outcomes = run(&self.neurons, &self.parameters, &at);
        for (neuron, outcome) in self.neurons.iter_mut().zip(&outcomes) {
            neuron.permit = outcome.permit;
            neuron.bonds = outcome.bonds.clone();
        }
        outcomes
    }

    fn bonds_in(&self, column: u16) -> Vec<u16> {
        self.neurons.iter().map(|n| n.bonds.iter().find(|b| b.0 == column).map_or(0, |b| b.1)).collect()
    }
}

fn emissions(outcomes: &[Outcome]) -> Vec<u64> {
    outcomes.iter().map(|o| o.emission).collect()
}

// The numbers of the tests named `published` are those of subtensor's own epoch tests.

#[test]
fn published_one_neuron_with_a_self_weight_earns_no_incentive() {
    let mut subnet = Subnet::new(&[1_000_000_000]);
    subnet.neurons[0].set(1, &[(0, u16::MAX)]);
    let outcome = &subnet.epoch(1)[0];
    assert_eq!((outcome.consensus, outcome.incentive, outcome.dividends), (0, 0, 0));
    assert_eq!(outcome.emission, 1_000_000_000);
}

#[test]
fn published_ten_neurons_with_self_weights_share_by_stake() {
    let mut subnet = Subnet::new(&[1; 10]);
    for uid in 0..10 {
        subnet.neurons[uid].set(1, &[(uid as u16, u16::MAX)]);
    }
    for outcome in subnet.epoch(1) {
        assert_eq!((outcome.consensus, outcome.incentive, outcome.dividends), (0, 0, 0));
        assert_eq!(outcome.emission, 99_999_999);
    }
}

#[test]
fn published_512_neurons_of_which_64_validate() {
    let stakes: Vec<u64> = (0..512).map(|uid| if uid < 64 { 328_125_000_000_000 } else { 0 }).collect();
    let mut subnet = Subnet::new(&stakes);
    let weights: Vec<(u16, u16)> = (64..512).map(|uid| (uid, u16::MAX)).collect();
    for neuron in &mut subnet.neurons[..64] {
        neuron.set(2, &weights);
    }
    for _ in 0..3 {
        for (uid, outcome) in subnet.epoch(2).into_iter().enumerate() {
            if uid < 64 {
                let zero = (outcome.consensus, outcome.incentive);
                assert_eq!((zero, outcome.dividends), ((0, 0), 1023));
                assert_eq!(outcome.emission, 7_812_500);
            } else {
                let got = (outcome.consensus, outcome.incentive, outcome.dividends);
                assert_eq!(got, (146, 146, 0));
                assert_eq!(outcome.emission, 1_116_071);
            }
        }
        assert_eq!(subnet.bonds_in(64)[..64], [u16::MAX; 64]);
        assert_eq!(subnet.bonds_in(0), [0; 512]);
    }
}

#[test]
fn published_bonds_follow_weights_slowly_over_eight_epochs() {
    let mut subnet = Subnet::new(&[1, 2, 3, 4, 0, 0, 0, 0]);
    for neuron in &mut subnet.neurons[..4] {
        neuron.set(2, &[(4, 16383), (5, 32767), (6, 49149), (7, 65535)]);
    }
    let outcomes = subnet.epoch(2);
    assert_eq!(subnet.bonds_in(4)[..4], [16383, 32767, 49151, 65535]);
    assert_eq!(
        emissions(&outcomes),
        [49999998, 99999999, 150000000, 200000001, 49998779, 100000610, 149996337, 200004272]
    );

    // One validator after another weighs itself alone.
    for (uid, bonds, expected) in [
        (
            0,
            [14582, 32767, 49151, 65535],
            [44998351, 101110561, 151667215, 202223870, 49998779, 100000610, 149996337, 200004272],
        ),
        (
            1,
            [12603, 28321, 49151, 65535],
            [40496805, 90999783, 157929636, 210573773, 49998779, 100000610, 149996337, 200004272],
        ),
        // 0.4 of the stake is no majority: nothing is left, and the emission goes by stake.
        (2, [12602, 28320, 49150, 65535], [99999999, 199999999, 299999999, 399999999, 0, 0, 0, 0]),
    ] {
        let block = subnet.block;
        subnet.neurons[uid as usize].set(block, &[(uid, u16::MAX)]);
        let outcomes = subnet.epoch(block + 1);
        assert_eq!(subnet.bonds_in(7)[..4], bonds, "after validator {uid}");
        assert_eq!(emissions(&outcomes), expected, "after validator {uid}");
    }

    let block = subnet.block;
    subnet.neurons[2].set(block, &[(7, u16::MAX)]);
    for (bonds, expected) in [
        ([10951, 24609, 49150, 65535], [36443733, 81898628, 163565493, 218092144]),
        ([9559, 21482, 49150, 65535], [32799427, 73706612, 168638129, 224855830]),
        ([8376, 18824, 49150, 65535], [29518068, 66336137, 173203134, 230942659]),
    ] {
        let outcomes = subnet.epoch(subnet.block + 1);
        assert_eq!(subnet.bonds_in(7)[..4], bonds);
        assert_eq!(emissions(&outcomes)[..4], expected);
        assert_eq!(emissions(&outcomes)[4..], [0, 0, 0, 500_000_000]);
    }
}

#[test]
fn published_an_inactive_validator_keeps_its_bonds_but_gains_none() {
    let mut subnet = Subnet::new(&[1, 1, 1, 1]);
    let half = [(2, 65535), (3, 65535)];
    subnet.neurons[0].set(1, &half);
    subnet.neurons[1].set(1, &half);
    let outcomes = subnet.epoch(1);
    assert_eq!(emissions(&outcomes), [250_000_000; 4]);
    assert_eq!(outcomes[0].dividends, 32767);
    assert_eq!(subnet.bonds_in(2), [65535, 65535, 0, 0]);

    subnet.neurons[0].set(5002, &half);
    let outcomes = subnet.epoch(5002);
    assert!(outcomes[0].active && !outcomes[1].active);
    assert_eq!((outcomes[0].dividends, outcomes[1].dividends), (36044, 29490));
    assert_eq!(emissions(&outcomes)[..2], [274_999_999, 224_999_999]);
    assert_eq!(subnet.bonds_in(3), [65535, 53619, 0, 0]);

    subnet.neurons[1].set(5002, &half);
    let outcomes = subnet.epoch(5003);
    assert_eq!((outcomes[0].dividends, outcomes[1].dividends), (35716, 29818));
    assert_eq!(emissions(&outcomes)[..2], [272_501_132, 227_498_866]);
    assert_eq!(subnet.bonds_in(3), [65535, 54712, 0, 0]);
}

#[test]
fn published_weights_from_before_a_registration_do_not_count() {
    let mut subnet = Subnet::new(&[1, 1, 1, 1]);
    let weights = [(2, 65535), (3, 32768)];
    for uid in 0..2 {
        subnet.neurons[uid].set(2, &weights);
    }
    for uid in 2..4 {
        subnet.neurons[uid].set(2, &[(uid as u16, u16::MAX)]);
    }
    let outcomes = subnet.epoch(2);
    assert_eq!(emissions(&outcomes), [250_000_000, 250_000_000, 333_331_637, 166_668_361]);

    // Uid 3 is somebody else now.
    subnet.neurons[3] = Owned { registered_at: 2, ..Owned::new(0) };
    subnet.neurons[0].set(3, &weights);
    let outcomes = subnet.epoch(3);
    assert_eq!(emissions(&outcomes), [250_000_000, 250_000_000, 500_000_000, 0]);
    assert_eq!((outcomes[0].dividends, outcomes[1].dividends), (32767, 32767));
    assert_eq!((outcomes[0].vtrust, outcomes[1].vtrust), (43689, 43689));
    assert_eq!(subnet.bonds_in(2)[..2], [65535, 65535]);
}

#[derive(Deserialize)]
struct Case {
    block: u64,
    last_epoch: u64,
    emission: u64,
    parameters: Reduced,
    neurons: Vec<Owned>,
    expected: Vec<Expected>,
}

#[derive(Deserialize)]
struct Reduced {
    tempo: u16,
    activity_cutoff: u16,
    max_validators: u16,
    min_stake: u64,
    kappa: u16,
    bonds_moving_average: u64,
    bonds_penalty: u16,
}

#[derive(Deserialize)]
struct Expected {
    active: bool,
    permit: bool,
    consensus: f64,
    incentive: f64,
    dividends: f64,
    vtrust: f64,
    server_emission: f64,
    validator_emission: f64,
    bonds: Option<Vec<f64>>,
}

/// Cases of `tests/fixtures/yuma.py`, which is exact and knows nothing of this code.
#[test]
fn an_independent_reference_agrees() {
    let text = include_str!("../../../tests/fixtures/yuma.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 60);
    let mut earning = 0;
    for (number, case) in cases.iter().enumerate() {
        let p = &case.parameters;
        let parameters = Hyperparameters {
            tempo: p.tempo,
            activity_cutoff: p.activity_cutoff,
            max_validators: p.max_validators,
            min_stake: p.min_stake,
            kappa: p.kappa,
            bonds_moving_average: p.bonds_moving_average,
            bonds_penalty: p.bonds_penalty,
            ..Hyperparameters::default()
        };
        let at = Epoch { block: case.block, last_epoch: case.last_epoch, emission: case.emission };
        let outcomes = run(&case.neurons, &parameters, &at);
        assert_eq!(outcomes.len(), case.expected.len());
        for (uid, (got, expected)) in outcomes.iter().zip(&case.expected).enumerate() {
            let what = format!("case {number}, uid {uid}: {got:?}");
            let near = |got: u16, expected: f64| {
                assert!((f64::from(got) - expected * 65535.0).abs() <= 1.5, "{expected} {what}");
            };
            assert_eq!((got.active, got.permit), (expected.active, expected.permit), "{what}");
            near(got.consensus, expected.consensus);
            near(got.incentive, expected.incentive);
            near(got.dividends, expected.dividends);
            near(got.vtrust, expected.vtrust);
            let tolerance = 1.5 + case.emission as f64 * 1e-7;
            for (got, expected) in [
                (got.server_emission, expected.server_emission),
                (got.validator_emission, expected.validator_emission),
            ] {
                assert!((got as f64 - expected).abs() <= tolerance, "{expected} {what}");
            }
            if let Some(bonds) = &expected.bonds {
                for (to, &bond) in bonds.iter().enumerate() {
                    let found = got.bonds.iter().find(|b| usize::from(b.0) == to);
                    near(found.map_or(0, |b| b.1), bond);
                }
            }
            earning += usize::from(got.incentive > 0);
        }
    }
    assert!(earning > 50, "the cases are not all trivial: {earning}");
}

fn neuron_strategy(n: u16) -> impl Strategy<Value = Owned> {
    let row = move || {
        prop::collection::btree_map(0..n, 0u16.., 0..=usize::from(n))
            .prop_map(|map| map.into_iter().collect::<Vec<_>>())
    };
    let stake = prop_oneof![Just(0), 1u64..1000, 1u64..(21_000_000 * crate::chain::TAO)];
    (stake, any::<bool>(), 0u64..2000, 0u64..2000, row(), row()).prop_map(
        |(stake, permit, last_update, registered_at, weights, bonds)| Owned {
            stake,
            permit,
            last_update,
            registered_at,
            weights,
            bonds,
        },
    )
}

fn subnet_strategy() -> impl Strategy<Value = (Vec<Owned>, Hyperparameters, Epoch)> {
    let neurons = (1u16..12).prop_flat_map(|n| prop::collection::vec(neuron_strategy(n), usize::from(n)));
    let parameters = (0u16.., 0u64..=1_000_000, 0u16.., 0u16..3000, 0u64..2000).prop_map(
        |(kappa, bonds_moving_average, bonds_penalty, activity_cutoff, min_stake)| Hyperparameters {
            kappa,
            bonds_moving_average,
            bonds_penalty,
            activity_cutoff,
            min_stake,
            ..Hyperparameters::default()
        },
    );
    let at = (1500u64..2500, 0u64..2500, 0u64..1_000_000_000_000)
        .prop_map(|(block, last_epoch, emission)| Epoch { block, last_epoch, emission });
    (neurons, parameters, at)
}

fn total(values: impl Iterator<Item = u16>) -> u64 {
    values.map(u64::from).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_paid_twice((neurons, parameters, at) in subnet_strategy()) {
        let outcomes = run(&neurons, &parameters, &at);
        prop_assert!(total(outcomes.iter().map(|o| o.incentive)) <= 65535);
        prop_assert!(total(outcomes.iter().map(|o| o.dividends)) <= 65535);
        prop_assert!(total(outcomes.iter().map(|o| o.stake_weight)) <= 65535);
        let paid: u64 = outcomes.iter().map(|o| o.server_emission + o.validator_emission).sum();
        prop_assert!(paid <= at.emission);
        let paid: u64 = outcomes.iter().map(|o| o.emission).sum();
        prop_assert!(paid <= at.emission);
        for (outcome, neuron) in outcomes.iter().zip(&neurons) {
            // Whoever has no permit and no bonds from an earlier one earns no dividends.
            if !neuron.permit && neuron.bonds.is_empty() {
                prop_assert_eq!(outcome.dividends, 0);
                prop_assert_eq!(outcome.vtrust, 0);
            }
        }
    }

    #[test]
    fn renumbering_the_neurons_renumbers_the_result(
        (mut neurons, parameters, at) in subnet_strategy(),
        seed in any::<u64>(),
    ) {
        let n = neurons.len();
        // There are permits for everybody, so that ties among equal stakes do not matter.
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| {
            *blake3::hash(&[seed.to_le_bytes(), (i as u64).to_le_bytes()].concat()).as_bytes()
        });
        let place: Vec<u16> =
            (0..n).map(|uid| order.iter().position(|&o| o == uid).unwrap() as u16).collect();
        let before = run(&neurons, &parameters, &at);
        let rename = |row: &[(u16, u16)]| -> Vec<(u16, u16)> {
            row.iter().map(|&(to, value)| (place[usize::from(to)], value)).collect()
        };
        for neuron in &mut neurons {
            neuron.weights = rename(&neuron.weights);
            neuron.bonds = rename(&neuron.bonds);
        }
        let moved: Vec<Owned> = order.iter().map(|&uid| neurons[uid].clone()).collect();
        let after = run(&moved, &parameters, &at);
        for uid in 0..n {
            let mut expected = before[uid].clone();
            expected.bonds = rename(&expected.bonds);
            expected.bonds.sort();
            let mut got = after[usize::from(place[uid])].clone();
            got.bonds.sort();
            prop_assert_eq!(got, expected);
        }
    }

    /// Three miners, an honest majority that agrees, a minority that says what it likes.
    #[test]
    fn a_minority_cannot_raise_a_miner_above_what_the_majority_gives(
        honest in prop::collection::vec(1u16.., 3),
        lies in prop::collection::vec(0u16.., 3),
        share in 0.01f64..0.499,
    ) {
        let honest_weights: Vec<(u16, u16)> = (2..5).zip(honest).collect();
        let total_stake = 1_000_000_000_000f64;
        let mut subnet = Subnet::new(&[
            (total_stake * (1.0 - share)) as u64, (total_stake * share) as u64, 0, 0, 0,
        ]);
        subnet.neurons[0].set(2, &honest_weights);
        subnet.neurons[1].set(2, &honest_weights);
        let agreed = subnet.epoch(2);
        let lies: Vec<(u16, u16)> = (2..5).zip(lies).collect();
        subnet.neurons[1].set(3, &lies);
        let outcomes = subnet.epoch(3);
        for uid in 2..5 {
            prop_assert!(outcomes[uid].consensus <= agreed[uid].consensus);
        }
        prop_assert!(outcomes[1].vtrust <= agreed[1].vtrust);
        prop_assert_eq!(outcomes[0].vtrust, agreed[0].vtrust);
    }
}
