//! What a miner and a validator have besides what every node has.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use argus_models::{
    DeviceKind, ModelId, ModelSource, ModelSpec, Registry as ModelRegistry,
    engine::{Engine, EngineConfig, Shutdown},
};

use super::{Node, tree::Stage};
use crate::{
    chain::{self, Chain, Watch},
    config::{self, Config},
    gateway::{self, Service},
    jobs::Jobs,
    miner::{self, BackendSettings, http},
    validator,
};

/// The chain's first answer, before a role starts.
const FIRST_METAGRAPH: Duration = Duration::from_secs(20);

/// A worker's first answer, before a miner says that it is up.
const FIRST_WORKER: Duration = Duration::from_secs(10);

impl Node {
    /// Starts mining; ready once at least one model passed its warm-up.
    pub(super) async fn mine(&mut self, config: &Config) -> anyhow::Result<Option<SocketAddr>> {
        let (_, watch) = self.chain(config).await?;
        let honest: Arc<dyn miner::Backend> = match &config.miner.backend {
            BackendSettings::Engine => Arc::new(self.engine(&config.engine).await?),
            BackendSettings::Http(settings) => self.http(settings, &config.engine).await?,
        };
        let backend = backend(honest, config);
        let queries = self.queries.take().expect("taken here alone");
        let metrics = miner::Metrics::new(&mut self.registry);
        let token = self.tree.token(Stage::Work);
        let (settings, netuid) = (config.miner.clone(), self.netuid);
        let capabilities = self.capabilities.clone();
        let mut warm = capabilities.subscribe();
        self.tree.spawn(Stage::Work, "the miner", async move {
            Ok(miner::run(settings, backend, queries, watch, netuid, capabilities, metrics, token).await?)
        });
        // When no model passes, the miner's task ends and the tree says why. A worker may come later.
        let passed = warm.wait_for(|found| !found.is_empty());
        match &config.miner.backend {
            BackendSettings::Engine => _ = passed.await,
            BackendSettings::Http(_) => _ = tokio::time::timeout(FIRST_WORKER, passed).await,
        }
        Ok(None)
    }

    /// Starts validating, and the gateway unless it is switched off.
    pub(super) async fn validate(&mut self, config: &Config) -> anyhow::Result<Option<SocketAddr>> {
        let (chain, watch) = self.chain(config).await?;
        let jobs = self.engine(&config.engine).await?;
        let parts = validator::Parts {
            netuid: self.netuid,
            handle: self.handle.clone(),
            chain,
            watch,
            jobs,
            hotkey: self.pair.clone().expect("validators have a hotkey"),
            store: self.store.clone(),
        };
        let token = self.tree.token(Stage::Work);
        let (organic, task) =
            validator::start(config.validator.clone(), parts, &mut self.registry, token.clone())?;
        self.tree.spawn(Stage::Work, "the validator", async move { Ok(task.await?) });
        let organic = Arc::new(organic);
        let reporting = organic.clone();
        self.status = Some(Arc::new(move || {
            let mut status = serde_json::json!(reporting.status());
            status["report"] = serde_json::json!(reporting.report());
            Box::pin(async move { status })
        }));
        if config.no_api {
            return Ok(None);
        }
        let gateway = gateway::serve(gateway::Parts {
            settings: config.gateway.clone(),
            data_dir: self.folder.path().to_owned(),
            service: organic,
            store: self.store.clone(),
            metrics: gateway::Metrics::new(&mut self.registry),
            registry: self.share_registry(),
            shutdown: token,
        })
        .await?;
        let task = gateway.task;
        self.tree.spawn(Stage::Work, "the gateway", async move { Ok(task.await?) });
        Ok(Some(gateway.address))
    }

    /// The chain, once it has answered: a node that starts without its chain should say so at once.
    async fn chain(&mut self, config: &Config) -> anyhow::Result<(Arc<dyn Chain>, Watch)> {
        let chain = chain::connect(&config.chain)?;
        let token = self.tree.token(Stage::Carry);
        let (watch, task) = Watch::start(chain.clone(), self.netuid, &config.chain, token);
        chain::Metrics::register(watch.clone(), &mut self.registry);
        self.tree.spawn(Stage::Carry, "the chain watch", async move { Ok(task.await?) });
        if let Err(error) = watch.ready(FIRST_METAGRAPH).await {
            return Err(anyhow!(error)
                .context(format!("reading subnet {} from {}", self.netuid, config.chain.endpoint)));
        }
        Ok((chain, watch))
    }

    /// Loads the models and warms them up.
    async fn engine(&mut self, settings: &config::Engine) -> anyhow::Result<Jobs> {
        let engine = start_engine(settings).await?;
        self.supervise(engine).await
    }

    /// Ends an engine with the node.
    async fn supervise(&mut self, engine: Engine) -> anyhow::Result<Jobs> {
        let (ending, token) = (engine.clone(), self.tree.token(Stage::Carry));
        self.tree.spawn(Stage::Carry, "the engine", async move {
            token.cancelled().await;
            tokio::task::spawn_blocking(move || ending.shutdown(Shutdown::Cancel)).await?;
            Ok(())
        });
        Ok(Jobs::new(engine).await?)
    }

    /// A worker elsewhere, and an engine here that looks at its pictures and runs no model.
    async fn http(
        &mut self,
        settings: &http::Settings,
        engine: &config::Engine,
    ) -> anyhow::Result<Arc<dyn miner::Backend>> {
        settings.validate().map_err(|detail| anyhow!("miner.{detail}"))?;
        let registry = registry(engine)?;
        let ids = model_ids(engine, &registry)?;
        if let Some(unknown) = ids.iter().find(|id| registry.get(id.as_str()).is_none()) {
            return Err(anyhow!("engine.models: the registry has no model `{unknown}`"));
        }
        let served = registry.only(&ids);
        let looks = start(engine, registry, Vec::new()).await?;
        let looks = self.supervise(looks).await?;
        let backend = Arc::new(http::Http::new(settings.clone(), &served, looks).context("miner.backend")?);
        let (watching, token) = (backend.clone(), self.tree.token(Stage::Carry));
        self.tree.spawn(Stage::Carry, "the worker's health", async move {
            watching.watch(token).await;
            Ok(())
        });
        Ok(backend)
    }
}

fn registry(settings: &config::Engine) -> anyhow::Result<ModelRegistry> {
    match &settings.registry {
        None => Ok(ModelRegistry::default()),
        Some(path) => ModelRegistry::open(path).context("engine.registry"),
    }
}

/// The models that the settings name, or all whose weights are in the binary.
fn model_ids(settings: &config::Engine, registry: &ModelRegistry) -> anyhow::Result<Vec<ModelId>> {
    if settings.models.is_empty() {
        let embedded = |spec: &&ModelSpec| spec.component.source == ModelSource::Embedded;
        return Ok(registry.models().iter().filter(embedded).map(|spec| spec.id.clone()).collect());
    }
    settings.models.iter().map(|id| id.parse()).collect::<Result<_, _>>().context("engine.models")
}

/// Loads the models of the settings and warms them up, on a thread of its own.
pub async fn start_engine(settings: &config::Engine) -> anyhow::Result<Engine> {
    let registry = registry(settings)?;
    let models = model_ids(settings, &registry)?;
    start(settings, registry, models).await
}

async fn start(
    settings: &config::Engine,
    registry: ModelRegistry,
    models: Vec<ModelId>,
) -> anyhow::Result<Engine> {
    let device: DeviceKind = settings.device.parse().context("engine.device")?;
    let engine_config = EngineConfig {
        devices: vec![device],
        replicas: settings.replicas,
        threads_per_replica: settings.threads_per_replica,
        models,
        queue: settings.queue,
    };
    let started = tokio::task::spawn_blocking(move || Engine::start(&engine_config, &registry));
    started.await?.context("starting the engine")
}

#[cfg(not(feature = "adversary"))]
fn backend(honest: Arc<dyn miner::Backend>, _config: &Config) -> Arc<dyn miner::Backend> {
    honest
}

/// The honest one, or one that cheats in the way the tests ask for.
#[cfg(feature = "adversary")]
fn backend(honest: Arc<dyn miner::Backend>, config: &Config) -> Arc<dyn miner::Backend> {
    match config.dishonest.clone() {
        None => honest,
        Some(kind) => Arc::new(miner::dishonest::Dishonest::new(honest, kind)),
    }
}
