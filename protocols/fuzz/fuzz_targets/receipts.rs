//! Receipts, as they come and signed by a miner that means harm.
#![no_main]

use std::sync::LazyLock;

use argus_protocols::{HotkeyPair, SignedReceipt, codec, hotkey::Domain};
use libfuzzer_sys::fuzz_target;

/// The miner of SPEC.md.
static PAIR: LazyLock<HotkeyPair> = LazyLock::new(|| HotkeyPair::from_seed(&[2; 32]));

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = SignedReceipt::from_bytes(data) {
        assert_eq!(signed.to_bytes(), data);
        let _ = signed.verify_alone();
    }
    let signature = PAIR.sign(Domain::Receipt, data);
    let signed = SignedReceipt { receipt: data.to_vec(), signature };
    if let Ok(verified) = signed.verify_alone() {
        assert_eq!(verified.miner, PAIR.hotkey());
        assert!(verified.accepted_at_ms <= verified.finished_at_ms);
        assert_eq!(codec::encode(&*verified), data);
    }
});
