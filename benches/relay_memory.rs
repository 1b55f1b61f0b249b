//! What a relay with idle peers costs: resident memory of its process with 500 of them connected.
//!
//! The relay is a process of its own (this program with `--serve`), the peers live in this one.
//! `cargo bench --bench relay_memory -- [--json] [--peers N]`

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use argus::net::{Dht, InMemory, Net, NodeKey, Settings, start};
use argus_protocols::Multiaddr;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// Identify, ping and the DHT have said what they had to say by then.
const SETTLE: Duration = Duration::from_secs(20);
/// The bar of the project.
const BAR_MIB: f64 = 150.0;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--serve") {
        return serve().await;
    }
    let peers = arguments
        .iter()
        .position(|a| a == "--peers")
        .and_then(|at| arguments.get(at + 1))
        .map_or(500, |count| count.parse().expect("a number of peers"));
    let mut relay = Command::new(std::env::current_exe().expect("this program"))
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child process");
    let mut output = BufReader::new(relay.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the relay's address");
    let address: Multiaddr = line.trim().parse().expect("an address");
    let alone = resident_mib(relay.id());
    let mut nets = Vec::new();
    for _ in 0..peers {
        let net = peer(&address);
        while net.handle.snapshot().await.expect("a snapshot").peers.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        nets.push(net);
    }
    tokio::time::sleep(SETTLE).await;
    let with_peers = resident_mib(relay.id());
    let mut connected = 0;
    for net in &nets {
        let snapshot = net.handle.snapshot().await.expect("a snapshot");
        connected += usize::from(!snapshot.peers.is_empty());
    }
    drop(relay.stdin.take());
    let _ = relay.wait();
    if arguments.iter().any(|a| a == "--json") {
        println!(
            "{}",
            serde_json::json!({ "peers": connected, "mib_alone": alone, "mib": with_peers, "bar_mib": BAR_MIB })
        );
    } else {
        println!(
            "relay: {alone:.1} MiB alone, {with_peers:.1} MiB with {connected} of {peers} idle peers connected (bar: {BAR_MIB} MiB)"
        );
    }
}

async fn serve() {
    let settings = Settings {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        dht: Dht::Server,
        relay_server: true,
        ..Settings::default()
    };
    let net = begin(settings);
    let address = loop {
        let snapshot = net.handle.snapshot().await.expect("a snapshot");
        if let Some(address) = snapshot.listen.first() {
            break format!("{address}/p2p/{}", net.handle.peer());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    println!("{address}");
    std::io::stdout().flush().expect("a pipe");
    // Until the parent closes the pipe.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await;
    std::process::exit(0);
}

fn peer(relay: &Multiaddr) -> Net {
    begin(Settings {
        listen: Vec::new(),
        bootstrap: vec![relay.clone()],
        dht: Dht::Client,
        ..Settings::default()
    })
}

fn begin(settings: Settings) -> Net {
    start(
        settings,
        NodeKey::generate(),
        None,
        1,
        Arc::new(InMemory::default()),
        &mut Registry::default(),
        CancellationToken::new(),
    )
    .expect("the net starts")
}

fn resident_mib(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a resident size");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib / 1024.0
}
