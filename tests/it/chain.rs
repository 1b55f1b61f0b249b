//! The development chain over real HTTP, and as a process that is killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use argus::chain::{
    self, Chain, ChainError, Hash, Metagraph, Refusal, Settings, TAO, Watch,
    dev::{self, Call, Client, Rules, wire},
};
use argus_protocols::HotkeyPair;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NETUID: u16 = 1;
/// For anything that should take moments, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(90);

struct Devchain {
    running: dev::Running,
    shutdown: CancellationToken,
}

impl Devchain {
    async fn start(data_dir: &Path, rules: Rules) -> Self {
        let mut settings = dev::Settings::local(data_dir);
        settings.block_ms = 25;
        settings.rules = rules;
        let shutdown = CancellationToken::new();
        let running = dev::serve(settings, shutdown.clone()).await.unwrap();
        Self { running, shutdown }
    }

    fn url(&self) -> String {
        format!("http://{}", self.running.address)
    }

    fn client(&self) -> Client {
        Client::new(&Settings::at(self.url())).unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running.task).await.unwrap().unwrap().unwrap();
    }
}

fn rules() -> Rules {
    Rules { tempo: Some(10), weights_rate_limit: Some(4), ..Rules::default() }
}

fn pair(number: u8) -> HotkeyPair {
    HotkeyPair::from_seed(&[number; 32])
}

async fn metagraph_when(client: &Client, what: &str, condition: impl Fn(&Metagraph) -> bool) -> Metagraph {
    let until = Instant::now() + PATIENCE;
    loop {
        let metagraph = client.metagraph(NETUID).await.unwrap();
        if condition(&metagraph) {
            return metagraph;
        }
        assert!(Instant::now() < until, "never: {what}: {metagraph:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused(result: Result<chain::Inclusion, ChainError>) -> Refusal {
    match result {
        Err(ChainError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn from_registration_to_incentive_with_a_restart_in_between() {
    let dir = tempfile::tempdir().unwrap();
    // A long limit first, so that "too fast" is sure to be seen.
    let rules = Rules { weights_rate_limit: Some(40), tempo: Some(60), ..Rules::default() };
    let chain = Devchain::start(dir.path(), rules.clone()).await;
    let client = chain.client();
    let (validator, miner) = (pair(1), pair(2));
    let weights = [(1u16, 7u16)];

    assert_eq!(refused(client.set_weights(&validator, 7, &weights, 0).await), Refusal::SubnetNotExists);
    client.register(&validator, NETUID).await.unwrap();
    client.register(&miner, NETUID).await.unwrap();
    let again = client.register(&miner, NETUID).await;
    assert_eq!(refused(again), Refusal::HotKeyAlreadyRegisteredInSubNet);
    let poor = client.set_weights(&validator, NETUID, &weights, 0).await.unwrap_err();
    assert_eq!(poor.refusal(), Some(&Refusal::NotEnoughStakeToSetWeights));
    assert!(!poor.retryable());
    client.faucet(&validator, 5000 * TAO).await.unwrap();
    let staked = client.add_stake(&validator, NETUID, 5000 * TAO).await.unwrap();
    let block = client.block(staked.block).await.unwrap();
    assert!(block.extrinsics.iter().any(|e| e.hash() == staked.hash));
    let fast = client.set_weights(&validator, NETUID, &weights, 0).await.unwrap_err();
    assert_eq!(fast.refusal(), Some(&Refusal::SettingWeightsTooFast));
    assert!(fast.retryable());

    let before = client.info().await.unwrap();
    chain.stop().await;
    let chain = Devchain::start(dir.path(), rules).await;
    let client = chain.client();
    let after = client.info().await.unwrap();
    assert_eq!(after.genesis, before.genesis);
    assert!(after.head.block >= before.head.block);
    assert_eq!(client.account(&validator.hotkey()).await.unwrap().stake[&NETUID], 5000 * TAO);

    metagraph_when(&client, "a permit", |m| m.neurons[0].permit).await;
    let set = loop {
        match client.set_weights(&validator, NETUID, &weights, 0).await {
            Err(error) if error.retryable() => tokio::time::sleep(Duration::from_millis(100)).await,
            other => break other.unwrap(),
        }
    };
    let rows = client.weights(NETUID).await.unwrap();
    assert_eq!((rows[0].uid, rows[0].weights.clone()), (0, vec![(1, 65535)]));
    let graph = metagraph_when(&client, "an epoch", |m| m.last_epoch > set.block).await;
    let (validator_now, miner_now) = (&graph.neurons[0], &graph.neurons[1]);
    assert_eq!((miner_now.incentive, miner_now.consensus), (65535, 65535));
    assert_eq!((validator_now.dividends, validator_now.vtrust), (65535, 65535));
    assert_eq!(validator_now.last_update, set.block);
    assert!(validator_now.stake > 5000 * TAO && miner_now.emission > 0);
    assert!(client.account(&miner.hotkey()).await.unwrap().balance >= miner_now.emission);
    chain.stop().await;
}

/// Speaks HTTP as a hostile or clumsy client would.
async fn raw(method: reqwest::Method, url: String, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let answer = reqwest::Client::new().request(method, url).body(body).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} {text:?}: {e}"));
    (status, value)
}

#[tokio::test]
async fn bad_requests_get_a_json_error_that_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Devchain::start(dir.path(), rules()).await;
    let client = chain.client();
    let url = |path: &str| format!("{}{path}", chain.url());
    use reqwest::Method;
    for (path, expected) in [
        ("/", 404),
        ("/v1/nothing", 404),
        ("/v1/subnets/9/metagraph", 404),
        ("/v1/subnets/9/weights", 404),
        ("/v1/subnets/x/metagraph", 400),
        ("/v1/subnets/70000/metagraph", 400),
        ("/v1/accounts/nobody", 400),
        ("/v1/extrinsics/0x12", 400),
        ("/v1/blocks/-1", 400),
        ("/v1/blocks/18446744073709551615", 404),
    ] {
        let (status, answer) = raw(Method::GET, url(path), "").await;
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(!answer["message"].as_str().unwrap().is_empty(), "{path}");
    }
    let wait = format!("/v1/extrinsics/{}?wait_ms=soon", Hash([0; 32]));
    assert_eq!(raw(Method::GET, url(&wait), "").await.0, 400);
    assert_eq!(raw(Method::DELETE, url("/v1/chain"), "").await.0, 405);
    for (body, says) in [
        (String::new(), "EOF"),
        ("{".into(), "EOF"),
        ("[1]".into(), "not an extrinsic"),
        (r#"{"signer":"5x"}"#.into(), "not an extrinsic"),
        ("9".repeat(200 << 10), "length limit"),
        ("[".repeat(60 << 10), "not an extrinsic"),
    ] {
        let (status, answer) = raw(Method::POST, url("/v1/extrinsics"), body).await;
        assert!((400..500).contains(&status), "{answer}");
        assert_eq!(answer["error"], "BadRequest");
        assert!(answer["message"].as_str().unwrap().contains(says), "{answer}");
    }

    // Signed well, and still wrong.
    let genesis = client.info().await.unwrap().genesis;
    let call = Call::Faucet { amount: TAO };
    let signed = |genesis, nonce, call| {
        wire::Extrinsic::sign(&pair(1), &wire::Payload { genesis, nonce, id: 0, call })
    };
    let mut forged = signed(genesis, 0, call.clone());
    forged.payload = forged.payload.replace("1000000000", "9000000000");
    let mut unknown = signed(genesis, 0, call.clone());
    unknown.payload = json!({ "genesis": genesis, "nonce": 0, "id": 0, "call": { "mint": {} } }).to_string();
    unknown.signature = pair(1).sign(argus_protocols::hotkey::Domain::DevChain, unknown.payload.as_bytes());
    for (extrinsic, error) in [
        (forged, "BadProof"),
        (unknown, "BadRequest"),
        (signed(Hash([7; 32]), 0, call.clone()), "AncientBirthBlock"),
        (signed(genesis, 1, call.clone()), "Future"),
        (signed(genesis, 0, Call::Register { netuid: 9 }), "SubnetNotExists"),
    ] {
        let body = serde_json::to_string(&extrinsic).unwrap();
        let (status, answer) = raw(Method::POST, url("/v1/extrinsics"), body).await;
        assert!((400..500).contains(&status), "{answer}");
        assert_eq!(answer["error"], error, "{answer}");
    }
    let once = signed(genesis, 0, call);
    client.submit_extrinsic(&once).await.unwrap();
    client.submit_extrinsic(&once).await.unwrap();
    let account = client.account(&pair(1).hotkey()).await.unwrap();
    assert_eq!((account.balance, account.nonce), (TAO, 1), "a replay has no effect");
    chain.stop().await;
}

#[tokio::test]
async fn one_hotkey_used_by_many_at_once_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Devchain::start(dir.path(), rules()).await;
    let client = chain.client();
    let calls = (0..4).map(|_| {
        let client = client.clone();
        async move { client.faucet(&pair(1), TAO).await }
    });
    let outcomes = futures::future::join_all(calls).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(client.account(&pair(1).hotkey()).await.unwrap().balance, 4 * TAO);
    chain.stop().await;
}

#[tokio::test]
async fn a_watch_follows_the_chain_and_survives_its_absence() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Devchain::start(dir.path(), rules()).await;
    let settings = Settings { refresh_ms: 250, ..Settings::at(chain.url()) };
    let shutdown = CancellationToken::new();
    let (watch, task) = Watch::start(chain::connect(&settings).unwrap(), NETUID, &settings, shutdown.clone());
    assert!(watch.ready(PATIENCE).await.unwrap().neurons.is_empty());
    chain.client().register(&pair(3), NETUID).await.unwrap();
    let until = async |condition: &dyn Fn(&chain::View) -> bool| {
        let mut watch = watch.clone();
        let end = Instant::now() + PATIENCE;
        while !condition(&watch.view()) {
            assert!(Instant::now() < end, "{:?}", watch.view());
            watch.refresh();
            tokio::select! {
                more = watch.changed() => assert!(more),
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    };
    let registered = |view: &chain::View| view.metagraph.as_ref().is_some_and(|m| m.neurons.len() == 1);
    until(&registered).await;
    let block = chain.client().head().await.unwrap().block;
    chain.stop().await;
    until(&|view| view.failures > 0).await;
    assert!(registered(&watch.view()), "the last good one stays");
    // Port 0 takes the port that the chain had before.
    let chain = Devchain::start(dir.path(), rules()).await;
    assert_eq!(chain.url(), settings.endpoint);
    until(&|view| view.failures == 0 && view.metagraph.as_ref().is_some_and(|m| m.block >= block)).await;
    shutdown.cancel();
    task.await.unwrap();
    chain.stop().await;
}

#[tokio::test]
async fn a_chain_that_is_not_there_or_talks_nonsense_is_a_typed_error() {
    let nobody = Client::new(&Settings::at("http://127.0.0.1:1")).unwrap();
    let error = nobody.register(&pair(1), NETUID).await.unwrap_err();
    assert_eq!(error.reason(), "unreachable");
    assert!(error.retryable());
    let websocket = chain::connect(&Settings::at("wss://entrypoint.example:443")).err().unwrap();
    assert_eq!(websocket.reason(), "unsupported");
    assert!(!websocket.retryable() && websocket.to_string().contains("argus devchain"));

    // A server that answers anything with more and more of nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endless = axum::Router::new().fallback(|| async {
        axum::body::Body::from_stream(futures::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(vec![b' '; 1 << 16])
        }))
    });
    let server = tokio::spawn(async move { axum::serve(listener, endless).await });
    let client = Client::new(&Settings::at(format!("http://{address}"))).unwrap();
    let error = client.metagraph(NETUID).await.unwrap_err();
    assert_eq!(error.reason(), "bad_response", "{error}");
    server.abort();

    // One that accepts and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Settings {
        request_timeout_ms: 100,
        ..Settings::at(format!("http://{}", listener.local_addr().unwrap()))
    };
    let error = Client::new(&silent).unwrap().head().await.unwrap_err();
    assert_eq!(error.reason(), "timed_out", "{error}");
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_the_end() {
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let chain = Devchain::start(dir.path(), rules()).await;
    let mut slow = tokio::net::TcpStream::connect(chain.running.address).await.unwrap();
    slow.write_all(b"POST /v1/extrinsics HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    chain.client().head().await.unwrap();
    chain.stop().await;
}

#[tokio::test]
async fn two_chains_cannot_share_a_folder_or_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Devchain::start(dir.path(), rules()).await;
    let same = dev::serve(dev::Settings::local(dir.path()), CancellationToken::new()).await.unwrap_err();
    assert!(same.to_string().contains("in use by another process"), "{same}");
    let other = tempfile::tempdir().unwrap();
    let mut settings = dev::Settings::local(other.path());
    settings.listen = chain.running.address;
    let same = dev::serve(settings, CancellationToken::new()).await.unwrap_err();
    assert!(same.to_string().contains("--listen"), "{same}");
    chain.stop().await;
}

/// `argus devchain` as a process of its own.
struct Process {
    child: Child,
    url: String,
    genesis: String,
}

impl Process {
    fn start(data_dir: &Path) -> Self {
        Self::spawn(data_dir, Command::new(env!("CARGO_BIN_EXE_argus")))
    }

    fn spawn(data_dir: &Path, mut command: Command) -> Self {
        let mut child = command
            .args(["--json", "devchain", "--listen", "127.0.0.1:0", "--block-ms", "20", "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["event"], "ready");
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self { child, url: text("endpoint"), genesis: text("genesis") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Several hotkeys take from the faucet as fast as they can; whatever was acknowledged is there after each
/// kill, and what the kill interrupted is carried on with by the clients themselves.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    let (url, genesis) = (process.url.clone(), process.genesis.clone());
    let client = Arc::new(Client::new(&Settings::at(&url)).unwrap());
    let acknowledged: Arc<[parking_lot::Mutex<Vec<chain::Inclusion>>; 3]> = Arc::default();
    let stop = CancellationToken::new();
    let takers: Vec<_> = (0..3usize)
        .map(|number| {
            let (client, acknowledged, stop) = (client.clone(), acknowledged.clone(), stop.clone());
            tokio::spawn(async move {
                let pair = pair(number as u8 + 1);
                while !stop.is_cancelled() {
                    match client.faucet(&pair, TAO).await {
                        Ok(inclusion) => acknowledged[number].lock().push(inclusion),
                        Err(error) => assert!(error.retryable(), "{error}"),
                    }
                }
            })
        })
        .collect();
    let total = || acknowledged.iter().map(|list| list.lock().len()).sum::<usize>();
    for kill in 1..=3 {
        let wanted = total() + 30;
        let end = Instant::now() + PATIENCE;
        while total() < wanted {
            assert!(Instant::now() < end, "{} of {wanted}", total());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        process = Process::start(dir.path());
        assert_eq!((&process.url, &process.genesis), (&url, &genesis), "kill {kill}");
    }
    stop.cancel();
    for taker in takers {
        taker.await.unwrap();
    }
    for (number, list) in acknowledged.iter().enumerate() {
        let list = list.lock().clone();
        let balance = client.account(&pair(number as u8 + 1).hotkey()).await.unwrap().balance;
        // A call whose answer was lost may count although nobody knows, never the other way round.
        assert!(balance >= list.len() as u64 * TAO, "{number}: {balance} for {} calls", list.len());
        for inclusion in list {
            let block = client.block(inclusion.block).await.unwrap();
            assert!(block.extrinsics.iter().any(|e| e.hash() == inclusion.hash), "{inclusion:?}");
        }
    }
}

/// Gives a command a file system of its own at `path`, where nobody else sees it.
fn on_a_small_disk(path: &Path, command: &mut Command) {
    use std::os::unix::{ffi::OsStrExt, process::CommandExt};
    let target = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let mount = move || {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let null = std::ptr::null();
        // SAFETY: system calls with valid C strings made before the fork, nothing else.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(null, c"/".as_ptr(), null, private, null.cast()) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    target.as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    c"size=16m".as_ptr().cast(),
                ) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(mount) };
}

#[tokio::test]
async fn on_a_full_disk_the_chain_stands_still_and_then_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut probe = Command::new("true");
    on_a_small_disk(dir.path(), &mut probe);
    if !probe.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a small file system is not permitted here");
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_argus"));
    on_a_small_disk(dir.path(), &mut command);
    let process = Process::spawn(&dir.path().join("chain"), command);
    let settings = Settings { inclusion_timeout_ms: 1500, ..Settings::at(&process.url) };
    let client = Client::new(&settings).unwrap();
    let inside = format!("/proc/{}/root{}", process.child.id(), dir.path().display());
    let ballast = Path::new(&inside).join("ballast");
    // As much as goes in, which leaves the database what it has reserved already.
    let _ = std::fs::write(&ballast, vec![1; 32 << 20]);
    // Blanks belong to the signed text: a way to large blocks.
    let large_call = async |call: Call| {
        let account = client.account(&pair(1).hotkey()).await?;
        let payload = wire::Payload { genesis: account.genesis, nonce: account.nonce, id: 0, call };
        let text = format!("{}{}", serde_json::to_string(&payload).unwrap(), " ".repeat(48 << 10));
        let signature = pair(1).sign(argus_protocols::hotkey::Domain::DevChain, text.as_bytes());
        let extrinsic = wire::Extrinsic { signer: pair(1).hotkey(), payload: text, signature };
        client.submit_extrinsic(&extrinsic).await
    };
    let faucet = || Call::Faucet { amount: TAO };
    let mut acknowledged = 0;
    let error = loop {
        match large_call(faucet()).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 500, "24 MB on a full disk");
    };
    assert_eq!(error.reason(), "not_included", "{error}");
    let stands = client.head().await.unwrap().block;
    assert_eq!(client.account(&pair(1).hotkey()).await.unwrap().balance, acknowledged * TAO);
    assert_eq!(client.head().await.unwrap().block, stands);

    std::fs::remove_file(&ballast).unwrap();
    let end = Instant::now() + PATIENCE;
    while client.head().await.unwrap().block == stands {
        assert!(Instant::now() < end, "no block after there was space again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The one that waited in the pool is in, and new ones are taken.
    client.faucet(&pair(1), TAO).await.unwrap();
    let balance = client.account(&pair(1).hotkey()).await.unwrap().balance;
    assert_eq!(balance, (acknowledged + 2) * TAO);
}

fn argus(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_argus")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_line_registers_stakes_and_shows() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(&dir.path().join("chain"));
    let wallets = dir.path().join("wallets").display().to_string();
    let wallet = ["--wallet-path", &wallets, "--wallet", "w", "--hotkey", "h"];
    let on_chain = [&wallet[..], &["--chain", &process.url]].concat();
    let run = |arguments: &[&str], options: &[&str]| {
        let all = [&["--json"], arguments, options].concat();
        let (success, out, error) = argus(&all);
        assert!(success, "{arguments:?}: {error}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let made = run(&["wallet", "new"], &wallet);
    let hotkey = made["address"].as_str().unwrap();
    let registered = run(&["chain", "register"], &on_chain);
    assert_eq!((registered["uid"].as_u64(), registered["hotkey"].as_str()), (Some(0), Some(hotkey)));
    let staked = run(&["chain", "stake", "--amount", "5000.5"], &on_chain);
    assert_eq!(staked["stake"]["1"], 5_000_500_000_000u64);
    run(&["chain", "faucet", "--amount", "2"], &on_chain);
    let unstaked = run(&["chain", "unstake", "--amount", "0.5"], &on_chain);
    assert!(unstaked["balance"].as_u64().unwrap() >= 2_500_000_000);
    let account = run(&["chain", "account"], &on_chain);
    assert_eq!(account["uid"], 0);
    let chain = ["--chain", &process.url];
    let metagraph = run(&["chain", "metagraph"], &chain);
    assert_eq!(metagraph["neurons"][0]["hotkey"].as_str(), Some(hotkey));
    assert_eq!(run(&["chain", "info"], &chain)["genesis"].as_str(), Some(process.genesis.as_str()));
    assert!(run(&["chain", "weights"], &chain).as_array().unwrap().is_empty());

    let (success, table, _) = argus(&[&["chain", "metagraph"][..], &chain].concat());
    assert!(success && table.contains("incentive") && table.contains(hotkey), "{table}");
    let (success, _, error) = argus(&[&["chain", "register"][..], &on_chain].concat());
    assert!(!success && error.contains("HotKeyAlreadyRegisteredInSubNet"), "{error}");
    let (success, _, error) = argus(&[&["chain", "unstake", "--amount", "999999"][..], &on_chain].concat());
    assert!(!success && error.contains("NotEnoughStakeToWithdraw"), "{error}");
    let (success, _, error) = argus(&["chain", "stake", "--amount", "-1"]);
    assert!(!success && error.contains("--amount"), "{error}");
    let (success, _, error) = argus(&["chain", "info", "--chain", "http://127.0.0.1:1"]);
    assert!(!success && error.contains("is it running"), "{error}");
}

#[test]
fn a_damaged_chain_says_how_to_repair_it_and_the_repair_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain");
    let genesis = Process::start(&path).genesis.clone();
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.file_name().unwrap().to_str().unwrap().starts_with("MANIFEST") {
            std::fs::write(file, b"garbage").unwrap();
        }
    }
    let data_dir = path.display().to_string();
    let start = ["devchain", "--listen", "127.0.0.1:0", "--data-dir", &data_dir];
    let (success, _, error) = argus(&start);
    assert!(!success && error.contains(&format!("argus store repair {data_dir}")), "{error}");
    let (success, out, error) = argus(&["store", "repair", &data_dir]);
    assert!(success, "{error}");
    assert!(out.contains("can be used again") && out.contains("chain_state"), "{out}");
    assert_eq!(Process::start(&path).genesis, genesis);
}
