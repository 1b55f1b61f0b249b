//! Values that Substrate, Bittensor's own wallet and the BLAKE3 authors publish.

use argus_protocols::{
    Hotkey, HotkeyPair, Signature,
    hotkey::{Domain, HotkeyError},
    record,
};

const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const BOB: &str = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

#[test]
fn addresses_of_the_well_known_development_keys() {
    // (public key, SS58 with prefix 42), as `subkey inspect` prints them for //Alice, //Bob, //Charlie.
    for (public, address) in [
        ("d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d", ALICE),
        ("8eaf04151687736326c9fea17e25fc5287613693c912909cb226aa4794f26a48", BOB),
        (
            "90b5ab205c6974c9ea841be688864633dc9ca8a357843eeacf2314649965fe22",
            "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y",
        ),
    ] {
        let hotkey = Hotkey::from_bytes(bytes(public));
        assert_eq!(hotkey.to_string(), address);
        assert_eq!(address.parse::<Hotkey>().unwrap(), hotkey);
        assert_eq!(hotkey.short(), &address[..8]);
    }
}

#[test]
fn keys_from_well_known_seeds() {
    for (seed, address) in [
        // The secret seed of //Alice.
        ("e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a", ALICE),
        // Substrate's development phrase, "bottom drive obey lake …".
        (
            "fac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e",
            "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV",
        ),
        // Keypair.create_from_seed(32 zero bytes) of bittensor-wallet 4.1.1.
        (
            "0000000000000000000000000000000000000000000000000000000000000000",
            "5H728gLgx4yuCSVEwGCAfLo3RtzTau9F6cTNqNJtrqqjACWq",
        ),
    ] {
        let pair = HotkeyPair::from_seed(&bytes(seed));
        assert_eq!(pair.hotkey().to_string(), address);
        let again = HotkeyPair::from_secret(&pair.to_secret()).unwrap();
        assert_eq!(again.hotkey(), pair.hotkey());
    }
}

#[test]
fn expanded_secret_as_bittensor_writes_it() {
    // Seed and `privateKey` of a hotkey file made by bittensor-wallet 4.1.1 for this test.
    let seed = "9d9d4c63470d90d25f71aa2fa072fce8b16cc13b82b4a0dba8b10a3f0ed8ced9";
    let secret = concat!(
        "6c61ec9e6325183fbb3602049c9ebcefd11dcacd901fa4b8730c3be64fa48009",
        "257cd742cbd3bb9d6a98eb2d1b3ae931e2f56c40a8b9339b876f5c46d3c415ac"
    );
    let pair = HotkeyPair::from_seed(&bytes(seed));
    assert_eq!(hex::encode(pair.to_secret()), secret);
    let pair = HotkeyPair::from_secret(&bytes(secret)).unwrap();
    assert_eq!(pair.hotkey().to_string(), "5GQWGejnmMYvDpJmsBjfbYt99Wujy5RPYoyXbKbLPdpttfmy");
}

#[test]
fn signatures_of_others() {
    for (address, message, signature) in [
        // The example of polkadot-js's documentation, by //Bob.
        (
            BOB,
            "This is a text message",
            "2aeaa98e26062cf65161c68c5cb7aa31ca050cb5bdd07abc80a475d2a2eebc7b\
             7a9c9546fbdff971b29419ddd9982bf4148c81a49df550154e1674a6b58bac84",
        ),
        // Keypair.create_from_uri("//Alice").sign(b"hello") of bittensor-wallet 4.1.1.
        (
            ALICE,
            "hello",
            "062de3713304fc7644fa6a38b0aac090d277b82daa77c4aee1d170125256b671\
             f8c2c524c1de77ded904bf9def9d350f7974debf7655c295c7cd59c44b9a9a80",
        ),
    ] {
        let signature = Signature(bytes(signature));
        let hotkey: Hotkey = address.parse().unwrap();
        hotkey.verify_raw(message.as_bytes(), &signature).unwrap();
        assert!(hotkey.verify_raw(b"another message", &signature).is_err());
        assert!(hotkey.verify(Domain::Open, message.as_bytes(), &signature).is_err());
    }
}

#[test]
fn addresses_that_are_refused_say_why() {
    use HotkeyError as E;
    let parse = |text: &str| text.parse::<Hotkey>().unwrap_err();
    // polkadot-js's test address on Kusama.
    assert_eq!(parse("EK1bFgKm2FsghcttHT7TB7rNyXApFgs9fCbijMGQNyFGBQm"), E::Prefix(2));
    assert_eq!(parse(&ALICE.replace('Q', "R")), E::Checksum);
    assert!(matches!(parse(&ALICE[..47]), E::Length(_) | E::Checksum));
    assert!(matches!(parse("not an address"), E::Base58(_)));
    assert!(matches!(parse("5Grwva0"), E::Base58(_)), "0 is not of base58");
    assert!(matches!(parse(""), E::Length(0)));
    assert_eq!(parse(&"1".repeat(1 << 20)), E::TooLong(1 << 20));
    // A leading 1 is a zero byte more.
    assert!(parse(&format!("1{ALICE}")).to_string().contains("36"));
}

#[test]
fn the_neutral_element_signs_for_nobody() {
    let zero = Hotkey::from_bytes([0; 32]);
    // R = s·B with s = 0: what anybody can write down.
    let mut signature = [0; 64];
    signature[63] = 0x80;
    assert!(zero.verify_raw(b"anything", &Signature(signature)).is_err());
    assert_eq!(HotkeyPair::from_secret(&[0; 64]).unwrap_err(), HotkeyError::Secret);
    // A scalar that is not reduced.
    assert_eq!(HotkeyPair::from_secret(&[0xff; 64]).unwrap_err(), HotkeyError::Secret);
}

#[test]
fn blake3_key_derivation_of_its_authors() {
    // test_vectors.json: input of length n is the bytes i mod 251.
    let context = "BLAKE3 2019-12-27 16:29:52 test vectors context";
    for (length, derived) in [
        (0, "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d"),
        (1, "b3e2e340a117a499c6cf2398a19ee0d29cca2bb7404c73063382693bf66cb06c"),
        (1024, "7356cd7720d5b66b6d0697eb3177d9f8d73a4a5c5e968896eb6a689684302706"),
    ] {
        let input: Vec<u8> = (0..length).map(|i: u32| (i % 251) as u8).collect();
        assert_eq!(hex::encode(blake3::derive_key(context, &input)), derived);
    }
}

#[test]
fn every_domain_and_every_key_is_apart() {
    let message = b"message";
    let pair = HotkeyPair::from_seed(&[9; 32]);
    let domains = [Domain::Record, Domain::Open, Domain::Receipt, Domain::DevChain];
    for domain in domains {
        let signature = pair.sign(domain, message);
        for other in domains {
            let verified = pair.hotkey().verify(other, message, &signature).is_ok();
            assert_eq!(verified, domain == other);
        }
        assert!(pair.hotkey().verify_raw(message, &signature).is_err());
    }
    let other = HotkeyPair::from_seed(&[10; 32]);
    assert_ne!(record::key(&pair.hotkey()), record::key(&other.hotkey()));
}

#[test]
fn text_forms_go_through_json() {
    let pair = HotkeyPair::from_seed(&[9; 32]);
    let json = serde_json::to_string(&pair.hotkey()).unwrap();
    assert_eq!(serde_json::from_str::<Hotkey>(&json).unwrap(), pair.hotkey());
    let signature = pair.sign_raw(b"m");
    let json = serde_json::to_string(&signature).unwrap();
    assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
    let prefixed = format!("\"0x{}\"", hex::encode(signature.0));
    assert_eq!(serde_json::from_str::<Signature>(&prefixed).unwrap(), signature);
    for bad in ["\"\"", "\"0x\"", "\"00\"", "1"] {
        assert!(serde_json::from_str::<Signature>(bad).is_err());
        assert!(serde_json::from_str::<Hotkey>(bad).is_err());
    }
}

#[test]
fn secrets_are_not_printed() {
    let pair = HotkeyPair::from_seed(&[9; 32]);
    assert_eq!(format!("{pair:?}"), format!("HotkeyPair({})", pair.hotkey()));
}
