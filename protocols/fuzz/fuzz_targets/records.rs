//! Records from the DHT, and records signed by somebody whose hotkey is good and whose contents are not.
#![no_main]

use std::sync::LazyLock;

use argus_protocols::{HotkeyPair, SignedRecord, hotkey::Domain, limits};
use libfuzzer_sys::fuzz_target;

const NOW_MS: u64 = 1_790_000_000_000;
/// The miner of SPEC.md.
static PAIR: LazyLock<HotkeyPair> = LazyLock::new(|| HotkeyPair::from_seed(&[2; 32]));

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = SignedRecord::from_bytes(data) {
        assert_eq!(signed.to_bytes(), data);
        let _ = signed.verify(NOW_MS);
    }
    let signature = PAIR.sign(Domain::Record, data);
    let signed = SignedRecord { record: data.to_vec(), signature };
    if let Ok(verified) = signed.verify(NOW_MS) {
        assert!(verified.expires_at_ms > NOW_MS);
        assert!(verified.addresses.len() <= limits::RECORD_ADDRESSES);
        assert!(verified.addresses.iter().all(|a| a.to_string().is_ascii()));
        assert!(verified.capabilities.iter().all(|c| c.work_units_per_second >= 0.0));
        // What was understood is what was signed, and can be signed again.
        match SignedRecord::sign(&verified, &PAIR) {
            Ok(again) => assert_eq!(again.record, data),
            Err(refused) => assert_eq!(refused.reason(), "limits"),
        }
    }
});
