//! A miner in this process: the real engine, real streams over loopback, a real development chain.

use std::{sync::Arc, time::Duration};

use argus::{
    chain::{self, Chain, TAO, Watch, dev},
    jobs::Jobs,
    miner::{self, Backend},
    net::{self, Dht, Handle, InMemory, Net, NodeKey, OutgoingQuery, QueryError, QueryProgress},
};
use argus_models::{
    Registry as Models,
    diffusion::{Audited, Deviation},
    engine::{Engine, EngineConfig},
};
use argus_protocols::{
    Answer, Capability, Challenge, Commitment, HotkeyPair, Multiaddr, Reason, Record, Role, SignedRecord,
    Task, TaskKind,
    query::Deadlines,
    task::{Generation, Start},
};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const NETUID: u16 = 1;
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Peer {
    handle: Handle,
    pair: Arc<HotkeyPair>,
    address: Multiaddr,
}

struct Network {
    chain: Arc<dyn Chain>,
    client: dev::Client,
    miner: Peer,
    /// The miner's engine.
    jobs: Jobs,
    metrics: Registry,
    mining: JoinHandle<Result<(), miner::MinerError>>,
    stop_mining: CancellationToken,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

async fn peer(bootstrap: Option<&Multiaddr>, shutdown: &CancellationToken) -> (Peer, Net) {
    let settings = net::Settings {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        bootstrap: bootstrap.into_iter().cloned().collect(),
        dht: Dht::Server,
        use_relays: false,
        ..net::Settings::default()
    };
    let pair = Arc::new(HotkeyPair::generate());
    let persist = Arc::new(InMemory::default());
    let key = NodeKey::generate();
    let mut registry = Registry::default();
    let net = net::start(settings, key, Some(pair.clone()), NETUID, persist, &mut registry, shutdown.clone())
        .unwrap();
    let begun = Instant::now();
    let address = loop {
        let snapshot = net.handle.snapshot().await.unwrap();
        if let Some(address) = snapshot.listen.first() {
            break address.clone().with_p2p(snapshot.peer).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE, "it does not listen");
        sleep(Duration::from_millis(20)).await;
    };
    (Peer { handle: net.handle.clone(), pair, address }, net)
}

impl Network {
    /// A chain whose metagraph the miner reads only now and then, and a miner with these settings.
    async fn start(settings: miner::Settings) -> Self {
        let shutdown = CancellationToken::new();
        let folder = tempfile::tempdir().unwrap();
        let rules = dev::Rules { netuids: Some(vec![NETUID]), tempo: Some(2), ..dev::Rules::default() };
        let settings_of_chain =
            dev::Settings { block_ms: 100, rules, ..dev::Settings::local(folder.path().join("chain")) };
        let settings_of_chain = dev::Settings { listen: "127.0.0.1:0".parse().unwrap(), ..settings_of_chain };
        let running = dev::serve(settings_of_chain, shutdown.clone()).await.unwrap();
        // Only a look on purpose finds out what changed.
        let at = chain::Settings {
            refresh_ms: 3_600_000,
            stale_after_ms: 24 * 3_600_000,
            ..chain::Settings::at(format!("http://{}", running.address))
        };
        let chain = chain::connect(&at).unwrap();
        let client = dev::Client::new(&at).unwrap();
        let (watch, _) = Watch::start(chain.clone(), NETUID, &at, shutdown.clone());
        watch.ready(PATIENCE).await.unwrap();

        let (miner, net) = peer(None, &shutdown).await;
        let models = Models::default();
        let ids = models.models().iter().map(|spec| spec.id.clone()).collect();
        let engine =
            tokio::task::spawn_blocking(move || Engine::start(&EngineConfig::on_processor(ids), &models));
        let jobs = Jobs::new(engine.await.unwrap().unwrap()).await.unwrap();
        let backend: Arc<dyn Backend> = Arc::new(jobs.clone());
        let (capabilities, mut warm) = watch::channel(Vec::new());
        let mut metrics = Registry::default();
        let counted = miner::Metrics::new(&mut metrics);
        let stop_mining = CancellationToken::new();
        let mining = tokio::spawn(miner::run(
            settings,
            backend,
            net.queries,
            watch,
            NETUID,
            capabilities,
            counted,
            stop_mining.clone(),
        ));
        let capabilities = warm.wait_for(|found: &Vec<Capability>| !found.is_empty()).await.unwrap().clone();
        assert!(capabilities.iter().all(|c| c.work_units_per_second > 0.0), "{capabilities:?}");
        let record = Record {
            hotkey: miner.pair.hotkey(),
            peer: miner.handle.peer(),
            addresses: vec![miner.address.clone()],
            role: Role::Miner,
            netuid: NETUID,
            capabilities,
            sequence: argus::clock::unix_ms(),
            expires_at_ms: argus::clock::unix_ms() + 3_600_000,
        };
        miner.handle.publish(SignedRecord::sign(&record, &miner.pair).unwrap()).await.unwrap();
        Self { chain, client, miner, jobs, metrics, mining, stop_mining, shutdown, _folder: folder }
    }

    async fn validator(&self) -> Peer {
        let (peer, _) = peer(Some(&self.miner.address), &self.shutdown).await;
        let begun = Instant::now();
        while peer.handle.lookup(&self.miner.pair.hotkey()).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the miner's record is not found");
            sleep(Duration::from_millis(50)).await;
        }
        peer
    }

    /// Registers and stakes, and waits for the permit.
    async fn permit(&self, validator: &Peer) {
        let pair = &validator.pair;
        self.client.faucet(pair, 10_000 * TAO).await.unwrap();
        self.client.register(pair, NETUID).await.unwrap();
        self.client.add_stake(pair, NETUID, 5_000 * TAO).await.unwrap();
        let begun = Instant::now();
        loop {
            let metagraph = self.chain.metagraph(NETUID).await.unwrap();
            if metagraph.by_hotkey(&pair.hotkey()).is_some_and(|neuron| neuron.permit) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "no permit came");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ask(&self, validator: &Peer, task: &Task) -> Result<(Answer, Vec<QueryProgress>), QueryError> {
        let mut seen = Vec::new();
        let query = self.query(task, 60_000);
        let answered = validator.handle.query(query, |progress| seen.push(progress)).await?;
        assert_eq!(answered.receipt.miner, self.miner.pair.hotkey());
        Ok((Answer::from_bytes(&answered.body).unwrap(), seen))
    }

    fn query(&self, task: &Task, total_ms: u32) -> OutgoingQuery {
        OutgoingQuery {
            miner: self.miner.pair.hotkey(),
            task: task.kind(),
            model: task.model().to_owned(),
            body: Bytes::from(task.to_bytes()),
            deadlines: Deadlines { first_byte_ms: total_ms, idle_ms: total_ms, total_ms },
        }
    }

    /// A figure of the miner's metrics.
    fn figure(&self, name: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }

    async fn until(&self, name: &str, holds: impl Fn(f64) -> bool) {
        let begun = Instant::now();
        while !holds(self.figure(name)) {
            assert!(begun.elapsed() < PATIENCE, "{name} stays {}", self.figure(name));
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop_mining.cancel();
        self.shutdown.cancel();
    }
}

fn apple(steps: u32) -> Task {
    Task::Generation(Generation {
        model: "argus-tiny".into(),
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 128,
        height: 128,
        steps,
        guidance: 4.0,
        seed: 7,
        start: Start::Noise,
        controls: Vec::new(),
    })
}

fn rejected(result: Result<(Answer, Vec<QueryProgress>), QueryError>) -> Reason {
    match result {
        Err(QueryError::Rejected(rejection)) => rejection.reason,
        other => panic!("not refused: {:?}", other.map(|(_, seen)| seen)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_is_served_as_soon_as_it_has_its_permit() {
    let network = Network::start(miner::Settings::default()).await;
    let validator = network.validator().await;
    assert_eq!(rejected(network.ask(&validator, &apple(2)).await), Reason::Unauthorised);
    network.permit(&validator).await;
    // The miner's metagraph is of before; it looks again before it refuses, though not at every query.
    let begun = Instant::now();
    let (answer, seen) = loop {
        match network.ask(&validator, &apple(3)).await {
            Ok(answered) => break answered,
            result => assert_eq!(rejected(result), Reason::Unauthorised),
        }
        assert!(begun.elapsed() < PATIENCE, "still refused");
    };
    let Answer::Picture(png) = answer else { panic!("no picture") };
    assert_eq!(image::load_from_memory(&png).unwrap().width(), 128);
    assert!(matches!(seen.first(), Some(QueryProgress::Accepted { .. })), "{seen:?}");
    assert!(seen.iter().any(|p| matches!(p, QueryProgress::Step { of: 3, .. })), "{seen:?}");

    for (task, reason) in [
        (apple(1_000), Reason::Invalid),
        (with_model(apple(2), "no-such-model"), Reason::Incapable),
        (with_model(apple(2), "clip-tiny"), Reason::Incapable),
    ] {
        assert_eq!(rejected(network.ask(&validator, &task).await), reason);
    }
    let mut other_task = network.query(&apple(2), 60_000);
    other_task.task = TaskKind::ImageEmbedding;
    other_task.model = "clip-tiny".into();
    let result = validator.handle.query(other_task, |_| ()).await;
    assert!(matches!(result, Err(QueryError::Rejected(r)) if r.reason == Reason::Invalid), "{result:?}");
    network.until("argus_miner_held", |held| held == 0.0).await;
}

fn with_model(task: Task, model: &str) -> Task {
    let Task::Generation(task) = task else { unreachable!("apples are pictures") };
    Task::Generation(Generation { model: model.into(), ..task })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits for two queries at the miner, which it has not been seen to reach"]
async fn a_full_miner_says_busy_and_who_goes_away_frees_the_place() {
    let admission = miner::admission::Settings { queue: 1, hotkey_share: 1.0, ..Default::default() };
    let network = Arc::new(Network::start(miner::Settings { admission, ..Default::default() }).await);
    let validator = Arc::new(network.validator().await);
    network.permit(&validator).await;
    let begun = Instant::now();
    while let Err(error) = network.ask(&validator, &apple(1)).await {
        assert!(begun.elapsed() < PATIENCE, "still refused: {error}");
    }
    // One at work, one waiting: the third is told when to come again.
    let asking = |steps| {
        let (network, validator) = (network.clone(), validator.clone());
        tokio::spawn(async move { network.ask(&validator, &apple(steps)).await })
    };
    let first = asking(50);
    network.until("argus_miner_at_work", |n| n == 1.0).await;
    let second = asking(2);
    network.until("argus_miner_held", |n| n == 2.0).await;
    match network.ask(&validator, &apple(2)).await {
        Err(QueryError::Rejected(rejection)) => {
            assert_eq!(rejection.reason, Reason::Busy);
            assert!(rejection.retry_after_ms > 0);
        }
        other => panic!("not refused: {:?}", other.map(|(_, seen)| seen)),
    }
    // The first goes away; its work ends and the second's turn comes.
    first.abort();
    let second = timeout(PATIENCE, second).await.unwrap().unwrap();
    assert!(second.is_ok(), "{:?}", second.map(|(_, seen)| seen));
    network.until("argus_miner_held", |held| held == 0.0).await;
    network.until("argus_miner_at_work", |n| n == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits for two queries at the miner, which it has not been seen to reach"]
async fn a_miner_that_shuts_down_ends_what_runs_and_cancels_what_waits() {
    let network = Arc::new(Network::start(miner::Settings { drain_ms: 100_000, ..Default::default() }).await);
    let validator = Arc::new(network.validator().await);
    network.permit(&validator).await;
    let begun = Instant::now();
    while let Err(error) = network.ask(&validator, &apple(1)).await {
        assert!(begun.elapsed() < PATIENCE, "still refused: {error}");
    }
    let asking = |steps| {
        let (network, validator) = (network.clone(), validator.clone());
        tokio::spawn(async move { network.ask(&validator, &apple(steps)).await })
    };
    let running = asking(30);
    network.until("argus_miner_at_work", |n| n == 1.0).await;
    let waiting = asking(2);
    network.until("argus_miner_held", |n| n == 2.0).await;
    network.stop_mining.cancel();
    assert_eq!(rejected(timeout(PATIENCE, waiting).await.unwrap().unwrap()), Reason::Cancelled);
    assert!(timeout(PATIENCE, running).await.unwrap().unwrap().is_ok());
    let begun = Instant::now();
    while !network.mining.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "the miner does not end");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a miner commits to it can open, and an engine takes the steps between again to the bit; a run that is
/// not asked about is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_pictures_run_can_be_audited() {
    let trajectories = miner::trajectory::Settings { memory_mib: 1 };
    let network = Network::start(miner::Settings { trajectories, ..Default::default() }).await;
    let validator = network.validator().await;
    network.permit(&validator).await;
    let begun = Instant::now();
    while let Err(error) = network.ask(&validator, &apple(1)).await {
        assert!(begun.elapsed() < PATIENCE, "still refused: {error}");
    }
    let task = apple(6);
    let asked = || validator.handle.query_to_audit(network.query(&task, 60_000), |_| {});
    let (answered, auditor) = asked().await.unwrap();
    let commitment = answered.receipt.trajectory.expect("a picture by diffusion");
    assert_eq!(commitment.steps(), 6);
    let challenge = Challenge::of_steps(&[1, 4], &commitment);
    let opening = auditor.unwrap().challenge(&challenge).await.unwrap();
    let opened = opening.verify(&challenge, &commitment).unwrap();
    let answer = || Answer::from_bytes(&answered.body).unwrap();
    let audit = |opened, states| {
        let (jobs, task) = (network.jobs.clone(), task.clone());
        let answer = answer();
        async move { jobs.audit(&task, answer, opened, &[1, 4], states).await.unwrap() }
    };
    let Audited::Checked(found) = audit(opened.clone(), commitment.states).await else { panic!() };
    assert_eq!((found.farthest(), found.picture), (Deviation::NONE, 0.0), "{found:?}");
    // States of the same run in each other's places.
    let mut swapped = opened.clone();
    let (first, last) = (swapped[1].1.clone(), swapped.len() - 2);
    swapped[1].1 = std::mem::replace(&mut swapped[last].1, first);
    let Audited::Checked(found) = audit(swapped, commitment.states).await else { panic!() };
    assert!(found.farthest() > Deviation(0.1), "{found:?}");
    assert!(matches!(audit(opened, commitment.states + 1).await, Audited::Unfit(_)));

    // Nobody asks: the miner waits no longer than the validator keeps the stream. A tiny shelf has room for
    // four runs at once, so this many in a row only fit if each is given back.
    for _ in 0..6 {
        let (answered, _) = asked().await.unwrap();
        assert!(answered.receipt.trajectory.is_some());
    }
    // With no memory for it nothing is committed to.
    let none = Network::start(miner::Settings {
        trajectories: miner::trajectory::Settings { memory_mib: 0 },
        ..Default::default()
    })
    .await;
    let validator = none.validator().await;
    none.permit(&validator).await;
    let begun = Instant::now();
    let answered = loop {
        match validator.handle.query_to_audit(none.query(&apple(2), 60_000), |_| {}).await {
            Ok(answered) => break answered,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "still refused: {error}"),
        }
    };
    assert_eq!(answered.0.receipt.trajectory, None::<Commitment>);
    assert!(answered.1.is_none());
}
