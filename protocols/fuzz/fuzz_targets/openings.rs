//! Challenges and openings: what a path proves depends on where it stands and on nothing else.
#![no_main]

use argus_protocols::{Challenge, Commitment, Opening, codec, limits, merkle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(challenge) = Challenge::decode(data) {
        assert_eq!(codec::encode(&challenge), data);
        assert!((1..=limits::OPENED_STATES).contains(&challenge.states.len()));
    }
    let Ok(opening) = Opening::from_bytes(data) else {
        return;
    };
    assert_eq!(opening.to_bytes(), data);
    let _ = format!("{opening:?}");
    let challenge = Challenge { states: opening.states.iter().map(|state| state.index).collect() };
    let Some(first) = opening.states.first() else {
        return;
    };
    // The root that the first state happens to lead to: whoever else verifies leads there too.
    let leaf = merkle::leaf(first.index, &first.state);
    for states in [2, 7, 21, limits::STATES] {
        let Some(root) = merkle::root_by(leaf, first.index, states, &first.path) else {
            continue;
        };
        if let Ok(verified) = opening.clone().verify(&challenge, &Commitment { root, states }) {
            assert!(verified.iter().all(|(index, _)| *index < states));
        }
    }
});
