//! Open frames, as they come and signed by a validator that means harm.
#![no_main]

use std::sync::LazyLock;

use argus_protocols::{HotkeyPair, PeerId, SignedOpen, codec, hotkey::Domain, limits};
use libfuzzer_sys::fuzz_target;

const NOW_MS: u64 = 1_790_000_000_000;
/// Length of the open frame of SPEC.md; what follows it is tried as its body.
const OPEN: usize = 219;
/// The validator and miner of SPEC.md.
static VALIDATOR: LazyLock<HotkeyPair> = LazyLock::new(|| HotkeyPair::from_seed(&[1; 32]));
static MINER: LazyLock<HotkeyPair> = LazyLock::new(|| HotkeyPair::from_seed(&[2; 32]));
static PEERS: LazyLock<[PeerId; 2]> = LazyLock::new(|| {
    [
        "002408011220ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1",
        "002408011220ca93ac1705187071d67b83c7ff0efe8108e8ec4530575d7726879333dbdabe7c",
    ]
    .map(|digits| {
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        PeerId::from_bytes(&bytes).unwrap()
    })
});

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = SignedOpen::from_bytes(data) {
        assert_eq!(signed.to_bytes(), data);
        let _ = signed.verify(&PEERS[0], &PEERS[1], &MINER.hotkey(), NOW_MS);
    }
    let (open, body) = data.split_at(data.len().min(OPEN));
    let signature = VALIDATOR.sign(Domain::Open, open);
    let signed = SignedOpen { open: open.to_vec(), signature };
    if let Ok(verified) = signed.verify(&PEERS[0], &PEERS[1], &MINER.hotkey(), NOW_MS) {
        assert_eq!(codec::encode(&*verified), open);
        assert!(verified.body_length as usize <= limits::BODY);
        let _ = (verified.read_task(body), verified.task(), verified.expires_at_ms());
    }
});
