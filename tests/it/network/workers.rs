//! A miner whose work is done by `argus worker`, over HTTP: the worker is killed and comes back.

use std::process::{Command, Output};

use super::{
    by_hand::{LISTEN, Node, argus},
    *,
};

/// A chain, a miner whose backend is HTTP, and whoever asks it.
struct Net {
    root: tempfile::TempDir,
    _chain: Node,
    miner: Node,
    asking: Vec<String>,
}

impl Net {
    fn worker(root: &Path, listen: &str) -> Node {
        let arguments = ["worker", "--listen", listen, "--models", "argus-tiny", "--token", "secret"];
        Node::start_without_folder(&root.join("worker.log"), &arguments, root.to_owned())
    }

    fn start() -> (Self, Node) {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let dev = ["devchain", "--listen", "127.0.0.1:0", "--block-ms", "250", "--tempo", "8"];
        let chain = Node::start(&at("chain.log"), &dev, at("chain"));
        let url = chain.ready["endpoint"].as_str().unwrap().to_owned();
        let wallets = at("wallets").display().to_string();
        for hotkey in ["miner", "validator"] {
            let wallet = ["--wallet-path", &wallets, "--wallet", "demo", "--hotkey", hotkey];
            argus(&[&["wallet", "new"][..], &wallet].concat());
            let on_chain = [&wallet[..], &["--chain", &url, "--netuid", "1"]].concat();
            argus(&[&["chain", "register"][..], &on_chain].concat());
            if hotkey == "validator" {
                argus(&[&["chain", "stake", "--amount", "5000"][..], &on_chain].concat());
            }
        }
        let worker = Self::worker(root.path(), "127.0.0.1:0");
        let address = worker.ready["address"].as_str().unwrap();
        let config = at("miner.toml");
        let backend = format!(
            "backend = {{ kind = \"http\", url = \"http://{address}/generate\", info = \"http://{address}/info\", \
             slots = 1, health_ms = 200, token = \"secret\" }}"
        );
        let preset: String = PRESET.replacen("[miner]\n", &format!("[miner]\n{backend}\n"), 1);
        let preset = match preset.contains(&backend) {
            true => preset,
            false => format!("{preset}\n[miner]\n{backend}\n"),
        };
        std::fs::write(&config, preset).unwrap();
        let config = config.display().to_string();
        let common = [
            "--config",
            &config,
            "--chain",
            &url,
            "--netuid",
            "1",
            "--wallet-path",
            &wallets,
            "--wallet",
            "demo",
        ];
        let arguments =
            [&["miner", "--models", "argus-tiny", "--hotkey", "miner"][..], &common, &LISTEN].concat();
        let miner = Node::start(&at("miner.log"), &arguments, at("miner"));
        let bootstrap = miner.ready["addresses"][0].as_str().unwrap();
        let asking = [&common[..], &["--hotkey", "validator", "--bootstrap", bootstrap]].concat();
        let asking = asking.iter().map(|&argument| argument.to_owned()).collect();
        (Self { root, _chain: chain, miner, asking }, worker)
    }

    /// `argus query text-to-image`.
    fn query(&self) -> Output {
        let output = self.root.path().join("picture.png");
        let mut command = Command::new(BINARY);
        command.args([
            "--json",
            "query",
            "text-to-image",
            "a red apple",
            "--steps",
            "5",
            "--seed",
            "7",
            "-o",
        ]);
        command.arg(output).args(&self.asking).output().unwrap()
    }

    /// Asks until there is a picture, and gives it.
    fn picture(&self) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let output = self.query();
            if output.status.success() {
                return std::fs::read(self.root.path().join("picture.png")).unwrap();
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(Instant::now() < deadline, "no picture: {said}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

#[test]
fn a_miner_outlives_its_worker() {
    let (net, mut worker) = Net::start();
    let address = worker.ready["address"].as_str().unwrap().to_owned();
    let first = net.picture();
    assert_eq!(image::load_from_memory(&first).unwrap().width(), 128);

    worker.kill();
    // The miner says why it cannot, and is not ended by it.
    let output = net.query();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !said.trim().is_empty());

    let _worker = Net::worker(net.root.path(), &address);
    // The same seed: the same picture to the bit.
    assert_eq!(net.picture(), first);
    assert_eq!(net.miner.ready["role"], "miner");
}
