//! What a query costs beside the model's work: echo on loopback, encrypted and signed both ways.
//!
//! The miner is a process of its own (this program with `--serve`), as with the peers it is compared to in
//! `benches/peers`. 1 KiB and 1 MiB, one by one and 32 at once, over TCP and QUIC, then 500 queries of
//! 64 KiB at once, and in the same run a bare libp2p stream (libp2p's own TCP, Noise and Yamux) that
//! carries the same bytes without frames, hashes or signatures. Last, lookups over ten nodes.
//!
//! Processor time a query (both processes) is told as well: it says something on a busy machine, too.
//!
//! `cargo bench --bench query -- [--json] [--quick] [--only "argus tcp" [--bytes 1024]]`

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use argus::net::{Dht, Handle, InMemory, Net, NodeKey, OutgoingQuery, Settings, start};
use argus_protocols::{
    Hotkey, HotkeyPair, Multiaddr, Record, Role, SignedRecord, TaskKind, query::Deadlines,
};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

mod bare;

const AT_ONCE: usize = 32;
const BURST: usize = 500;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let Some(at) = arguments.iter().position(|a| a == "--serve") {
        return runtime.block_on(serve(&arguments[at + 1]));
    }
    let value = |flag: &str| {
        let at = arguments.iter().position(|a| a == flag)?;
        arguments.get(at + 1).cloned()
    };
    let plan = Plan {
        quick: has("--quick"),
        only: value("--only"),
        bytes: value("--bytes").map(|bytes| bytes.parse().expect("a number of bytes")),
    };
    // On a worker, where a node's queries are made.
    let rows = runtime.block_on(runtime.spawn(async move { measure(&plan).await })).expect("measured");
    if has("--json") {
        println!("{}", json!({ "cores": cores(), "load": load(), "rows": rows }));
    } else {
        print_table(&rows);
    }
}

/// What to measure.
struct Plan {
    /// A tenth of the rounds.
    quick: bool,
    /// One stack alone, for profiling.
    only: Option<String>,
    bytes: Option<usize>,
}

impl Plan {
    fn wants(&self, stack: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == stack)
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Load of the last minute: a figure taken on a busy machine says little.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn listen_address(transport: &str) -> Multiaddr {
    match transport {
        "tcp" => "/ip4/127.0.0.1/tcp/0",
        "quic" => "/ip4/127.0.0.1/udp/0/quic-v1",
        other => panic!("no transport {other:?}"),
    }
    .parse()
    .expect("a constant address parses")
}

fn node(listen: Multiaddr, bootstrap: Vec<Multiaddr>, hotkey: Arc<HotkeyPair>) -> Net {
    let settings = Settings { listen: vec![listen], bootstrap, dht: Dht::Server, ..Settings::default() };
    start(
        settings,
        NodeKey::generate(),
        Some(hotkey),
        1,
        Arc::new(InMemory::default()),
        &mut Registry::default(),
        CancellationToken::new(),
    )
    .expect("the net starts")
}

async fn listening(handle: &Handle) -> Multiaddr {
    loop {
        if let Some(address) = handle.snapshot().await.expect("a snapshot").listen.first() {
            return format!("{address}/p2p/{}", handle.peer()).parse().expect("an address with a peer id");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The other process: an echo, until its standard input closes.
async fn serve(transport: &str) {
    if transport == "bare" {
        return bare::serve().await;
    }
    let hotkey = Arc::new(HotkeyPair::generate());
    let mut net = node(listen_address(transport), Vec::new(), hotkey.clone());
    let address = listening(&net.handle).await;
    let signed = own_record(&net.handle, address.clone(), &hotkey);
    net.handle.publish(signed).await.expect("published");
    announce(&format!("{address} {}", hotkey.hotkey()));
    while let Some(mut query) = net.queries.recv().await {
        tokio::spawn(async move {
            if let Ok(body) = query.body().await {
                let _ = query.finish(body, 0).await;
            }
        });
    }
}

fn own_record(handle: &Handle, address: Multiaddr, hotkey: &HotkeyPair) -> SignedRecord {
    let now = argus::clock::unix_ms();
    let record = Record {
        hotkey: hotkey.hotkey(),
        peer: handle.peer(),
        addresses: vec![address],
        role: Role::Miner,
        netuid: 1,
        capabilities: Vec::new(),
        sequence: now,
        expires_at_ms: now + 3_600_000,
    };
    SignedRecord::sign(&record, hotkey).expect("a record within limits")
}

/// Tells the parent where this process listens, and ends it when the parent is gone.
fn announce(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("a pipe");
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        std::process::exit(0);
    });
}

struct Server {
    child: Child,
    line: String,
}

impl Server {
    fn start(transport: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--serve", transport])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child process");
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("the child's address");
        Self { child, line }
    }

    /// Processor time of both processes so far.
    fn processor_time(&self) -> Option<Duration> {
        let ticks = [self.child.id(), std::process::id()].into_iter().map(|id| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            // Behind the name: state is field 3, user and system time are 14 and 15.
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
            Some(ticks(11)? + ticks(12)?)
        });
        // A tick is 10 ms on every Linux of today.
        ticks.sum::<Option<u64>>().map(|ticks| Duration::from_millis(10 * ticks))
    }

    fn resident_mib(&self, what: &str) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with(what))?;
        let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

async fn measure(plan: &Plan) -> Vec<Value> {
    let mut rows = Vec::new();
    for transport in ["tcp", "quic"] {
        if !plan.wants(&format!("argus {transport}")) {
            continue;
        }
        let server = Server::start(transport);
        let (address, hotkey) = server.line.trim().split_once(' ').expect("two words");
        let miner: Hotkey = hotkey.parse().expect("a hotkey");
        let address: Multiaddr = address.parse().expect("an address");
        let net = node(listen_address(transport), vec![address], Arc::new(HotkeyPair::generate()));
        net.handle.lookup(&miner).await.expect("the record");
        let handle = net.handle.clone();
        let echo = move |body: Bytes| {
            let (handle, query) = (handle.clone(), query(miner, body.clone()));
            async move {
                let answered = handle.query(query, |_| {}).await.expect("an answer");
                assert_eq!(answered.body.len(), body.len());
            }
        };
        rows.extend(series(&format!("argus {transport}"), plan, &server, &echo).await);
        if plan.bytes.is_none() {
            rows.push(burst(transport, &server, &echo).await);
        }
    }
    if plan.wants("argus DHT") {
        rows.push(lookups().await);
    }
    if !plan.wants("bare libp2p stream") {
        return rows;
    }
    let server = Server::start("bare");
    let stream = bare::Client::connect(&server.line).await;
    let echo = move |body: Bytes| {
        let stream = stream.clone();
        async move { stream.echo(body).await }
    };
    rows.extend(series("bare libp2p stream", plan, &server, &echo).await);
    rows
}

/// Every node of ten looks up every other for the first time.
async fn lookups() -> Value {
    const NODES: usize = 10;
    let mut nets: Vec<(Net, Hotkey)> = Vec::new();
    let mut first = Vec::new();
    for _ in 0..NODES {
        let hotkey = Arc::new(HotkeyPair::generate());
        let net = node(listen_address("tcp"), first.clone(), hotkey.clone());
        let address = listening(&net.handle).await;
        while !first.is_empty() && net.handle.snapshot().await.expect("a snapshot").dht.peers < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let record = own_record(&net.handle, address.clone(), &hotkey);
        net.handle.publish(record).await.expect("published");
        first = if first.is_empty() { vec![address] } else { first };
        nets.push((net, hotkey.hotkey()));
    }
    for (net, _) in &nets {
        while net.handle.snapshot().await.expect("a snapshot").dht.records < NODES {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut times = Vec::new();
    for (net, own) in &nets {
        for (_, hotkey) in nets.iter().filter(|(_, hotkey)| hotkey != own) {
            let begun = Instant::now();
            net.handle.lookup(hotkey).await.expect("found");
            times.push(begun.elapsed());
        }
    }
    json!({
        "stack": "argus DHT",
        "lookup_nodes": NODES,
        "p50_ms": percentile(&mut times, 0.5),
        "p95_ms": percentile(&mut times, 0.95),
    })
}

fn query(miner: Hotkey, body: Bytes) -> OutgoingQuery {
    OutgoingQuery {
        miner,
        task: TaskKind::TextToImage,
        model: "echo".into(),
        body,
        deadlines: Deadlines { first_byte_ms: 60_000, idle_ms: 60_000, total_ms: 120_000 },
    }
}

fn random_body(size: usize) -> Bytes {
    let mut bytes = vec![0u8; size];
    rand::Rng::fill(&mut rand::rng(), &mut bytes[..]);
    bytes.into()
}

/// 1 KiB and 1 MiB, one by one and many at once.
async fn series<F, Fut>(stack: &str, plan: &Plan, server: &Server, echo: &F) -> Vec<Value>
where
    F: Fn(Bytes) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut rows = Vec::new();
    for (size, count) in [(1 << 10, 2000), (1 << 20, 100)] {
        if plan.bytes.is_some_and(|only| only != size) {
            continue;
        }
        let count = if plan.quick { count / 10 } else { count };
        let body = random_body(size);
        for _ in 0..20 {
            echo(body.clone()).await;
        }
        let busy = server.processor_time();
        let mut alone = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            echo(body.clone()).await;
            alone.push(begun.elapsed());
        }
        let (together, elapsed) = at_once(AT_ONCE, 2 * count, &body, echo).await;
        let busy = server.processor_time().zip(busy).map(|(after, before)| after - before);
        rows.push(json!({
            "stack": stack,
            "bytes": size,
            "cpu_us": busy.map(|time| time.as_micros() as f64 / (3 * count) as f64),
            "seq_p50_ms": percentile(&mut alone, 0.5),
            "seq_p99_ms": percentile(&mut alone, 0.99),
            "seq_rps": rate(count, alone.iter().sum()),
            "c32_rps": rate(2 * count, elapsed),
            "c32_p50_ms": together.0,
            "c32_p99_ms": together.1,
        }));
    }
    rows
}

async fn at_once<F, Fut>(permits: usize, count: usize, body: &Bytes, echo: &F) -> ((f64, f64), Duration)
where
    F: Fn(Bytes) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let semaphore = Arc::new(Semaphore::new(permits));
    let mut tasks = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for _ in 0..count {
        let (semaphore, body, echo) = (semaphore.clone(), body.clone(), echo.clone());
        tasks.spawn(async move {
            let _permit = semaphore.acquire().await.expect("never closed");
            let begun = Instant::now();
            echo(body).await;
            begun.elapsed()
        });
    }
    let mut times = Vec::with_capacity(count);
    while let Some(time) = tasks.join_next().await {
        times.push(time.expect("no query is lost"));
    }
    let elapsed = begun.elapsed();
    let (median, tail) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    ((median, tail), elapsed)
}

/// Many middling queries at once: none lost, memory bounded.
async fn burst<F, Fut>(transport: &str, server: &Server, echo: &F) -> Value
where
    F: Fn(Bytes) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let before = server.resident_mib("VmRSS");
    let body = random_body(64 << 10);
    let (times, elapsed) = at_once(BURST, BURST, &body, echo).await;
    json!({
        "stack": format!("argus {transport}"),
        "burst": BURST,
        "bytes": body.len(),
        "seconds": elapsed.as_secs_f64(),
        "p99_ms": times.1,
        "miner_mib_before": before,
        "miner_mib_peak": server.resident_mib("VmHWM"),
    })
}

fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() as f64 * share) as usize).min(times.len() - 1);
    (times[at].as_secs_f64() * 1e6).round() / 1e3
}

fn rate(count: usize, time: Duration) -> f64 {
    (count as f64 / time.as_secs_f64() * 10.0).round() / 10.0
}

fn print_table(rows: &[Value]) {
    println!("echo on loopback, payload both ways; {} cores, load {:?}", cores(), load());
    println!(
        "{:<20} {:>8} {:>10} {:>10} {:>9} {:>9} {:>10} {:>10} {:>8}",
        "stack", "bytes", "p50 ms", "p99 ms", "per s", "32: per s", "p50 ms", "p99 ms", "CPU µs"
    );
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    for row in rows {
        let stack = row["stack"].as_str().unwrap_or_default();
        if row.get("lookup_nodes").is_some() {
            println!(
                "{stack:<20} lookup over {} nodes: p50 {:.1} ms, p95 {:.1} ms",
                row["lookup_nodes"],
                number(row, "p50_ms"),
                number(row, "p95_ms"),
            );
            continue;
        }
        if row.get("burst").is_some() {
            println!(
                "{stack:<20} {BURST} × 64 KiB at once in {:.2} s, p99 {:.0} ms; miner {:.0} MiB before, {:.0} MiB at most",
                number(row, "seconds"),
                number(row, "p99_ms"),
                number(row, "miner_mib_before"),
                number(row, "miner_mib_peak"),
            );
            continue;
        }
        println!(
            "{stack:<20} {:>8} {:>10.3} {:>10.3} {:>9.1} {:>9.1} {:>10.3} {:>10.3} {:>8.0}",
            row["bytes"],
            number(row, "seq_p50_ms"),
            number(row, "seq_p99_ms"),
            number(row, "seq_rps"),
            number(row, "c32_rps"),
            number(row, "c32_p50_ms"),
            number(row, "c32_p99_ms"),
            number(row, "cpu_us"),
        );
    }
    for size in [1 << 10, 1 << 20] {
        let of = |stack: &str, key: &str| {
            rows.iter()
                .find(|row| row["stack"] == stack && row["bytes"] == size && row.get("burst").is_none())
                .map_or(f64::NAN, |row| number(row, key))
        };
        println!(
            "{size} bytes over TCP move at {:.0} % (one by one) and {:.0} % (32 at once) of a bare libp2p stream",
            100.0 * of("argus tcp", "seq_rps") / of("bare libp2p stream", "seq_rps"),
            100.0 * of("argus tcp", "c32_rps") / of("bare libp2p stream", "c32_rps"),
        );
    }
}
