use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use argus_protocols::{Hotkey, Signature, hotkey::Domain};
use tempfile::TempDir;

use super::*;

const WORDS: &str = "5EEpEpJJXMLEzTMXooL7H5hACWBj1xRCknpxh7QJGRhRMKQ1";
const SEED: &str = "5H69LRyVowe4EVchLjsG6qQWCAJcb12UUbjMbZLbVPc6Kque";

/// The wallet that bittensor-wallet made, with the modes that it gave and git does not keep.
fn made_by_bittensor() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wallets/throwaway/hotkeys");
    let to = root.path().join("throwaway/hotkeys");
    fs::create_dir_all(&to).unwrap();
    for name in ["words", "wordspub.txt", "seed", "seedpub.txt"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
        set_mode(&to.join(name), 0o600);
    }
    root
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn wallet(root: &TempDir, name: &str, hotkey: &str) -> Wallet {
    Wallet {
        path: Some(root.path().to_owned()),
        name: Some(name.to_owned()),
        hotkey: Some(hotkey.to_owned()),
    }
}

/// The hotkey file as JSON changed by `change`, opened.
fn with_file(change: impl FnOnce(&mut serde_json::Value)) -> Result<HotkeyPair, IdentityError> {
    let root = made_by_bittensor();
    let wallet = wallet(&root, "throwaway", "words");
    let path = wallet.file().unwrap();
    let mut file = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut file);
    fs::write(&path, file.to_string()).unwrap();
    open(&wallet)
}

fn with_bytes(bytes: &[u8]) -> IdentityError {
    let root = made_by_bittensor();
    let wallet = wallet(&root, "throwaway", "words");
    fs::write(wallet.file().unwrap(), bytes).unwrap();
    open(&wallet).unwrap_err()
}

#[test]
fn reads_what_bittensor_wallet_wrote() {
    let root = made_by_bittensor();
    // The signatures are `keypair.sign(b"argus")` by bittensor-wallet with the same keys.
    for (name, address, signature) in [
        (
            "words",
            WORDS,
            concat!(
                "b85ad6ee29e0c0e2e7740b257b6b15fcc5df87ad68a0bf0bf4666ba914a0ea5b",
                "ed92c9b93ee53c35dba196ffcd604195fc394de42021257571f5e631d29e308f"
            ),
        ),
        (
            "seed",
            SEED,
            concat!(
                "302affab0796de8f72f2813849ddb6779d3dd84aaa0507d6ca43db8a90a05e7d",
                "40d78338ea7635f7c4ba6a7e3dee245bdf5597b7155ca4fd2397ccbf446d6b87"
            ),
        ),
    ] {
        let pair = open(&wallet(&root, "throwaway", name)).unwrap();
        assert_eq!(pair.hotkey().to_string(), address);
        let signature = Signature(hex::decode(signature).unwrap().try_into().unwrap());
        pair.hotkey().verify_raw(b"argus", &signature).unwrap();
        let own = pair.sign(Domain::Open, b"argus");
        pair.hotkey().verify(Domain::Open, b"argus", &own).unwrap();
    }
}

#[test]
fn the_first_secret_of_phrase_seed_and_key_counts() {
    let without = |fields: &'static [&str]| {
        move |file: &mut serde_json::Value| {
            for field in fields {
                file[*field] = serde_json::Value::Null;
            }
        }
    };
    for fields in [
        &["secretPhrase"][..],
        &["secretPhrase", "secretSeed"],
        &["secretSeed", "privateKey", "publicKey", "accountId"],
        &["cryptoType", "ss58Address"],
    ] {
        let pair = with_file(without(fields)).unwrap();
        assert_eq!(pair.hotkey().to_string(), WORDS, "{fields:?}");
    }
    // What comes first counts even when it is broken.
    let broken = with_file(|file| file["secretPhrase"] = "".into()).unwrap_err();
    assert_eq!(broken.reason(), "damaged");
    // As bittensor-wallet does: no 0x, blanks between words, unknown fields, an expanded key as a seed.
    let pair = with_file(|file| {
        file["secretPhrase"] = serde_json::Value::Null;
        file["secretSeed"] = file["secretSeed"].as_str().unwrap()[2..].into();
        file["later"] = 1.into();
    });
    assert_eq!(pair.unwrap().hotkey().to_string(), WORDS);
    let pair = with_file(|file| {
        let phrase = file["secretPhrase"].as_str().unwrap().replace(' ', "  ");
        file["secretPhrase"] = format!(" {phrase}\n").into();
    });
    assert_eq!(pair.unwrap().hotkey().to_string(), WORDS);
    let pair = with_file(|file| {
        file["secretPhrase"] = serde_json::Value::Null;
        file["secretSeed"] = file["privateKey"].clone();
    });
    assert_eq!(pair.unwrap().hotkey().to_string(), WORDS);
}

#[test]
fn a_public_file_is_told_apart() {
    let public = with_file(|file| {
        for field in ["secretPhrase", "secretSeed", "privateKey"] {
            file[field] = serde_json::Value::Null;
        }
    });
    let refused = public.unwrap_err();
    assert_eq!(refused.reason(), "public_only");
    assert!(refused.to_string().contains(WORDS));

    let root = made_by_bittensor();
    let wallet = wallet(&root, "throwaway", "words");
    fs::remove_file(wallet.file().unwrap()).unwrap();
    let refused = open(&wallet).unwrap_err();
    assert_eq!(refused.reason(), "public_only");
    assert_eq!(wallet.hotkey().unwrap(), WORDS.parse::<Hotkey>().unwrap());
}

#[test]
fn a_file_that_contradicts_itself_is_refused() {
    let another = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    for (field, value) in [
        ("ss58Address", another.to_owned()),
        ("publicKey", format!("0x{}", "11".repeat(32))),
        ("accountId", "0x".to_owned()),
    ] {
        let refused = with_file(|file| file[field] = value.into()).unwrap_err();
        assert!(refused.to_string().contains("its secret is that of"));
    }
}

#[test]
fn damaged_files_say_what_is_wrong_and_never_what_is_in_them() {
    let long = vec![b' '; 17 * 1024];
    for (bytes, reason) in [
        (&b""[..], "damaged"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b"\xff\xfe", "damaged"),
        (br#"{"secretSeed": 3}"#, "damaged"),
        (br#"{"secretSeed": "0xzz"}"#, "damaged"),
        (br#"{"secretSeed": "0x11"}"#, "damaged"),
        (br#"{"privateKey": "hunter2 hunter2"}"#, "damaged"),
        (br#"{"secretPhrase": "hunter2 hunter2"}"#, "damaged"),
        (br#"{"secretPhrase": {"hunter2": 1}}"#, "damaged"),
        (br#"{"cryptoType": 0, "secretSeed": "0x11"}"#, "damaged"),
        (br#"{"cryptoType": 7, "secretSeed": "0x11"}"#, "damaged"),
        (br#"{"ss58Address": "hunter2"}"#, "damaged"),
        (b"$NACLhunter2", "encrypted"),
        (b"$ANSIBLE_VAULT;1.1", "encrypted"),
        (b"gAAAAAB", "encrypted"),
        (&long, "too_large"),
    ] {
        let refused = with_bytes(bytes);
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(refused.reason(), reason, "{shown}: {refused}");
        assert!(!format!("{refused} {refused:?}").contains("hunter2"), "{refused}");
    }
    // A scalar that is not reduced.
    let refused = with_bytes(format!(r#"{{"privateKey": "{}"}}"#, "ff".repeat(64)).as_bytes());
    assert_eq!(refused.reason(), "damaged");
}

#[test]
fn secrets_that_others_can_read_are_refused_with_the_remedy() {
    let root = made_by_bittensor();
    let wallet = wallet(&root, "throwaway", "words");
    let path = wallet.file().unwrap();
    for exposed in [0o644, 0o640, 0o604, 0o660] {
        set_mode(&path, exposed);
        let refused = open(&wallet).unwrap_err();
        assert_eq!(refused.reason(), "exposed");
        let remedy = format!("chmod 600 {}", path.display());
        assert!(refused.to_string().contains(&remedy), "{refused}");
    }
    set_mode(&path, 0o400);
    assert!(open(&wallet).is_ok());
}

#[test]
fn only_regular_files_are_read() {
    let root = made_by_bittensor();
    let hotkeys = root.path().join("throwaway/hotkeys");
    fs::create_dir(hotkeys.join("folder")).unwrap();
    let refused = open(&wallet(&root, "throwaway", "folder")).unwrap_err();
    assert_eq!(refused.reason(), "not_a_file");
    let pipe = std::ffi::CString::new(hotkeys.join("pipe").to_str().unwrap()).unwrap();
    // SAFETY: a path that ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    let refused = open(&wallet(&root, "throwaway", "pipe")).unwrap_err();
    assert_eq!(refused.reason(), "not_a_file");
    let refused = open(&wallet(&root, "throwaway", "nobody")).unwrap_err();
    assert_eq!(refused.reason(), "no_hotkey");
    assert!(refused.to_string().contains("argus wallet new"));
}

#[test]
fn names_stay_inside_the_folder() {
    let root = tempfile::tempdir().unwrap();
    for name in ["", "..", ".", "a/b", "/etc", ".hidden", "a\0b", "xpub.txt", "a b", "\u{1b}[2J"] {
        for wallet in [wallet(&root, name, "x"), wallet(&root, "x", name)] {
            let refused = wallet.create(&HotkeySecret::generate()).unwrap_err();
            assert_eq!(refused.reason(), "name", "{name:?}");
            assert!(!refused.to_string().contains('\u{1b}'));
        }
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    assert!(wallet(&root, "a".repeat(300).as_str(), "x").file().is_err());
    assert!(wallet(&root, "Ünï_1.x-y", "x").file().is_ok());
}

#[test]
fn a_new_hotkey_comes_back_whole() {
    let root = tempfile::tempdir().unwrap();
    let wallet = wallet(&root, "alice", "one");
    let secret = HotkeySecret::generate();
    assert_eq!(secret.phrase().unwrap().split(' ').count(), 12);
    let path = wallet.create(&secret).unwrap();
    assert_eq!(path, root.path().join("alice/hotkeys/one"));
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(open(&wallet).unwrap().hotkey(), secret.pair().hotkey());
    let again = wallet.load().unwrap();
    assert_eq!(again.phrase(), secret.phrase());

    // The same fields that bittensor-wallet writes.
    let fields = |path: &Path| -> Vec<String> {
        let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(json["cryptoType"], 1);
        json.as_object().unwrap().keys().cloned().collect()
    };
    let theirs = made_by_bittensor();
    let theirs = theirs.path().join("throwaway/hotkeys");
    assert_eq!(fields(&path), fields(&theirs.join("words")));
    let public = path.with_file_name("onepub.txt");
    assert_eq!(fields(&public), fields(&theirs.join("wordspub.txt")));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
}

#[test]
fn a_hotkey_is_never_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let wallet = wallet(&root, "alice", "one");
    let first = HotkeySecret::generate();
    let path = wallet.create(&first).unwrap();
    let before = fs::read(&path).unwrap();
    let refused = wallet.create(&HotkeySecret::generate()).unwrap_err();
    assert_eq!(refused.reason(), "exists");
    assert_eq!(fs::read(&path).unwrap(), before);
    // Nor what a dangling link points at.
    let link = path.with_file_name("link");
    symlink(root.path().join("elsewhere"), &link).unwrap();
    let refused = self::wallet(&root, "alice", "link").create(&first).unwrap_err();
    assert_eq!(refused.reason(), "exists");
    assert!(!root.path().join("elsewhere").exists());
    // Nothing unfinished stays behind.
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 3);
}

#[test]
fn phrases_and_seeds_of_substrate() {
    let phrase = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
    let address = "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV";
    let hotkey = |secret: HotkeySecret| secret.pair().hotkey().to_string();
    assert_eq!(hotkey(HotkeySecret::from_phrase(phrase).unwrap()), address);
    let seed = "0xfac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e\n";
    assert_eq!(hotkey(HotkeySecret::from_seed_text(seed).unwrap()), address);
    for (phrase, wrong) in [
        ("", "0 words"),
        ("bottom drive", "2 words"),
        (&phrase.replace("walk", "wallk"), "word 12"),
        (&phrase.replace("walk", "wall"), "checksum"),
        (&phrase.to_uppercase(), "word 1 "),
        (&"x".repeat(100_000), "too long"),
    ] {
        let refused = HotkeySecret::from_phrase(phrase).unwrap_err().to_string();
        assert!(refused.contains(wrong), "{refused}");
    }
    for seed in ["", "0x", "12", &"zz".repeat(32), &"11".repeat(64)] {
        assert!(HotkeySecret::from_seed_text(seed).is_err());
    }
    let shown = format!("{:?}", HotkeySecret::from_phrase(phrase).unwrap());
    assert_eq!(shown, format!("HotkeySecret({address})"));
}

#[test]
fn lists_all_wallets() {
    let root = made_by_bittensor();
    wallet(&root, "another", "default").create(&HotkeySecret::generate()).unwrap();
    set_mode(&root.path().join("throwaway/hotkeys/seed"), 0o644);
    fs::write(root.path().join("a stray file"), "").unwrap();
    let list = wallet(&root, "", "").list().unwrap();
    let names: Vec<_> = list.iter().map(|k| format!("{}/{}", k.wallet, k.name)).collect();
    assert_eq!(names, ["another/default", "throwaway/seed", "throwaway/words"]);
    assert_eq!(list[1].hotkey.as_ref().unwrap_err().reason(), "exposed");
    assert_eq!(list[2].hotkey.as_ref().unwrap().to_string(), WORDS);
    let nowhere = Wallet { path: Some(root.path().join("nowhere")), ..Wallet::default() };
    assert!(nowhere.list().unwrap().is_empty());
}

#[test]
fn a_node_keeps_its_key() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data/miner");
    let peer = node_key(&dir).unwrap().peer();
    let path = dir.join(NODE_KEY_FILE);
    assert_eq!(mode(&path), 0o600);
    assert_eq!(node_key(&dir).unwrap().peer(), peer);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn one_of_many_processes_makes_the_node_key() {
    let root = tempfile::tempdir().unwrap();
    let peers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| node_key(root.path()).unwrap().peer())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(peers.iter().all(|peer| *peer == peers[0]));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_node_key_is_refused_and_kept() {
    let root = tempfile::tempdir().unwrap();
    node_key(root.path()).unwrap();
    let path = root.path().join(NODE_KEY_FILE);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let longer = [&good[..], b"\0"].concat();
    for bad in [&[][..], &good[..40], &flipped, &longer, b"not a key at all", &[0; 68]] {
        fs::write(&path, bad).unwrap();
        let refused = node_key(root.path()).unwrap_err();
        assert_eq!(refused.reason(), "node_key", "{refused}");
        assert!(refused.to_string().contains("restore it from a backup"));
        assert_eq!(fs::read(&path).unwrap(), bad);
    }
    fs::write(&path, &good).unwrap();
    set_mode(&path, 0o644);
    let refused = node_key(root.path()).unwrap_err();
    assert_eq!(refused.reason(), "exposed");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        failure_persistence: None,
        ..proptest::test_runner::Config::with_cases(64)
    })]

    /// Key files come from other programs and damaged disks: whatever is in one, it opens as the address
    /// that it says or not at all.
    #[test]
    fn damage_to_a_key_file_never_yields_another_key(
        at in proptest::prelude::any::<proptest::sample::Index>(),
        byte in proptest::prelude::any::<u8>(),
        cut in proptest::bool::ANY,
    ) {
        let root = made_by_bittensor();
        let wallet = wallet(&root, "throwaway", "seed");
        let path = wallet.file().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        *at.get_mut(&mut bytes) = byte;
        if cut {
            bytes.truncate(at.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(pair) = open(&wallet) {
            assert_eq!(pair.hotkey().to_string(), SEED);
        }
    }

    #[test]
    fn any_bytes_as_a_key_file(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = with_bytes(&bytes);
    }
}
