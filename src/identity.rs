//! Who this node is: the hotkey it acts for, out of a Bittensor wallet folder, and its libp2p node key, out
//! of the data directory.
//!
//! Invariants: a secret is read only from a regular file that nobody but its owner can read, written with
//! mode 0600 and on the disk before anything uses it, never over another, never shown by `Debug` or an
//! error, and erased from memory after use.

mod mnemonic;
mod secret_file;
mod wallet;

pub use wallet::{HotkeySecret, KeyEntry, Wallet};

use std::path::{Path, PathBuf};

use argus_protocols::{Hotkey, HotkeyPair};

use crate::net::NodeKey;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },
    #[error(
        "{} does not exist; make a hotkey with `argus wallet new`, or say which one with --wallet-path, --wallet and --hotkey",
        path.display()
    )]
    NoHotkey { path: PathBuf },
    #[error("{} exists already and is never overwritten; move it away, or choose another name with --hotkey", path.display())]
    Exists { path: PathBuf },
    #[error("{} can be read by other users (mode {mode:04o}); run `chmod 600 {}`", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} has more than {limit} bytes: it is not a key file", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error(
        "{} is encrypted; a hotkey that signs by itself is kept in plain (mode 0600): decrypt it with btcli, or make another hotkey",
        path.display()
    )]
    Encrypted { path: PathBuf },
    #[error("{} has no secret, only the address {hotkey}: copy the hotkey file from where it was made, or restore it with `argus wallet new --mnemonic-file`", path.display())]
    PublicOnly { path: PathBuf, hotkey: Hotkey },
    #[error("{} is not a hotkey file: {cause}", path.display())]
    Damaged { path: PathBuf, cause: String },
    #[error("{} is not a node key: {cause}; restore it from a backup, or remove it to get a new identity", path.display())]
    NodeKey { path: PathBuf, cause: String },
    #[error("not a secret phrase: {0}")]
    Phrase(String),
    #[error("not a secret seed: 64 hexadecimal digits, with or without 0x before them")]
    Seed,
    #[error(
        "{what} `{name}` cannot be a file name: letters, digits and -_. , not beginning with a dot nor ending in pub.txt"
    )]
    Name { what: &'static str, name: String },
    #[error("the home folder is not known (HOME is not set); give --wallet-path")]
    NoHome,
}

impl IdentityError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            IdentityError::Io { .. } => "io",
            IdentityError::NoHotkey { .. } => "no_hotkey",
            IdentityError::Exists { .. } => "exists",
            IdentityError::Exposed { .. } => "exposed",
            IdentityError::NotAFile { .. } => "not_a_file",
            IdentityError::TooLarge { .. } => "too_large",
            IdentityError::Encrypted { .. } => "encrypted",
            IdentityError::PublicOnly { .. } => "public_only",
            IdentityError::Damaged { .. } => "damaged",
            IdentityError::NodeKey { .. } => "node_key",
            IdentityError::Phrase(_) => "phrase",
            IdentityError::Seed => "seed",
            IdentityError::Name { .. } => "name",
            IdentityError::NoHome => "no_home",
        }
    }
}

/// The hotkey that the settings name, with its secret.
pub fn open(wallet: &Wallet) -> Result<HotkeyPair, IdentityError> {
    wallet.load().map(HotkeySecret::into_pair)
}

/// File of the node key in the data directory.
pub const NODE_KEY_FILE: &str = "node.key";
/// libp2p's protobuf encoding of an ed25519 key pair has 68 bytes.
const NODE_KEY_LIMIT: u64 = 1024;

/// The node key of this data directory, made on first use.
pub fn node_key(data_dir: &Path) -> Result<NodeKey, IdentityError> {
    let path = data_dir.join(NODE_KEY_FILE);
    match secret_file::read(&path, NODE_KEY_LIMIT) {
        Err(IdentityError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {}
        other => return parse_node_key(path, &other?),
    }
    let key = NodeKey::generate();
    let bytes = zeroize::Zeroizing::new(key.to_bytes());
    match secret_file::create(&path, &bytes) {
        // Another process was first: its key is the one.
        Err(IdentityError::Exists { .. }) => {
            let bytes = secret_file::read(&path, NODE_KEY_LIMIT)?;
            parse_node_key(path, &bytes)
        }
        created => created.map(|()| key),
    }
}

fn parse_node_key(path: PathBuf, bytes: &[u8]) -> Result<NodeKey, IdentityError> {
    let damaged = |cause: String| IdentityError::NodeKey { path: path.clone(), cause };
    if bytes.is_empty() {
        return Err(damaged("it is empty".into()));
    }
    NodeKey::from_bytes(bytes)
        .map_err(|_| damaged(format!("its {} bytes are not an ed25519 key pair", bytes.len())))
}

#[cfg(test)]
mod tests;
