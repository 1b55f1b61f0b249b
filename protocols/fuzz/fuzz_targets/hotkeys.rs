//! Addresses as text, keys and signatures as bytes.
#![no_main]

use argus_protocols::{Hotkey, HotkeyPair, Signature, hotkey::Domain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(hotkey) = text.parse::<Hotkey>()
    {
        assert_eq!(hotkey.to_string(), text);
    }
    if let Some((public, rest)) = data.split_first_chunk::<32>() {
        let hotkey = Hotkey::from_bytes(*public);
        assert_eq!(hotkey.to_string().parse(), Ok(hotkey));
        if let Some((signature, message)) = rest.split_first_chunk::<64>() {
            // Nobody finds a signature by trying.
            assert!(hotkey.verify(Domain::Open, message, &Signature(*signature)).is_err());
        }
    }
    if let Some((secret, message)) = data.split_first_chunk::<64>()
        && let Ok(pair) = HotkeyPair::from_secret(secret)
    {
        assert_eq!(pair.to_secret(), *secret);
        let signature = pair.sign(Domain::Receipt, message);
        assert!(pair.hotkey().verify(Domain::Receipt, message, &signature).is_ok());
    }
});
