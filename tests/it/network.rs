//! Whole networks of real processes: what the README promises, and what happens when nodes are killed or
//! cheat.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use argus::{
    client::{Client, ClientError, Request},
    devnet::{Devnet, Options, PRESET, demo},
    node::{AdminClient, DataFolder},
};
use serde_json::Value;

mod by_hand;
mod tasks;
mod workers;

const BINARY: &str = env!("CARGO_BIN_EXE_argus");

fn options(dir: &Path, miners: &[&[&str]], config: &str) -> Options {
    Options {
        binary: BINARY.into(),
        dir: dir.to_owned(),
        validators: 1,
        miners: miners.iter().map(|extra| extra.iter().map(|&a| a.to_owned()).collect()).collect(),
        config: config.to_owned(),
        block_ms: 250,
        tempo: 8,
        api: "127.0.0.1:0".into(),
    }
}

async fn start(options: Options) -> Devnet {
    let dir = options.dir.clone();
    Devnet::start(options, |step| eprintln!("{step}"))
        .await
        .unwrap_or_else(|error| panic!("{error}\nlogs are in {}", dir.display()))
}

/// `/status` of a node's folder.
async fn status(dir: &Path) -> Value {
    AdminClient::open(&DataFolder::at(dir)).unwrap().status().await.unwrap()
}

/// Polls until `done` gives something; fails with what it saw last.
async fn wait_for<T>(
    what: &str,
    within: Duration,
    dir: &Path,
    mut done: impl FnMut(&Value) -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        let seen = status(dir).await;
        if let Some(found) = done(&seen["work"]) {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {within:?}; last seen: {:#}", seen["work"]);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[cfg(feature = "adversary")]
fn of<'a>(miners: &'a Value, hotkey: &argus_protocols::Hotkey) -> Option<&'a Value> {
    let hotkey = hotkey.to_string();
    miners.as_array()?.iter().find(|miner| miner["hotkey"] == hotkey.as_str())
}

/// A prompt comes back as a picture, and honest miners all get weight and incentive.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_makes_pictures_and_pays_its_miners() {
    let dir = tempfile::tempdir().unwrap();
    let net = start(options(dir.path(), &[&[], &[]], PRESET)).await;
    let key = net.key("test").await.unwrap();
    let file = dir.path().join("demo.png");
    let mut steps = Vec::new();
    demo::picture(&net, &key, "a red apple", &file, |progress| steps.push(progress)).await.unwrap();
    let picture = image::open(&file).unwrap();
    assert_eq!((picture.width(), picture.height()), (128, 128));
    assert!(!steps.is_empty() && steps.iter().all(|p| p.step <= p.of), "{steps:?}");
    let lines = demo::weights(&net, |_| {}).await.unwrap();
    let miners = lines.iter().filter(|line| line.name.starts_with("miner"));
    assert_eq!(miners.filter(|line| line.incentive > 0.0).count(), 2, "{}", demo::table(&lines));
    net.stop().await;
}

/// Noise, a cached picture of another seed, fewer steps: each ends below every honest miner after the first
/// full period.
#[cfg(feature = "adversary")]
#[tokio::test(flavor = "multi_thread")]
async fn cheats_end_below_every_honest_miner() {
    const CHEATS: [&str; 3] = ["noise", "cached", "fewer-steps"];
    use argus::devnet::Miner;
    const TASKS: [&str; 2] = ["text-to-image", "image-embedding"];
    let dir = tempfile::tempdir().unwrap();
    let dishonest: Vec<[&str; 2]> = CHEATS.iter().map(|kind| ["--dishonest", kind]).collect();
    let miners: Vec<&[&str]> =
        [&[][..], &[]].into_iter().chain(dishonest.iter().map(|args| &args[..])).collect();
    let config = PRESET.replace("interval_ms = 4_000", "interval_ms = 2_000");
    assert_ne!(config, PRESET);
    let net = start(options(dir.path(), &miners, &config)).await;
    let validator = &net.validators[0].dir;
    let first =
        wait_for("period", Duration::from_secs(60), validator, |work| work["period"]["number"].as_u64())
            .await;
    // The running period is a part of one: the next is the first full one, and it has to be over. On a busy
    // machine it may take another until each miner was asked for everything.
    let all_asked = |work: &Value| {
        let standing = |node: &Miner| Some(&of(&work["report"]["miners"], &node.hotkey)?["standing"]);
        let asked = |node| standing(node).is_some_and(|by| TASKS.iter().all(|task| by[task].is_number()));
        net.miners.iter().all(asked)
    };
    let work = wait_for("scores after a full period", Duration::from_secs(240), validator, |work| {
        (work["period"]["number"].as_u64()? >= first + 2 && all_asked(work)).then(|| work.clone())
    })
    .await;
    for measure in ["score", "weight"] {
        let got = |node: &Miner| of(&work["miners"], &node.hotkey)?[measure].as_f64();
        let all: Vec<f64> = net.miners.iter().map(|node| got(node).unwrap()).collect();
        let (honest, cheats) = all.split_at(2);
        let worst = honest.iter().copied().fold(f64::INFINITY, f64::min);
        for (kind, got) in CHEATS.iter().zip(cheats) {
            assert!(*got < worst, "{kind}: {measure} {got}, of honest miners {honest:?}; {work:#}");
        }
    }
    net.stop().await;
}

/// Pictures alone, and half of the queries are audits: enough of them in a minute.
#[cfg(feature = "adversary")]
const AUDITED: &str = r#"
[net]
dht = "server"
use_relays = false

[engine]
models = ["argus-tiny"]

[validator]
tasks = [{ task = "text-to-image", model = "argus-tiny", incentive = 1.0, interval_ms = 2_000 }]
periods = { seconds = 20, kept = 30 }
audits = { share = 0.5, reproduced = 0.2 }
"#;

/// A chain of made-up states, a cached answer with its own chain, and an answer handed on from another miner:
/// each fails audits, is in doubt and ends below the honest ones, who fail none.
#[cfg(feature = "adversary")]
#[tokio::test(flavor = "multi_thread")]
async fn audits_catch_made_up_runs_cached_and_relayed_answers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("lent");
    let (lends, relays) = (format!("lends:{}", folder.display()), format!("relay:{}", folder.display()));
    let honest: [&[&str]; 2] = [&["--dishonest", &lends], &[]];
    let cheats: [&[&str]; 3] =
        [&["--dishonest", "skipped-steps"], &["--dishonest", "cached"], &["--dishonest", &relays]];
    let miners: Vec<&[&str]> = honest.iter().chain(&cheats).copied().collect();
    let net = start(options(&dir.path().join("net"), &miners, AUDITED)).await;
    let validator = &net.validators[0].dir;
    let audits = |work: &Value, place: usize, what: &str| {
        of(&work["report"]["miners"], &net.miners[place].hotkey)?["audits"][what].as_u64()
    };
    let enough = |work: &Value, place: usize| match place < honest.len() {
        true => audits(work, place, "passed") >= Some(3),
        false => audits(work, place, "failed") >= Some(2),
    };
    let work = wait_for("verdicts of audits", Duration::from_secs(300), validator, |work| {
        (0..miners.len()).all(|place| enough(work, place)).then(|| work.clone())
    })
    .await;
    for place in 0..honest.len() {
        assert_eq!(audits(&work, place, "failed"), Some(0), "{work:#}");
    }
    for place in honest.len()..miners.len() {
        assert!(audits(&work, place, "doubted_for") > Some(0), "{work:#}");
        assert_eq!(audits(&work, place, "passed").filter(|passed| *passed > 1), None, "{work:#}");
    }
    let counters = &work["report"]["counters"];
    let count = |name: &str| counters[name].as_u64().unwrap();
    assert!(count("trajectories") >= 3, "{counters}");
    assert!(count("steps_retaken") < count("steps_audited"), "{counters}");
    // And it shows where it counts.
    let score =
        |work: &Value, place: usize| of(&work["miners"], &net.miners[place].hotkey)?["score"].as_f64();
    let first = work["period"]["number"].as_u64().unwrap();
    let work = wait_for("scores of a period with audits", Duration::from_secs(120), validator, |work| {
        let over = work["period"]["number"].as_u64()? >= first + 2;
        (over && (0..miners.len()).all(|place| score(work, place).is_some())).then(|| work.clone())
    })
    .await;
    let all: Vec<f64> = (0..miners.len()).map(|place| score(&work, place).unwrap()).collect();
    let (honest, cheats) = all.split_at(honest.len());
    let worst = honest.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(cheats.iter().all(|score| *score < 0.5 * worst), "{all:?}; {work:#}");
    net.stop().await;
}

async fn picture(api: &str, key: &str, request: &Request) -> Result<Vec<u8>, ClientError> {
    let client = Client::new(api, Some(key.to_owned()));
    client.generate(request, |_| {}).await.map(|generated| generated.png)
}
