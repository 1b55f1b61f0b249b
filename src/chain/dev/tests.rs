//! The chain without its clock: state, pool and ledger.

use std::time::Duration;

use argus_protocols::{Hotkey, HotkeyPair};
use proptest::prelude::*;

use super::{
    ledger::Ledger,
    limits,
    node::Node,
    settings::Rules,
    state::State,
    wire::{Block, Call, Extrinsic, Payload, Status},
};
use crate::{
    chain::{Hash, Refusal, TAO},
    store::Store,
};

fn pair(number: u8) -> HotkeyPair {
    HotkeyPair::from_seed(&[number; 32])
}

fn hotkey(number: u8) -> Hotkey {
    pair(number).hotkey()
}

fn rules() -> Rules {
    Rules { tempo: Some(4), weights_rate_limit: Some(3), ..Rules::default() }
}

/// A chain in memory that makes one block a call.
struct Sandbox {
    state: State,
    blocks: Vec<Block>,
}

impl Sandbox {
    fn new(rules: Rules) -> Self {
        let genesis = rules.genesis(Hash([9; 32])).unwrap();
        Self { state: State::new(genesis), blocks: Vec::new() }
    }

    fn sign(&self, who: u8, call: Call) -> Extrinsic {
        let nonce = self.state.account(&hotkey(who)).nonce;
        let payload = Payload { genesis: self.state.genesis_hash, nonce, id: 0, call };
        Extrinsic::sign(&pair(who), &payload)
    }

    fn block(&mut self, extrinsics: Vec<Extrinsic>) -> Vec<Option<Refusal>> {
        let block = self.state.build(extrinsics, 1000);
        let outcomes = self.state.apply(&block);
        self.blocks.push(block);
        outcomes
    }

    /// One call in a block of its own.
    fn call(&mut self, who: u8, call: Call) -> Result<(), Refusal> {
        let extrinsic = self.sign(who, call);
        match self.block(vec![extrinsic]).pop().expect("the extrinsic is in the block") {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }

    fn validator(&mut self, who: u8, stake: u64) {
        self.call(who, Call::Faucet { amount: stake }).unwrap();
        self.call(who, Call::Register { netuid: 1 }).unwrap();
        self.call(who, Call::AddStake { netuid: 1, amount: stake }).unwrap();
    }

    fn set(&mut self, who: u8, uids: &[u16], values: &[u16]) -> Result<(), Refusal> {
        let (uids, values) = (uids.to_vec(), values.to_vec());
        self.call(who, Call::SetWeights { netuid: 1, uids, values, version_key: 0 })
    }

    fn idle(&mut self, blocks: u64) {
        for _ in 0..blocks {
            self.block(Vec::new());
        }
    }
}

#[test]
fn balances_and_stakes_add_up() {
    let mut chain = Sandbox::new(Rules {
        registration_cost: Some(5 * TAO),
        faucet: Some(100 * TAO),
        // No epoch shall pay anything in between.
        tempo: Some(1000),
        ..rules()
    });
    let amount = 3 * TAO;
    let register = Call::Register { netuid: 1 };
    assert_eq!(chain.call(1, register.clone()), Err(Refusal::NotEnoughBalanceToStake));
    assert_eq!(chain.call(1, Call::Faucet { amount: 101 * TAO }), Err(Refusal::FaucetLimitExceeded));
    assert_eq!(chain.call(1, Call::Faucet { amount: 1 }), Err(Refusal::AmountTooLow));
    chain.call(1, Call::Faucet { amount: 10 * TAO }).unwrap();
    let early = Call::AddStake { netuid: 1, amount };
    assert_eq!(chain.call(1, early.clone()), Err(Refusal::HotKeyNotRegisteredInSubNet));
    chain.call(1, register.clone()).unwrap();
    assert_eq!(chain.call(1, register), Err(Refusal::HotKeyAlreadyRegisteredInSubNet));
    assert_eq!(chain.call(1, Call::Register { netuid: 7 }), Err(Refusal::SubnetNotExists));
    chain.call(1, early).unwrap();
    let much = Call::AddStake { netuid: 1, amount: 3 * TAO };
    assert_eq!(chain.call(1, much), Err(Refusal::NotEnoughBalanceToStake));
    let back = Call::RemoveStake { netuid: 1, amount: 4 * TAO };
    assert_eq!(chain.call(1, back), Err(Refusal::NotEnoughStakeToWithdraw));
    chain.call(1, Call::RemoveStake { netuid: 1, amount: TAO }).unwrap();
    assert_eq!(chain.state.account(&hotkey(1)).balance, 3 * TAO);
    assert_eq!(chain.state.subnets[&1].stake_of(&hotkey(1)), 2 * TAO);
    chain.call(1, Call::RemoveStake { netuid: 1, amount: 2 * TAO }).unwrap();
    assert!(chain.state.subnets[&1].stake.is_empty());
    // Every one of them used up its nonce.
    assert_eq!(chain.state.account(&hotkey(1)).nonce, 13);
    let none = Sandbox::new(Rules { faucet: Some(0), ..rules() }).call(1, Call::Faucet { amount: 1 });
    assert_eq!(none, Err(Refusal::FaucetDisabled));
}

#[test]
fn weights_are_refused_by_subtensors_names_and_in_its_order() {
    let mut chain = Sandbox::new(Rules {
        version_key: Some(5),
        min_allowed_weights: Some(2),
        max_weights_limit: Some(40_000),
        ..rules()
    });
    let set = |chain: &mut Sandbox, uids: &[u16], values: &[u16], version_key| {
        let (uids, values) = (uids.to_vec(), values.to_vec());
        chain.call(1, Call::SetWeights { netuid: 1, uids, values, version_key })
    };
    let wrong = set(&mut chain, &[0], &[], 5);
    assert_eq!(wrong, Err(Refusal::WeightVecNotEqualSize));
    let many = set(&mut chain, &[0], &[1], 5);
    assert_eq!(many, Err(Refusal::UidsLengthExceedUidsInSubNet));
    chain.call(2, Call::Register { netuid: 1 }).unwrap();
    chain.call(3, Call::Register { netuid: 1 }).unwrap();
    assert_eq!(set(&mut chain, &[0], &[1], 5), Err(Refusal::HotKeyNotRegisteredInSubNet));
    chain.validator(1, 999 * TAO);
    assert_eq!(set(&mut chain, &[0], &[1], 5), Err(Refusal::NotEnoughStakeToSetWeights));
    chain.call(1, Call::Faucet { amount: 2 * TAO }).unwrap();
    chain.call(1, Call::AddStake { netuid: 1, amount: 2 * TAO }).unwrap();
    assert_eq!(set(&mut chain, &[0], &[1], 4), Err(Refusal::IncorrectWeightVersionKey));
    chain.idle(4);
    assert!(chain.state.subnets[&1].neurons[2].permit, "an epoch gave a permit");
    assert_eq!(set(&mut chain, &[0, 0], &[1, 1], 5), Err(Refusal::DuplicateUids));
    assert_eq!(set(&mut chain, &[0, 9], &[1, 1], 5), Err(Refusal::UidVecContainInvalidOne));
    assert_eq!(set(&mut chain, &[0], &[1], 5), Err(Refusal::WeightVecLengthIsLow));
    assert_eq!(set(&mut chain, &[0, 1], &[9, 1], 5), Err(Refusal::MaxWeightExceeded));
    set(&mut chain, &[0, 1], &[100, 100], 5).unwrap();
    assert_eq!(set(&mut chain, &[0, 1], &[1, 1], 5), Err(Refusal::SettingWeightsTooFast));
    assert_eq!(chain.state.subnets[&1].neurons[2].weights, [(0, 65535), (1, 65535)]);
    chain.idle(1);
    set(&mut chain, &[0, 1], &[3, 2], 6).unwrap();
    assert_eq!(chain.state.subnets[&1].neurons[2].weights, [(0, 65535), (1, 43690)]);
}

#[test]
fn a_fresh_validator_waits_for_the_rate_limit_and_its_permit() {
    let mut chain = Sandbox::new(Rules { weights_rate_limit: Some(10), tempo: Some(50), ..rules() });
    chain.call(2, Call::Register { netuid: 1 }).unwrap();
    chain.validator(1, 2000 * TAO);
    assert_eq!(chain.set(1, &[0], &[1]), Err(Refusal::SettingWeightsTooFast));
    chain.idle(10);
    assert_eq!(chain.set(1, &[0], &[1]), Err(Refusal::NeuronNoValidatorPermit));
    // A lone self-weight needs no permit.
    chain.set(1, &[1], &[1]).unwrap();
    chain.idle(50);
    chain.set(1, &[0], &[1]).unwrap();
}

#[test]
fn an_epoch_pays_miners_by_incentive_and_validators_by_dividends() {
    let mut chain = Sandbox::new(Rules { emission: Some(TAO), ..rules() });
    for miner in [10, 11] {
        chain.call(miner, Call::Register { netuid: 1 }).unwrap();
    }
    chain.validator(1, 3000 * TAO);
    chain.validator(2, 2000 * TAO);
    chain.idle(4);
    chain.set(1, &[0, 1], &[3, 1]).unwrap();
    chain.set(2, &[0, 1], &[3, 1]).unwrap();
    let epoch = chain.state.subnets[&1].next_epoch();
    chain.idle(epoch - chain.state.head.number);
    let graph = chain.state.metagraph(1).unwrap();
    assert_eq!((graph.block, graph.last_epoch, graph.next_epoch), (epoch, epoch, epoch + 4));
    let [miner, lesser, larger, smaller] = &graph.neurons[..] else { panic!("{graph:?}") };
    assert!((i32::from(miner.incentive) - 49151).abs() < 3, "{miner:?}");
    assert!((i32::from(lesser.incentive) - 16384).abs() < 3, "{lesser:?}");
    assert!(larger.dividends > smaller.dividends && smaller.dividends > 0);
    assert!(larger.vtrust > 65530 && larger.permit && larger.active && !miner.permit);
    assert_eq!(miner.stake, 0, "incentives are free balance");
    let earned = chain.state.account(&hotkey(10)).balance;
    assert_eq!(earned, miner.emission);
    assert!((1_499_000_000..=1_500_000_000).contains(&earned), "3/4 of half of 4 TAO: {earned}");
    let paid: u64 = graph.neurons.iter().map(|n| n.emission).sum();
    assert!(paid <= 4 * TAO && paid > 4 * TAO - 100);
}

#[test]
fn a_full_subnet_replaces_who_earned_least_once_no_longer_immune() {
    let mut chain = Sandbox::new(Rules { max_neurons: Some(2), immunity_period: Some(6), ..rules() });
    chain.validator(1, 2000 * TAO);
    chain.call(2, Call::Register { netuid: 1 }).unwrap();
    let register = Call::Register { netuid: 1 };
    assert_eq!(chain.call(3, register.clone()), Err(Refusal::NoNeuronIdAvailable));
    chain.idle(6);
    chain.set(1, &[1], &[1]).unwrap();
    chain.call(3, register).unwrap();
    let subnet = &chain.state.subnets[&1];
    assert_eq!(subnet.uid_of(&hotkey(3)), Some(1));
    assert_eq!(subnet.uid_of(&hotkey(2)), None);
    assert_eq!(subnet.uid_of(&hotkey(1)), Some(0), "who holds a permit stays longest");
    // The weights were meant for the one before.
    let epoch = subnet.next_epoch();
    chain.idle(epoch - chain.state.head.number);
    assert_eq!(chain.state.metagraph(1).unwrap().neurons[1].incentive, 0);
}

#[test]
fn only_what_is_for_this_chain_and_in_order_gets_into_a_block() {
    let mut chain = Sandbox::new(rules());
    let call = Call::Faucet { amount: TAO };
    let sign =
        |genesis, nonce| Extrinsic::sign(&pair(1), &Payload { genesis, nonce, id: 0, call: call.clone() });
    let genesis = chain.state.genesis_hash;
    let mut garbage = sign(genesis, 0);
    garbage.payload = "{".into();
    let block = chain.state.build(
        vec![garbage, sign(Hash([0; 32]), 0), sign(genesis, 1), sign(genesis, 0), sign(genesis, 1)],
        1,
    );
    assert_eq!(block.extrinsics.len(), 2);
    assert_eq!(chain.state.apply(&block), [None, None]);
    assert_eq!(chain.state.account(&hotkey(1)).balance, 2 * TAO);
    let again = chain.state.build(block.extrinsics.clone(), 1);
    assert!(again.extrinsics.is_empty(), "a replay");
    assert!(again.parent == block.hash && again.number == 2 && again.time_ms >= block.time_ms);
}

fn open(path: &std::path::Path) -> Node {
    let store = Store::open(path).unwrap();
    let (ledger, state) = Ledger::open(store, &Rules::default(), Hash([3; 32])).unwrap();
    Node::new(ledger, state, Duration::from_secs(1))
}

fn sign(node: &Node, who: u8, nonce: u64, call: Call) -> Extrinsic {
    let genesis = node.state().genesis_hash;
    Extrinsic::sign(&pair(who), &Payload { genesis, nonce, id: 0, call })
}

fn refusal(result: Result<Hash, super::node::SubmitError>) -> Refusal {
    match result.unwrap_err() {
        super::node::SubmitError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn the_pool_keeps_order_refuses_replays_and_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let faucet = || Call::Faucet { amount: TAO };
    let first = sign(&node, 1, 0, faucet());
    let hash = node.submit(first.clone()).unwrap();
    assert_eq!(node.submit(first.clone()).unwrap(), hash, "the same again is harmless");
    assert_eq!(node.status(&hash).unwrap(), Status::Pending);
    assert_eq!(node.account(hotkey(1)).nonce, 1, "waiting ones count");
    let other = sign(&node, 1, 0, Call::Faucet { amount: 2 * TAO });
    assert_eq!(refusal(node.submit(other)), Refusal::Stale);
    assert_eq!(refusal(node.submit(sign(&node, 1, 2, faucet()))), Refusal::Future);
    let mut forged = sign(&node, 2, 0, faucet());
    forged.signer = hotkey(3);
    assert_eq!(refusal(node.submit(forged)), Refusal::BadProof);
    let elsewhere = Payload { genesis: Hash([0; 32]), nonce: 0, id: 0, call: faucet() };
    let elsewhere = Extrinsic::sign(&pair(2), &elsewhere);
    assert_eq!(refusal(node.submit(elsewhere)), Refusal::AncientBirthBlock);
    let early = sign(&node, 2, 0, Call::AddStake { netuid: 1, amount: TAO });
    assert_eq!(refusal(node.submit(early)), Refusal::HotKeyNotRegisteredInSubNet);
    for nonce in 1..limits::POOL_OF_ONE as u64 {
        node.submit(sign(&node, 1, nonce, faucet())).unwrap();
    }
    let one_more = sign(&node, 1, limits::POOL_OF_ONE as u64, faucet());
    assert_eq!(refusal(node.submit(one_more)), Refusal::ExhaustsResources);

    node.produce(5).unwrap();
    assert_eq!(node.status(&hash).unwrap(), Status::Included { block: 1, refusal: None });
    assert_eq!(node.submit(first).unwrap(), hash, "included, and still harmless");
    let account = node.account(hotkey(1));
    assert_eq!(account.balance, limits::POOL_OF_ONE as u64 * TAO);
    assert_eq!(account.nonce, limits::POOL_OF_ONE as u64);
    assert_eq!(node.status(&Hash([1; 32])).unwrap(), Status::Unknown);
    assert_eq!(node.block(1).unwrap().unwrap().extrinsics.len(), limits::POOL_OF_ONE);
    assert_eq!(node.block(2).unwrap(), None);
}

#[test]
fn a_reopened_chain_is_where_it_was_with_and_without_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = {
        let node = open(dir.path());
        node.submit(sign(&node, 1, 0, Call::Faucet { amount: 5000 * TAO })).unwrap();
        node.submit(sign(&node, 1, 1, Call::Register { netuid: 1 })).unwrap();
        node.submit(sign(&node, 1, 2, Call::AddStake { netuid: 1, amount: TAO })).unwrap();
        node.produce(5).unwrap();
        node.state()
    };
    for blocks in [3, limits::SNAPSHOT_BLOCKS, 50] {
        let node = open(dir.path());
        assert_eq!(node.state(), expected);
        for _ in 0..blocks {
            node.produce(9).unwrap();
        }
        expected = node.state();
    }
    let store = Store::open(dir.path()).unwrap();
    let other = Rules { tempo: Some(99), ..Rules::default() };
    let error = Ledger::open(store, &other, Hash([3; 32])).unwrap_err();
    assert!(error.to_string().contains("made with tempo 20, asked is 99"), "{error}");
}

#[derive(Clone, Debug)]
struct Step {
    who: u8,
    call: Call,
}

fn step() -> impl Strategy<Value = Step> {
    let amount = prop_oneof![0u64..5000, Just(1500 * TAO), Just(u64::MAX)];
    let row = prop::collection::vec((0u16..6, any::<u16>()), 0..6);
    let netuid = prop_oneof![9 => Just(1u16), 1 => Just(2u16)];
    let call = (0u8..9, amount, row, netuid).prop_map(|(kind, amount, row, netuid)| match kind {
        0 => Call::Faucet { amount },
        1 => Call::Faucet { amount: 2000 * TAO },
        2 | 3 => Call::Register { netuid },
        4 => Call::AddStake { netuid, amount },
        5 => Call::RemoveStake { netuid, amount },
        _ => {
            let (uids, values) = row.into_iter().unzip();
            Call::SetWeights { netuid, uids, values, version_key: 0 }
        }
    });
    (1u8..5, call).prop_map(|(who, call)| Step { who, call })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is called: replaying gives the same state and outcomes, a refusal changes nothing but the
    /// nonce, and no rao comes from nowhere.
    #[test]
    fn replay_is_exact_and_money_is_conserved(steps in prop::collection::vec(step(), 1..60)) {
        let fixed = Rules { weights_rate_limit: Some(1), max_neurons: Some(3),
            immunity_period: Some(5), ..rules() };
        let mut chain = Sandbox::new(fixed.clone());
        let mut outcomes = Vec::new();
        let mut given = 0u128;
        for step in steps {
            let before = chain.state.clone();
            let extrinsic = chain.sign(step.who, step.call.clone());
            let outcome = chain.block(vec![extrinsic]);
            prop_assert_eq!(outcome.len(), 1);
            if outcome[0].is_some() {
                // The same block without the call.
                let mut idle = before;
                let block = idle.build(Vec::new(), 1000);
                idle.apply(&block);
                idle.accounts.entry(hotkey(step.who)).or_default().nonce += 1;
                prop_assert_eq!(&idle.accounts, &chain.state.accounts);
                prop_assert_eq!(&idle.subnets, &chain.state.subnets);
            } else if let Call::Faucet { amount } = step.call {
                given += u128::from(amount);
            }
            outcomes.push(outcome);
        }
        let balances: u128 = chain.state.accounts.values().map(|a| u128::from(a.balance)).sum();
        let stakes: u128 =
            chain.state.subnets.values().flat_map(|s| s.stake.values()).map(|s| u128::from(*s)).sum();
        let minted = u128::from(chain.state.head.number) * u128::from(TAO);
        prop_assert!(balances + stakes >= given);
        prop_assert!(balances + stakes <= given + minted);

        let mut again = Sandbox::new(fixed);
        for (block, outcome) in chain.blocks.iter().zip(outcomes) {
            let built = again.state.build(block.extrinsics.clone(), block.time_ms);
            prop_assert_eq!(&built, block);
            prop_assert_eq!(again.state.apply(&built), outcome);
        }
        prop_assert_eq!(again.state, chain.state);
    }
}
