//! Hotkeys in a Bittensor wallet folder, `<path>/<name>/hotkeys/<hotkey>`, in the format of
//! bittensor-wallet 4.1.1: what `btcli` makes is read as it reads it, and it reads what is made here.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use argus_protocols::{Hotkey, HotkeyPair};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{IdentityError, mnemonic, secret_file};

const DEFAULT_NAME: &str = "default";
const HOTKEYS: &str = "hotkeys";
/// The public half of a hotkey lies beside it, in a file of its name and this.
const PUBLIC_SUFFIX: &str = "pub.txt";
/// A key file has about 600 bytes.
const KEY_FILE_LIMIT: u64 = 16 * 1024;
/// `cryptoType` of sr25519; 0 is ed25519.
const SR25519: u8 = 1;
/// Names of files have at most this on the common file systems, suffix included.
const NAME_LIMIT: usize = 200;
/// Entries of a folder that [`Wallet::list`] looks at.
const LIST_LIMIT: usize = 10_000;

/// Which hotkey the node acts for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wallet {
    /// Folder of wallets. Default: `~/.bittensor/wallets`.
    pub path: Option<PathBuf>,
    /// Default: `default`.
    pub name: Option<String>,
    /// Default: `default`.
    pub hotkey: Option<String>,
}

/// One hotkey of [`Wallet::list`].
#[derive(Debug)]
pub struct KeyEntry {
    pub wallet: String,
    pub name: String,
    pub path: PathBuf,
    pub hotkey: Result<Hotkey, IdentityError>,
}

impl Wallet {
    /// The folder of wallets.
    pub fn root(&self) -> Result<PathBuf, IdentityError> {
        let home = || match std::env::home_dir() {
            Some(home) if home.is_absolute() => Ok(home),
            _ => Err(IdentityError::NoHome),
        };
        match &self.path {
            None => Ok(home()?.join(".bittensor/wallets")),
            // In a configuration file no shell has expanded it.
            Some(path) => match path.strip_prefix("~") {
                Ok(rest) => Ok(home()?.join(rest)),
                Err(_) => Ok(path.clone()),
            },
        }
    }

    /// The file of the hotkey, there or not.
    pub fn file(&self) -> Result<PathBuf, IdentityError> {
        let name = valid_name("wallet", self.name.as_deref())?;
        let hotkey = valid_name("hotkey", self.hotkey.as_deref())?;
        Ok(self.root()?.join(name).join(HOTKEYS).join(hotkey))
    }

    /// The hotkey with its secret.
    pub fn load(&self) -> Result<HotkeySecret, IdentityError> {
        let path = self.file()?;
        let bytes = match secret_file::read(&path, KEY_FILE_LIMIT) {
            Err(IdentityError::Io { cause, path }) if cause.kind() == ErrorKind::NotFound => {
                // Somebody may have copied the public half alone.
                return Err(match read_public(&with_suffix(&path)) {
                    Ok(hotkey) => IdentityError::PublicOnly { path, hotkey },
                    Err(_) => IdentityError::NoHotkey { path },
                });
            }
            other => other?,
        };
        KeyFile::parse(&path, &bytes)?.secret(&path)
    }

    /// The hotkey's address, which needs no secret.
    pub fn hotkey(&self) -> Result<Hotkey, IdentityError> {
        match self.load() {
            Err(IdentityError::PublicOnly { hotkey, .. }) => Ok(hotkey),
            other => other.map(|secret| secret.pair.hotkey()),
        }
    }

    /// Writes a new hotkey, and its public half beside it.
    pub fn create(&self, secret: &HotkeySecret) -> Result<PathBuf, IdentityError> {
        let path = self.file()?;
        secret_file::create(&path, &secret.to_file())?;
        let public = KeyFile::public(&secret.pair.hotkey()).to_json();
        match secret_file::create(&with_suffix(&path), &public) {
            // Left over from another key of this name: btcli makes it anew from the key.
            Err(IdentityError::Exists { .. }) => Ok(path),
            other => other.map(|()| path),
        }
    }

    /// All hotkeys under the folder of wallets, by name; a file that cannot be read says why.
    pub fn list(&self) -> Result<Vec<KeyEntry>, IdentityError> {
        let root = self.root()?;
        let mut entries = Vec::new();
        for wallet in names(&root)? {
            let folder = root.join(&wallet).join(HOTKEYS);
            for name in names(&folder)? {
                if name.ends_with(PUBLIC_SUFFIX) {
                    continue;
                }
                let this = Wallet {
                    path: Some(root.clone()),
                    name: Some(wallet.clone()),
                    hotkey: Some(name.clone()),
                };
                entries.push(KeyEntry {
                    hotkey: this.hotkey(),
                    path: folder.join(&name),
                    wallet: wallet.clone(),
                    name,
                });
            }
        }
        Ok(entries)
    }
}

fn valid_name<'a>(what: &'static str, name: Option<&'a str>) -> Result<&'a str, IdentityError> {
    let name = name.unwrap_or(DEFAULT_NAME);
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !name.is_empty()
        && name.len() <= NAME_LIMIT
        && !name.starts_with('.')
        && !name.ends_with(PUBLIC_SUFFIX)
        && name.chars().all(good)
    {
        true => Ok(name),
        false => Err(IdentityError::Name { what, name: name.escape_debug().take(NAME_LIMIT).collect() }),
    }
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(PUBLIC_SUFFIX);
    text.into()
}

/// Names in a folder that a wallet or hotkey can have; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, IdentityError> {
    let failed = |cause| IdentityError::Io { path: folder.to_owned(), cause };
    let entries = match fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries.take(LIST_LIMIT) {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|n| valid_name("", Some(n)).is_ok()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn read_public(path: &Path) -> Result<Hotkey, IdentityError> {
    let bytes = secret_file::read_public(path, KEY_FILE_LIMIT)?;
    KeyFile::parse(path, &bytes)?.hotkey(path)
}

/// A hotkey with whatever it was made from.
pub struct HotkeySecret {
    pair: HotkeyPair,
    phrase: Option<Zeroizing<String>>,
    seed: Option<Zeroizing<[u8; 32]>>,
}

impl HotkeySecret {
    /// A new hotkey with a phrase of twelve words.
    pub fn generate() -> Self {
        Self::from_phrase(&mnemonic::generate()).expect("a phrase just made is valid")
    }

    /// From the words of BIP39 (English), as Substrate and Bittensor use them.
    pub fn from_phrase(phrase: &str) -> Result<Self, IdentityError> {
        let seed = mnemonic::seed(phrase)?;
        let words: Vec<&str> = phrase.split_whitespace().collect();
        Ok(Self { phrase: Some(Zeroizing::new(words.join(" "))), ..Self::from_seed(seed) })
    }

    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        Self { pair: HotkeyPair::from_seed(&seed), phrase: None, seed: Some(seed) }
    }

    /// From a seed in hexadecimal, with or without `0x`.
    pub fn from_seed_text(text: &str) -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        let digits = text.trim().trim_start_matches("0x");
        hex::decode_to_slice(digits, &mut *seed).map_err(|_| IdentityError::Seed)?;
        Ok(Self::from_seed(seed))
    }

    /// As Substrate's `from_seed_slice`: a seed of 32 bytes, or an expanded secret of 64.
    fn from_hex(text: &str) -> Result<Self, String> {
        let digits = text.trim_start_matches("0x");
        if digits.len() == 64 {
            return Self::from_seed_text(digits).map_err(|_| "it is not hexadecimal".into());
        }
        let mut secret = Zeroizing::new([0; 64]);
        hex::decode_to_slice(digits, &mut *secret)
            .map_err(|_| "it is neither 32 nor 64 bytes in hexadecimal")?;
        let pair = HotkeyPair::from_secret(&secret).map_err(|e| e.to_string())?;
        Ok(Self { pair, phrase: None, seed: None })
    }

    pub fn pair(&self) -> &HotkeyPair {
        &self.pair
    }

    pub fn into_pair(self) -> HotkeyPair {
        self.pair
    }

    /// The words, if it was made from words. To be shown once and never logged.
    pub fn phrase(&self) -> Option<&str> {
        self.phrase.as_ref().map(|phrase| phrase.as_str())
    }

    fn to_file(&self) -> Zeroizing<Vec<u8>> {
        let secret = Zeroizing::new(self.pair.to_secret());
        KeyFile {
            private_key: Some(SecretText(prefixed(&*secret))),
            secret_phrase: self.phrase.clone().map(SecretText),
            secret_seed: self.seed.as_ref().map(|seed| SecretText(prefixed(&**seed))),
            ..KeyFile::public(&self.pair.hotkey())
        }
        .to_json()
    }
}

impl std::fmt::Debug for HotkeySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HotkeySecret({})", self.pair.hotkey())
    }
}

fn prefixed(bytes: &[u8]) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex::encode(bytes));
    let mut text = Zeroizing::new(String::with_capacity(digits.len() + 2));
    text.push_str("0x");
    text.push_str(&digits);
    text
}

/// Text in a key file that is erased after use. The serde feature of `zeroize` would do the same, but
/// features are shared by everything that depends on it.
struct SecretText(Zeroizing<String>);

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// The JSON of a key file. Fields that are not known are left alone, as bittensor-wallet does.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret_phrase: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret_seed: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ss58_address: Option<String>,
    /// A number, or missing (then sr25519); older writers may have put something else.
    #[serde(default)]
    crypto_type: Value,
}

impl KeyFile {
    fn public(hotkey: &Hotkey) -> Self {
        let digits = format!("0x{}", hex::encode(hotkey.as_bytes()));
        Self {
            private_key: None,
            public_key: Some(digits.clone()),
            account_id: Some(digits),
            secret_phrase: None,
            secret_seed: None,
            ss58_address: Some(hotkey.to_string()),
            crypto_type: SR25519.into(),
        }
    }

    fn to_json(&self) -> Zeroizing<Vec<u8>> {
        // Room for everything at once: growing would leave copies behind that nobody erases.
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer(&mut *bytes, self).expect("text and a number have a JSON form");
        bytes
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |cause: String| IdentityError::Damaged { path: path.to_owned(), cause };
        let encrypted: [&[u8]; 3] = [b"$NACL", b"$ANSIBLE_VAULT", b"gAAAAA"];
        if encrypted.iter().any(|mark| bytes.starts_with(mark)) {
            return Err(IdentityError::Encrypted { path: path.to_owned() });
        }
        // The error's own text may quote the file, so it is not passed on.
        let file: Self = serde_json::from_slice(bytes).map_err(|e| {
            damaged(format!("no JSON of a key file, at line {} column {}", e.line(), e.column()))
        })?;
        match file.crypto_type.as_u64() {
            Some(1) | None => Ok(file),
            Some(0) => Err(damaged("its key is ed25519 (cryptoType 0); Argus signs with sr25519".into())),
            Some(other) => Err(damaged(format!("cryptoType {other} is not known"))),
        }
    }

    /// The key, from the first of phrase, seed and private key that is there: bittensor-wallet's order.
    fn secret(&self, path: &Path) -> Result<HotkeySecret, IdentityError> {
        let damaged = |cause: String| IdentityError::Damaged { path: path.to_owned(), cause };
        let secret = if let Some(phrase) = &self.secret_phrase {
            HotkeySecret::from_phrase(&phrase.0).map_err(|e| damaged(e.to_string()))?
        } else if let Some(seed) = &self.secret_seed {
            HotkeySecret::from_hex(&seed.0).map_err(|e| damaged(format!("secretSeed: {e}")))?
        } else if let Some(key) = &self.private_key {
            HotkeySecret::from_hex(&key.0).map_err(|e| damaged(format!("privateKey: {e}")))?
        } else {
            return Err(IdentityError::PublicOnly { path: path.to_owned(), hotkey: self.hotkey(path)? });
        };
        // bittensor-wallet would go on with the secret's key; whoever registered the address would not
        // understand why nobody knows this node.
        let hotkey = secret.pair.hotkey();
        let digits = hex::encode(hotkey.as_bytes());
        let other_key = |key: &Option<String>| {
            key.as_ref().is_some_and(|key| !key.trim_start_matches("0x").eq_ignore_ascii_case(&digits))
        };
        let other_address = (self.ss58_address.as_ref()).is_some_and(|a| *a != hotkey.to_string());
        match other_address || other_key(&self.public_key) || other_key(&self.account_id) {
            true => Err(damaged(format!("its secret is that of {hotkey}, its address is another"))),
            false => Ok(secret),
        }
    }

    fn hotkey(&self, path: &Path) -> Result<Hotkey, IdentityError> {
        let damaged = |cause: String| IdentityError::Damaged { path: path.to_owned(), cause };
        self.ss58_address
            .as_ref()
            .ok_or_else(|| damaged("it has neither a secret nor an address".into()))?
            .parse()
            .map_err(|e| damaged(format!("ss58Address: {e}")))
    }
}
