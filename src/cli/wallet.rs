//! `argus wallet`: hotkeys in Bittensor wallet folders, and signatures that Bittensor's tools understand.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use argus_protocols::{Hotkey, Signature};
use clap::Subcommand;
use serde::Serialize;
use zeroize::Zeroizing;

use super::options::WalletOptions;
use crate::identity::{HotkeySecret, Wallet};

/// A phrase or a seed to import.
const SECRET_LIMIT: u64 = 4096;
/// A file to sign. Schnorr signatures need the whole message in memory.
const MESSAGE_LIMIT: u64 = 64 * 1024 * 1024;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a hotkey, or restore one from its secret phrase or seed.
    New(New),
    /// Print a hotkey's address and where its file is.
    Show {
        #[command(flatten)]
        wallet: WalletOptions,
    },
    /// List the hotkeys of all wallets.
    List {
        /// Folder of wallets [default: ~/.bittensor/wallets].
        #[arg(long, env = "ARGUS_WALLET_PATH", value_name = "DIR")]
        wallet_path: Option<PathBuf>,
    },
    /// Sign a text or a file, as `btcli wallet sign` does.
    Sign {
        #[command(flatten)]
        message: Message,
        #[command(flatten)]
        wallet: WalletOptions,
    },
    /// Check a signature; fails when it does not hold.
    Verify {
        #[command(flatten)]
        message: Message,
        /// The signature: 128 hexadecimal digits, with or without 0x.
        #[arg(long, value_name = "HEX")]
        signature: String,
        /// Who should have signed [default: the hotkey of the wallet].
        #[arg(long, value_name = "SS58")]
        address: Option<Hotkey>,
        #[command(flatten)]
        wallet: WalletOptions,
    },
}

#[derive(clap::Args)]
struct New {
    /// Restore from the words in this file (`-`: standard input).
    #[arg(long, value_name = "FILE", conflicts_with = "seed_file")]
    mnemonic_file: Option<PathBuf>,
    /// Restore from the seed in this file, 64 hexadecimal digits (`-`: standard input).
    #[arg(long, value_name = "FILE")]
    seed_file: Option<PathBuf>,
    #[command(flatten)]
    wallet: WalletOptions,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Message {
    /// The text, signed as its UTF-8 bytes.
    text: Option<String>,
    /// Sign the bytes of this file instead (`-`: standard input).
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let answer = answer(args)?;
    match json {
        true => println!("{}", serde_json::to_string(&answer)?),
        false => println!("{answer}"),
    }
    if let Answer::New { mnemonic: Some(words), .. } = &answer
        && !json
    {
        eprintln!(
            "\nThe secret phrase, shown this once. Whoever has it has the hotkey; without it a lost file"
        );
        eprintln!("is lost for good. Write it down and keep it off this machine:\n\n  {}\n", words.as_str());
    }
    match answer {
        Answer::Verify { valid: false, address } => {
            bail!("the signature is not by {address} of this message")
        }
        _ => Ok(()),
    }
}

/// What a subcommand found out, for people (`Display`) and programs (`Serialize`).
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    New {
        address: Hotkey,
        path: PathBuf,
        /// The words of a new hotkey: not of a restored one, whose owner has them.
        #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
        mnemonic: Option<Zeroizing<String>>,
    },
    Show {
        address: Hotkey,
        public_key: String,
        path: PathBuf,
        /// Whether this machine can sign for it.
        secret: bool,
    },
    List {
        hotkeys: Vec<Listed>,
    },
    Sign {
        address: Hotkey,
        signature: Signature,
    },
    Verify {
        valid: bool,
        address: Hotkey,
    },
}

#[derive(Serialize)]
struct Listed {
    wallet: String,
    hotkey: String,
    path: PathBuf,
    address: Option<Hotkey>,
    error: Option<String>,
}

fn as_text<S: serde::Serializer>(text: &Option<Zeroizing<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| text.as_str()).serialize(serializer)
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::New { address, path, .. } => {
                write!(f, "hotkey  {address}\nfile    {}", path.display())
            }
            Answer::Show { address, public_key, path, secret } => {
                let note = if *secret { "" } else { "  (address only: it cannot sign here)" };
                write!(f, "hotkey  {address}{note}\npublic  {public_key}\nfile    {}", path.display())
            }
            Answer::List { hotkeys } if hotkeys.is_empty() => {
                f.write_str("no hotkeys here; `argus wallet new` makes one")
            }
            Answer::List { hotkeys } => {
                let name = |k: &Listed| format!("{}/{}", k.wallet, k.hotkey);
                let width = hotkeys.iter().map(|k| name(k).chars().count()).max().unwrap_or(0);
                for (index, key) in hotkeys.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "\n" };
                    write!(f, "{separator}{:width$}  ", name(key))?;
                    match (&key.address, &key.error) {
                        (Some(address), _) => write!(f, "{address}")?,
                        (None, error) => f.write_str(error.as_deref().unwrap_or_default())?,
                    }
                }
                Ok(())
            }
            Answer::Sign { signature, .. } => f.write_str(&hex::encode(signature.0)),
            Answer::Verify { valid: true, address } => write!(f, "good: signed by {address}"),
            Answer::Verify { valid: false, address } => write!(f, "bad: not signed by {address}"),
        }
    }
}

fn answer(args: Args) -> anyhow::Result<Answer> {
    Ok(match args.command {
        Command::New(new) => make(new)?,
        Command::Show { wallet } => show(&named(wallet))?,
        Command::List { wallet_path } => list(wallet_path)?,
        Command::Sign { message, wallet } => {
            // The key first: a missing one should not cost the reading of a long message.
            let secret = named(wallet).load()?;
            let signature = secret.pair().sign_raw(&message.read()?);
            Answer::Sign { address: secret.pair().hotkey(), signature }
        }
        Command::Verify { message, signature, address, wallet } => {
            let address = match address {
                Some(address) => address,
                None => named(wallet).hotkey()?,
            };
            let signature = parse_signature(&signature)?;
            Answer::Verify { valid: verify(&address, &message.read()?, &signature), address }
        }
    })
}

fn named(options: WalletOptions) -> Wallet {
    Wallet { path: options.wallet_path, name: options.wallet, hotkey: options.hotkey }
}

fn make(new: New) -> anyhow::Result<Answer> {
    let wallet = named(new.wallet);
    let (secret, made) = match (&new.mnemonic_file, &new.seed_file) {
        (Some(file), _) => (HotkeySecret::from_phrase(&read_secret(file)?)?, false),
        (None, Some(file)) => (HotkeySecret::from_seed_text(&read_secret(file)?)?, false),
        (None, None) => (HotkeySecret::generate(), true),
    };
    let path = wallet.create(&secret)?;
    let mnemonic = secret.phrase().filter(|_| made).map(|words| Zeroizing::new(words.to_owned()));
    Ok(Answer::New { address: secret.pair().hotkey(), path, mnemonic })
}

fn show(wallet: &Wallet) -> anyhow::Result<Answer> {
    let (address, secret) = match wallet.load() {
        Ok(secret) => (secret.pair().hotkey(), true),
        Err(refused) => match wallet.hotkey() {
            Ok(address) => (address, false),
            Err(_) => return Err(refused.into()),
        },
    };
    let public_key = format!("0x{}", hex::encode(address.as_bytes()));
    Ok(Answer::Show { address, public_key, path: wallet.file()?, secret })
}

fn list(path: Option<PathBuf>) -> anyhow::Result<Answer> {
    let wallet = Wallet { path, ..Wallet::default() };
    let listed = wallet.list()?.into_iter().map(|key| {
        let (address, error) = match key.hotkey {
            Ok(address) => (Some(address), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Listed { wallet: key.wallet, hotkey: key.name, path: key.path, address, error }
    });
    Ok(Answer::List { hotkeys: listed.collect() })
}

fn parse_signature(text: &str) -> anyhow::Result<Signature> {
    let digits = text.trim();
    let mut bytes = [0; 64];
    hex::decode_to_slice(digits.strip_prefix("0x").unwrap_or(digits), &mut bytes)
        .context("--signature: not 128 hexadecimal digits")?;
    Ok(Signature(bytes))
}

/// As Bittensor's keypair does: wallets in browsers sign the message between `<Bytes>` and `</Bytes>`.
fn verify(address: &Hotkey, message: &[u8], signature: &Signature) -> bool {
    let wrapped = || [b"<Bytes>", message, b"</Bytes>"].concat();
    address.verify_raw(message, signature).is_ok() || address.verify_raw(&wrapped(), signature).is_ok()
}

impl Message {
    fn read(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.text, &self.file) {
            (Some(text), _) => Ok(text.clone().into_bytes()),
            (None, Some(file)) => read(file, MESSAGE_LIMIT).map(|mut bytes| std::mem::take(&mut *bytes)),
            (None, None) => bail!("nothing to sign: give a text or --file"),
        }
    }
}

fn read_secret(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = read(path, SECRET_LIMIT)?;
    let text = String::from_utf8(std::mem::take(&mut *bytes));
    text.map(Zeroizing::new).map_err(|_| anyhow::anyhow!("{}: not text", path.display()))
}

fn read(path: &Path, limit: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LIMIT as usize + 1));
    let from: &mut dyn Read = match path == Path::new("-") {
        true => &mut io::stdin().lock(),
        false => &mut File::open(path).with_context(|| path.display().to_string())?,
    };
    from.take(limit + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    if bytes.len() as u64 > limit {
        bail!("{}: more than {limit} bytes", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tempfile::TempDir;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    const PHRASE: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
    const ADDRESS: &str = "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV";

    /// The answer to a command line, as JSON; `{}` stands for the folder of wallets.
    fn ask(root: &TempDir, line: &[&str]) -> anyhow::Result<serde_json::Value> {
        let root = root.path().to_str().unwrap();
        let words = line.iter().map(|word| word.replace("{}", root));
        let cli = Cli::try_parse_from(std::iter::once("wallet".to_owned()).chain(words))?;
        let answer = answer(cli.args)?;
        assert!(!answer.to_string().is_empty());
        Ok(serde_json::to_value(answer)?)
    }

    fn restored() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("words.txt"), format!("{PHRASE}\n")).unwrap();
        let new = ask(&root, &["new", "--wallet-path={}/w", "--mnemonic-file={}/words.txt"]).unwrap();
        assert_eq!(new["address"], ADDRESS);
        assert_eq!(new.get("mnemonic"), None, "the owner has it");
        root
    }

    #[test]
    fn new_shows_its_words_and_they_restore_it() {
        let root = tempfile::tempdir().unwrap();
        let new = ask(&root, &["new", "--wallet-path={}/w", "--wallet=a", "--hotkey=b"]).unwrap();
        assert_eq!(new["path"], format!("{}/w/a/hotkeys/b", root.path().display()));
        std::fs::write(root.path().join("words.txt"), new["mnemonic"].as_str().unwrap()).unwrap();
        let line = ["new", "--wallet-path={}/w", "--wallet=a", "--hotkey=c", "--mnemonic-file={}/words.txt"];
        let again = ask(&root, &line).unwrap();
        assert_eq!(again["address"], new["address"]);
        assert!(ask(&root, &line).unwrap_err().to_string().contains("exists already"));
        let list = ask(&root, &["list", "--wallet-path={}/w"]).unwrap();
        let names: Vec<_> = list["hotkeys"].as_array().unwrap().iter().map(|k| &k["hotkey"]).collect();
        assert_eq!(names, ["b", "c"]);
        let show = ask(&root, &["show", "--wallet-path={}/w", "--wallet=a", "--hotkey=b"]).unwrap();
        assert_eq!(show["address"], new["address"]);
        assert_eq!(show["secret"], true);
    }

    #[test]
    fn restores_from_a_seed() {
        let root = tempfile::tempdir().unwrap();
        let seed = "0xfac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e\n";
        std::fs::write(root.path().join("seed.txt"), seed).unwrap();
        let new = ask(&root, &["new", "--wallet-path={}/w", "--seed-file={}/seed.txt"]).unwrap();
        assert_eq!(new["address"], ADDRESS);
        std::fs::write(root.path().join("seed.txt"), "hunter2").unwrap();
        let line = ["new", "--wallet-path={}/w", "--hotkey=x", "--seed-file={}/seed.txt"];
        let refused = ask(&root, &line).unwrap_err().to_string();
        assert!(refused.contains("64 hexadecimal digits") && !refused.contains("hunter2"));
    }

    #[test]
    fn what_is_signed_verifies_and_nothing_else() {
        let root = restored();
        let signed = ask(&root, &["sign", "hello", "--wallet-path={}/w"]).unwrap();
        let signature = format!("--signature={}", signed["signature"].as_str().unwrap());
        let address = format!("--address={ADDRESS}");
        let verify = |message: &str, address: &str| {
            let line = ["verify", message, &signature, address, "--wallet-path={}/w"];
            ask(&root, &line).unwrap()["valid"].as_bool().unwrap()
        };
        assert!(verify("hello", &address));
        assert!(!verify("hello ", &address));
        assert!(!verify("hello", "--address=5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"));
        // The file of the same bytes, against the wallet's own hotkey.
        std::fs::write(root.path().join("hello"), "hello").unwrap();
        let line = ["verify", "--file={}/hello", &signature, "--wallet-path={}/w"];
        assert_eq!(ask(&root, &line).unwrap()["valid"], true);
        let bad = ["verify", "hello", "--signature=0x12", "--wallet-path={}/w"];
        assert!(ask(&root, &bad).is_err());
    }

    #[test]
    fn a_failed_verification_fails_the_command() {
        let root = restored();
        let path = format!("--wallet-path={}/w", root.path().display());
        let signature = format!("--signature={}", "00".repeat(64));
        for json in [false, true] {
            let cli = Cli::parse_from(["wallet", "verify", "hello", &signature, &path]);
            assert!(run(cli.args, json).is_err());
        }
    }

    #[test]
    fn takes_what_browser_wallets_wrap() {
        let pair = HotkeySecret::from_phrase(PHRASE).unwrap().into_pair();
        let signature = pair.sign_raw(b"<Bytes>hello</Bytes>");
        assert!(verify(&pair.hotkey(), b"hello", &signature));
        assert!(!verify(&pair.hotkey(), b"hell", &signature));
    }

    #[test]
    fn a_public_half_can_be_shown_and_not_sign() {
        let root = restored();
        std::fs::remove_file(root.path().join("w/default/hotkeys/default")).unwrap();
        let show = ask(&root, &["show", "--wallet-path={}/w"]).unwrap();
        assert_eq!(show["address"], ADDRESS);
        assert_eq!(show["secret"], false);
        let refused = ask(&root, &["sign", "hello", "--wallet-path={}/w"]).unwrap_err();
        assert!(refused.to_string().contains(ADDRESS));
    }

    #[test]
    fn needs_one_message_and_one_source() {
        let root = tempfile::tempdir().unwrap();
        for line in [
            &["sign"][..],
            &["sign", "a", "--file=b"],
            &["verify", "a"],
            &["new", "--seed-file=a", "--mnemonic-file=b"],
        ] {
            assert!(ask(&root, line).is_err(), "{line:?}");
        }
    }
}
