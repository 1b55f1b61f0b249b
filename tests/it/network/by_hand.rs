//! Separate processes started as the README says, joining by the relay's address alone; then the kills.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use super::*;

/// A process of the binary that has said it is ready.
pub(super) struct Node {
    child: Child,
    pub(super) ready: Value,
    dir: PathBuf,
}

impl Node {
    pub(super) fn start(log: &Path, arguments: &[&str], dir: PathBuf) -> Self {
        let data_dir = dir.display().to_string();
        Self::start_without_folder(log, &[arguments, &["--data-dir", &data_dir]].concat(), dir)
    }

    /// One that keeps nothing on disk.
    pub(super) fn start_without_folder(log: &Path, arguments: &[&str], dir: PathBuf) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut child = Command::new(BINARY)
            .arg("--json")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let (lines, found) = mpsc::sync_channel(1);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str::<Value>(&line)
                    && value["event"] == "ready"
                {
                    let _ = lines.try_send(value);
                }
            }
        });
        let ready = found.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("not ready: argus {arguments:?}")
        });
        Self { child, ready, dir }
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn argus(arguments: &[&str]) -> Value {
    let output = Command::new(BINARY).arg("--json").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "argus {arguments:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(super) const LISTEN: [&str; 4] =
    ["--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];

/// A network by hand, with two miners.
struct ByHand {
    root: tempfile::TempDir,
    chain: Node,
    relay: Node,
    miners: Vec<Node>,
    validator: Option<Node>,
    common: Vec<String>,
}

impl ByHand {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let chain = Node::start(
            &at("chain.log"),
            &["devchain", "--listen", "127.0.0.1:0", "--block-ms", "250", "--tempo", "8"],
            at("chain"),
        );
        let url = chain.ready["endpoint"].as_str().unwrap().to_owned();
        let wallets = at("wallets").display().to_string();
        for hotkey in ["miner-1", "miner-2", "validator"] {
            let wallet = ["--wallet-path", &wallets, "--wallet", "demo", "--hotkey", hotkey];
            argus(&[&["wallet", "new"][..], &wallet].concat());
            let on_chain = [&wallet[..], &["--chain", &url, "--netuid", "1"]].concat();
            argus(&[&["chain", "register"][..], &on_chain].concat());
            if hotkey == "validator" {
                argus(&[&["chain", "stake", "--amount", "5000"][..], &on_chain].concat());
            }
        }
        let config = at("devnet.toml");
        std::fs::write(&config, PRESET).unwrap();
        let config = config.display().to_string();
        let relay = Node::start(
            &at("relay.log"),
            &[&["relay", "--config", &config][..], &LISTEN].concat(),
            at("relay"),
        );
        let addresses = relay.ready["addresses"].as_array().unwrap();
        let bootstrap = addresses[0].as_str().unwrap();
        let common: Vec<String> = [
            "--config",
            &config,
            "--chain",
            &url,
            "--netuid",
            "1",
            "--bootstrap",
            bootstrap,
            "--wallet-path",
            &wallets,
            "--wallet",
            "demo",
        ]
        .iter()
        .chain(&LISTEN)
        .map(|&a| a.to_owned())
        .collect();
        let mut net = Self { chain, relay, miners: Vec::new(), validator: None, common, root };
        for name in ["miner-1", "miner-2"] {
            let miner = net.node("miner", name, &[]);
            net.miners.push(miner);
        }
        net.validator = Some(net.node("validator", "validator", &["--api", "127.0.0.1:0"]));
        net
    }

    fn node(&self, role: &str, name: &str, extra: &[&str]) -> Node {
        let common: Vec<&str> = self.common.iter().map(String::as_str).collect();
        let arguments = [&[role, "--hotkey", name][..], &common, extra].concat();
        Node::start(&self.root.path().join(format!("{name}.log")), &arguments, self.root.path().join(name))
    }

    fn api(&self) -> String {
        format!("http://{}", self.validator.as_ref().unwrap().ready["api"].as_str().unwrap())
    }
}

/// A picture as soon as the validator has found a miner.
async fn first_picture(api: &str, key: &str) {
    let request = Request { prompt: "a red apple".into(), ..Request::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match picture(api, key, &request).await {
            Ok(png) => {
                assert_eq!(image::load_from_memory(&png).unwrap().width(), 128);
                return;
            }
            Err(error) => assert!(Instant::now() < deadline, "no picture: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_by_hand_survives_kills() {
    let mut net = ByHand::start();
    let dir = net.validator.as_ref().unwrap().dir.clone();
    let data_dir = dir.display().to_string();
    let key = argus(&["keys", "new", "me", "--data-dir", &data_dir])["key"].as_str().unwrap().to_owned();
    first_picture(&net.api(), &key).await;

    a_miner_killed_in_mid_query(&mut net, &key).await;

    // Something to lose: scored answers with their receipts. Failures, of the miner that was killed for one,
    // are scored too and have none.
    let scored = |work: &Value| {
        let periods = work["report"]["periods"].as_array()?;
        let scored: u64 = periods.iter().filter_map(|period| period["scored"].as_u64()).sum();
        let miners = work["report"]["miners"].as_array()?.iter();
        let failures = miners.filter_map(|miner| miner["failures"].as_object()).flat_map(|by| by.values());
        let failed: u64 = failures.filter_map(Value::as_u64).sum();
        (scored >= failed + 2).then_some(periods.len())
    };
    let periods = wait_for("scores", Duration::from_secs(60), &dir, scored).await;

    // The validator is killed, and the bootstrap node with it.
    net.validator.as_mut().unwrap().kill();
    net.relay.kill();
    let kept = argus(&["receipts", "--data-dir", &data_dir]);
    assert!(kept["verified"].as_u64().unwrap() >= 2 && kept["damaged"] == 0, "{kept}");
    net.validator = Some(net.node("validator", "validator", &["--api", "127.0.0.1:0"]));
    let after = status(&dir).await["work"]["report"]["periods"].as_array().unwrap().len();
    assert!(after >= periods, "{after} periods after the kill, {periods} before");
    let keys = argus(&["keys", "list", "--data-dir", &data_dir]);
    assert!(keys.to_string().contains("\"me\""), "{keys}");
    // Its key still opens the API, and the miner is found by the address book alone.
    first_picture(&net.api(), &key).await;
    drop(net.chain);
}

/// Both miners are at work when one is killed: its query goes to the other one, or fails with a reason.
async fn a_miner_killed_in_mid_query(net: &mut ByHand, key: &str) {
    let (api, key) = (net.api(), key.to_owned());
    let (steps, mut stepped) = tokio::sync::mpsc::channel(256);
    let long = Request { prompt: "a pizza".into(), steps: Some(50), ..Request::default() };
    let asked: Vec<_> = (0..2)
        .map(|_| {
            let (client, long, steps) = (Client::new(&api, Some(key.clone())), long.clone(), steps.clone());
            tokio::spawn(async move { client.generate(&long, |step| _ = steps.try_send(step)).await })
        })
        .collect();
    stepped.recv().await.expect("a step of the work");
    let mut killed = net.miners.remove(0);
    killed.kill();
    for answer in asked {
        let answer = tokio::time::timeout(Duration::from_secs(120), answer).await;
        match answer.expect("an answer within the deadline").unwrap() {
            Ok(generated) => assert!(image::load_from_memory(&generated.png).is_ok()),
            Err(ClientError::Refused { message, .. }) => assert!(!message.is_empty()),
            Err(other) => panic!("neither an answer nor a reason: {other}"),
        }
    }
}
