//! `argus worker`: runs models behind HTTP, for a miner whose backend is `http`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use argus_models::engine::Shutdown;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::ready;
use crate::{config::Config, jobs::Jobs, node, worker::Worker};

#[derive(clap::Args)]
pub struct Args {
    /// Where to answer `POST /generate` and `GET /info`. Port 0 takes a free one.
    #[arg(long, env = "ARGUS_WORKER_LISTEN", default_value = "127.0.0.1:10006", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Models to serve, by their registry ids (comma-separated).
    #[arg(long, env = "ARGUS_MODELS", value_delimiter = ',', value_name = "ID")]
    models: Vec<String>,
    /// What runs them: cpu, cuda:0, metal:0.
    #[arg(long, env = "ARGUS_DEVICE")]
    device: Option<String>,
    /// Jobs at once on the device.
    #[arg(long, env = "ARGUS_REPLICAS")]
    replicas: Option<usize>,
    /// Processor threads of each replica; 0 shares the machine's cores among them.
    #[arg(long, env = "ARGUS_THREADS")]
    threads: Option<usize>,
    /// A registry file instead of the built-in one.
    #[arg(long, env = "ARGUS_REGISTRY", value_name = "FILE")]
    registry: Option<PathBuf>,
    /// What clients have to show as a bearer token; needed where others reach the address.
    #[arg(long, env = "ARGUS_WORKER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Configuration file (TOML), of which `engine` counts; flags and environment win over it.
    #[arg(long, env = "ARGUS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let stop = node::stop_signal()?;
    let mut settings = Config::load(args.config.as_deref())?.engine;
    if !args.models.is_empty() {
        settings.models = args.models;
    }
    settings.device = args.device.unwrap_or(settings.device);
    settings.replicas = args.replicas.unwrap_or(settings.replicas);
    settings.threads_per_replica = args.threads.unwrap_or(settings.threads_per_replica);
    settings.registry = args.registry.or(settings.registry);
    let token = args.token.filter(|token| !token.is_empty());
    if token.is_none() && !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "everybody who reaches this address can use the worker: set --token");
    }
    let engine = node::start_engine(&settings).await?;
    let jobs = Jobs::new(engine.clone()).await?;
    let worker = Worker::bind(args.listen, jobs, token).await?;
    let address = worker.address;
    let (models, shutdown) = (settings.models, CancellationToken::new());
    let line = match json {
        true => {
            format!(
                "{}\n",
                json!({ "event": "ready", "role": "worker", "address": address, "models": models })
            )
        }
        false => format!("worker is up: http://{address}/generate serves {}\n", models.join(", ")),
    };
    ready::say(&line);
    let mut serving = tokio::spawn(worker.serve(shutdown.clone()));
    tokio::select! {
        () = stop => {}
        ended = &mut serving => return Ok(ended.context("the server")??),
    }
    // No new requests; those that were taken are answered first.
    shutdown.cancel();
    tokio::task::spawn_blocking(move || engine.shutdown(Shutdown::Drain)).await.context("the engine")?;
    serving.await.context("the server")??;
    Ok(())
}
