//! A whole network on one machine, as supervised child processes of this binary: a development chain, a
//! relay, miners and validators, each in a folder of its own, joined by the relay's address alone.

pub mod demo;
mod process;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use argus_protocols::{Hotkey, HotkeyPair};
use serde_json::Value;

use crate::{
    chain::{Chain, ChainError, Settings, TAO, dev},
    identity::{HotkeySecret, IdentityError, Wallet},
};

pub use process::{Process, ProcessError, Spec};

/// Models are loaded and warmed up before a node is ready; on a busy machine that takes a while.
const READY: Duration = Duration::from_secs(120);
const WALLET: &str = "devnet";
/// The subnet of a devnet.
pub const NETUID: u16 = 1;
/// Stake of each validator.
const STAKE: u64 = 5000 * TAO;
/// Laid under every node's own settings.
pub const PRESET: &str = include_str!("../../config/devnet.toml");

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `argus` binary.
    pub binary: PathBuf,
    /// Folder of all nodes; kept, so that a second start goes on where the first one stopped.
    pub dir: PathBuf,
    pub validators: usize,
    /// Further arguments of each miner; the length is the number of miners.
    pub miners: Vec<Vec<String>>,
    /// Configuration file of every node.
    pub config: String,
    /// Block time of the chain.
    pub block_ms: u32,
    /// Blocks of an epoch.
    pub tempo: u16,
    /// The first validator's API; port 0 takes a free one.
    pub api: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DevnetError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot use {path}: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("`argus {command}` failed: {message}")]
    Command { command: String, message: String },
    #[error("{name} did not say its {what}")]
    Incomplete { name: String, what: &'static str },
}

/// A validator that runs.
pub struct Validator {
    pub process: Process,
    pub dir: PathBuf,
    /// `http://…` of its API.
    pub api: String,
    pub hotkey: Hotkey,
}

/// A miner that runs.
pub struct Miner {
    pub process: Process,
    pub dir: PathBuf,
    pub hotkey: Hotkey,
}

/// A running network.
pub struct Devnet {
    options: Options,
    chain: Process,
    /// `http://…` of the chain.
    pub chain_url: String,
    relay: Process,
    /// What others join by.
    pub bootstrap: String,
    pub miners: Vec<Miner>,
    pub validators: Vec<Validator>,
}

impl Devnet {
    /// Starts everything; `report` is told each step.
    pub async fn start(options: Options, mut report: impl FnMut(&str)) -> Result<Self, DevnetError> {
        let layout = Layout::create(&options)?;
        report("starting the development chain");
        let (block_ms, tempo) = (options.block_ms.to_string(), options.tempo.to_string());
        let mut chain = layout.spawn(
            "chain",
            &["devchain", "--listen", "127.0.0.1:0", "--block-ms", &block_ms, "--tempo", &tempo],
        )?;
        let chain_url = text(&chain.ready(READY).await?, "endpoint", "chain", "endpoint")?;

        report("registering hotkeys");
        let client = dev::Client::new(&Settings::at(&chain_url))?;
        let names = options.names();
        let registered = names.iter().map(|name| layout.register(name, &client));
        let hotkeys = futures::future::try_join_all(registered).await?;

        report("starting the relay");
        let mut relay = layout.spawn("relay", &[&["relay"][..], &LISTEN].concat())?;
        let ready = relay.ready(READY).await?;
        let bootstrap = ready["addresses"]
            .as_array()
            .and_then(|all| all.iter().find_map(|a| a.as_str().filter(|a| a.contains("/127.0.0.1/tcp/"))))
            .ok_or(DevnetError::Incomplete { name: "relay".into(), what: "address" })?
            .to_owned();

        let mut net =
            Self { chain, chain_url, relay, bootstrap, miners: Vec::new(), validators: Vec::new(), options };
        report("starting miners and validators");
        net.start_nodes(&layout, hotkeys).await?;
        Ok(net)
    }

    /// Miners and validators start side by side: most of it is loading models.
    async fn start_nodes(&mut self, layout: &Layout, hotkeys: Vec<Hotkey>) -> Result<(), DevnetError> {
        let names = self.options.names();
        let (miners, validators) = names.split_at(self.options.miners.len());
        let mut started = Vec::new();
        for (name, extra) in miners.iter().zip(&self.options.miners) {
            let extra: Vec<&str> = extra.iter().map(String::as_str).collect();
            started.push(layout.spawn_node("miner", name, self, &extra)?);
        }
        for (index, name) in validators.iter().enumerate() {
            let api = if index == 0 { self.options.api.as_str() } else { "127.0.0.1:0" };
            started.push(layout.spawn_node("validator", name, self, &["--api", api])?);
        }
        for ((mut process, name), hotkey) in started.into_iter().zip(&names).zip(hotkeys) {
            let ready = process.ready(READY).await?;
            let dir = layout.dir(name);
            if name.starts_with("miner") {
                self.miners.push(Miner { process, dir, hotkey });
            } else {
                let api = format!("http://{}", text(&ready, "api", name, "API address")?);
                self.validators.push(Validator { process, dir, api, hotkey });
            }
        }
        Ok(())
    }

    /// Stops validators, then miners, then what they stand on.
    pub async fn stop(self) {
        let nodes =
            self.validators.into_iter().map(|v| v.process).chain(self.miners.into_iter().map(|m| m.process));
        futures::future::join_all(nodes.map(Process::stop)).await;
        self.relay.stop().await;
        self.chain.stop().await;
    }

    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// A new API key of the first validator.
    pub async fn key(&self, name: &str) -> Result<String, DevnetError> {
        let dir = path_text(&self.validators[0].dir);
        let made = command(&self.options.binary, &["keys", "new", name, "--data-dir", &dir]).await?;
        text(&made, "key", "keys new", "key")
    }
}

/// Loopback only, any free port.
const LISTEN: [&str; 4] = ["--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];

impl Options {
    /// `miner-1`, …, `validator-1`, …: names of folders, hotkeys and logs.
    fn names(&self) -> Vec<String> {
        let miners = (1..=self.miners.len()).map(|n| format!("miner-{n}"));
        miners.chain((1..=self.validators).map(|n| format!("validator-{n}"))).collect()
    }
}

/// Where things are on disk.
struct Layout {
    binary: PathBuf,
    root: PathBuf,
    config: PathBuf,
    wallets: PathBuf,
}

impl Layout {
    fn create(options: &Options) -> Result<Self, DevnetError> {
        let fail = |source| DevnetError::Folder { path: options.dir.clone(), source };
        fs::create_dir_all(&options.dir).map_err(fail)?;
        let root = fs::canonicalize(&options.dir).map_err(fail)?;
        let config = root.join("devnet.toml");
        fs::write(&config, &options.config).map_err(fail)?;
        let wallets = root.join("wallets");
        Ok(Self { binary: options.binary.clone(), root, config, wallets })
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn spawn(&self, name: &str, arguments: &[&str]) -> Result<Process, DevnetError> {
        let dir = self.dir(name);
        let mut all: Vec<String> = vec!["--json".into()];
        all.extend(arguments.iter().map(|&a| a.to_owned()));
        all.extend(["--data-dir".into(), path_text(&dir)]);
        if arguments[0] != "devchain" {
            all.extend(["--config".into(), path_text(&self.config)]);
        }
        let log = self.root.join(format!("{name}.log"));
        let spec = Spec { name: name.to_owned(), binary: self.binary.clone(), arguments: all, log };
        Ok(Process::start(spec)?)
    }

    fn spawn_node(
        &self,
        role: &str,
        name: &str,
        net: &Devnet,
        extra: &[&str],
    ) -> Result<Process, DevnetError> {
        let (netuid, wallets) = (NETUID.to_string(), path_text(&self.wallets));
        let common = [
            role,
            "--chain",
            &net.chain_url,
            "--netuid",
            &netuid,
            "--bootstrap",
            &net.bootstrap,
            "--wallet-path",
            &wallets,
            "--wallet",
            WALLET,
            "--hotkey",
            name,
        ];
        self.spawn(name, &[&common[..], &LISTEN, extra].concat())
    }

    /// Makes the hotkey unless it is there, registers it, and gives validators their stake.
    async fn register(&self, name: &str, chain: &dev::Client) -> Result<Hotkey, DevnetError> {
        let pair = self.pair(name)?;
        let hotkey = pair.hotkey();
        let known = chain.metagraph(NETUID).await.ok().and_then(|m| m.by_hotkey(&hotkey).cloned());
        if known.is_none() {
            chain.register(&pair, NETUID).await?;
        }
        if name.starts_with("validator") && known.is_none_or(|neuron| neuron.stake < STAKE) {
            chain.faucet(&pair, STAKE).await?;
            chain.add_stake(&pair, NETUID, STAKE).await?;
        }
        Ok(hotkey)
    }

    fn pair(&self, name: &str) -> Result<HotkeyPair, DevnetError> {
        let wallet =
            Wallet { path: Some(self.wallets.clone()), name: Some(WALLET.into()), hotkey: Some(name.into()) };
        match wallet.load() {
            Err(IdentityError::NoHotkey { .. }) => {
                let secret = HotkeySecret::generate();
                wallet.create(&secret)?;
                Ok(secret.into_pair())
            }
            loaded => Ok(loaded?.into_pair()),
        }
    }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn text(value: &Value, field: &str, name: &str, what: &'static str) -> Result<String, DevnetError> {
    let missing = || DevnetError::Incomplete { name: name.to_owned(), what };
    value[field].as_str().map(str::to_owned).ok_or_else(missing)
}

/// Runs `argus --json …` to its end.
async fn command(binary: &Path, arguments: &[&str]) -> Result<Value, DevnetError> {
    let fail = |message: String| DevnetError::Command { command: arguments[..2].join(" "), message };
    let output = tokio::process::Command::new(binary)
        .arg("--json")
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| fail(e.to_string()))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| fail(format!("its answer is not JSON: {e}")))
}
