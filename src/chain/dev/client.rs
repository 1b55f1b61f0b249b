//! A client of a development chain.

use std::time::Duration;

use argus_protocols::{Hotkey, HotkeyPair};
use async_trait::async_trait;
use reqwest::{Method, Response};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    limits,
    wire::{Account, Block, Call, Extrinsic, Failure, Info, Payload, Status, Submitted, WeightRow},
};
use crate::chain::{Chain, ChainError, Hash, Head, Inclusion, Metagraph, Refusal, Settings};

/// How often an extrinsic is signed anew because another one of the same hotkey was faster.
const NONCE_ATTEMPTS: u32 = 5;
/// The pause after a failed look for an extrinsic.
const PAUSE: Duration = Duration::from_millis(200);

/// Speaks to one development chain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: String,
    request_timeout: Duration,
    inclusion_timeout: Duration,
}

impl Client {
    /// Makes no connection yet.
    pub fn new(settings: &Settings) -> Result<Self, ChainError> {
        settings.validate().map_err(|e| ChainError::Unsupported(e.to_string()))?;
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| ChainError::Unsupported(format!("no HTTP client: {e}")))?;
        Ok(Self {
            http,
            endpoint: settings.endpoint.trim_end_matches('/').to_owned(),
            request_timeout: settings.request_timeout(),
            inclusion_timeout: settings.inclusion_timeout(),
        })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub async fn info(&self) -> Result<Info, ChainError> {
        self.get("/v1/chain").await
    }

    pub async fn account(&self, hotkey: &Hotkey) -> Result<Account, ChainError> {
        self.get(&format!("/v1/accounts/{hotkey}")).await
    }

    pub async fn block(&self, number: u64) -> Result<Block, ChainError> {
        self.get(&format!("/v1/blocks/{number}")).await
    }

    pub async fn weights(&self, netuid: u16) -> Result<Vec<WeightRow>, ChainError> {
        self.get(&format!("/v1/subnets/{netuid}/weights")).await
    }

    /// Registers the hotkey on a subnet.
    pub async fn register(&self, pair: &HotkeyPair, netuid: u16) -> Result<Inclusion, ChainError> {
        self.submit(pair, Call::Register { netuid }).await
    }

    /// Moves free balance into stake, rao.
    pub async fn add_stake(
        &self,
        pair: &HotkeyPair,
        netuid: u16,
        amount: u64,
    ) -> Result<Inclusion, ChainError> {
        self.submit(pair, Call::AddStake { netuid, amount }).await
    }

    /// Moves stake into free balance, rao.
    pub async fn remove_stake(
        &self,
        pair: &HotkeyPair,
        netuid: u16,
        amount: u64,
    ) -> Result<Inclusion, ChainError> {
        self.submit(pair, Call::RemoveStake { netuid, amount }).await
    }

    /// Asks for free balance, rao.
    pub async fn faucet(&self, pair: &HotkeyPair, amount: u64) -> Result<Inclusion, ChainError> {
        self.submit(pair, Call::Faucet { amount }).await
    }

    /// Signs a call, sends it, and waits until it is in a block and had its effect.
    pub async fn submit(&self, pair: &HotkeyPair, call: Call) -> Result<Inclusion, ChainError> {
        let mut attempt = 1;
        loop {
            let account = self.account(&pair.hotkey()).await?;
            let (genesis, nonce) = (account.genesis, account.nonce);
            let payload = Payload { genesis, nonce, id: rand::random(), call: call.clone() };
            let extrinsic = Extrinsic::sign(pair, &payload);
            match self.submit_extrinsic(&extrinsic).await {
                // Another extrinsic of this hotkey took the nonce: this one was not and never will be
                // in a block, so a new one cannot double it.
                Err(ChainError::Refused(Refusal::Stale | Refusal::Future)) if attempt < NONCE_ATTEMPTS => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Sends a signed extrinsic and waits until it is in a block. Sending one twice is harmless.
    pub async fn submit_extrinsic(&self, extrinsic: &Extrinsic) -> Result<Inclusion, ChainError> {
        let started = Instant::now();
        let hash = extrinsic.hash();
        let mut sent = false;
        loop {
            let status = if sent { self.status(&hash).await } else { Ok(Status::Unknown) };
            let step = match status {
                Ok(Status::Included { block, refusal: None }) => {
                    return Ok(Inclusion { block, hash });
                }
                Ok(Status::Included { refusal: Some(refusal), .. }) => return Err(refusal.into()),
                Ok(Status::Pending) => Ok(()),
                Ok(Status::Unknown) => self.send(extrinsic).await,
                Err(error) => Err(error),
            };
            match step {
                Ok(()) => sent = true,
                // It may have arrived, or the chain may be starting again: look until time is up.
                Err(ChainError::TimedOut { .. }) => sent = true,
                Err(ChainError::Unreachable { .. }) if sent => {}
                Err(error) => return Err(error),
            }
            let waited = started.elapsed();
            if waited >= self.inclusion_timeout {
                return Err(ChainError::NotIncluded { hash, waited });
            }
            if step.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn send(&self, extrinsic: &Extrinsic) -> Result<(), ChainError> {
        let _: Submitted =
            self.request(Method::POST, "/v1/extrinsics", Some(extrinsic), Duration::ZERO).await?;
        Ok(())
    }

    /// What became of an extrinsic; the chain waits a while before it says "pending".
    pub async fn status(&self, hash: &Hash) -> Result<Status, ChainError> {
        let wait = limits::WAIT.min(self.inclusion_timeout);
        let path = format!("/v1/extrinsics/{hash}?wait_ms={}", wait.as_millis());
        self.request::<(), _>(Method::GET, &path, None, wait).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ChainError> {
        self.request::<(), T>(Method::GET, path, None, Duration::ZERO).await
    }

    /// `wait` is what the chain itself may take before it answers.
    async fn request<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        wait: Duration,
    ) -> Result<T, ChainError> {
        let timeout = self.request_timeout + wait;
        let mut request = self.http.request(method, format!("{}{path}", self.endpoint)).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| self.transport_error(&e, timeout))?;
        let success = response.status().is_success();
        let status = response.status();
        let bytes = self.bounded_body(response, timeout).await?;
        if success {
            return serde_json::from_slice(&bytes).map_err(|e| self.nonsense(e));
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(failure.error.into()),
            Err(_) => Err(self.nonsense(format!("HTTP status {status}"))),
        }
    }

    async fn bounded_body(&self, mut response: Response, timeout: Duration) -> Result<Vec<u8>, ChainError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.transport_error(&e, timeout))? {
            if bytes.len() + chunk.len() > limits::RESPONSE {
                return Err(self.nonsense(format!("more than {} bytes", limits::RESPONSE)));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn transport_error(&self, error: &reqwest::Error, waited: Duration) -> ChainError {
        let endpoint = self.endpoint.clone();
        if error.is_timeout() && !error.is_connect() {
            return ChainError::TimedOut { endpoint, waited };
        }
        // The innermost source says what happened; the outer ones repeat the address.
        let mut source: &dyn std::error::Error = error;
        while let Some(inner) = source.source() {
            source = inner;
        }
        ChainError::Unreachable { endpoint, detail: source.to_string() }
    }

    fn nonsense(&self, detail: impl ToString) -> ChainError {
        ChainError::Response { endpoint: self.endpoint.clone(), detail: detail.to_string() }
    }
}

#[async_trait]
impl Chain for Client {
    async fn head(&self) -> Result<Head, ChainError> {
        self.get("/v1/head").await
    }

    async fn metagraph(&self, netuid: u16) -> Result<Metagraph, ChainError> {
        let received: Metagraph = self.get(&format!("/v1/subnets/{netuid}/metagraph")).await?;
        received.checked(netuid).map_err(|e| self.nonsense(e))
    }

    async fn set_weights(
        &self,
        pair: &HotkeyPair,
        netuid: u16,
        weights: &[(u16, u16)],
        version_key: u64,
    ) -> Result<Inclusion, ChainError> {
        let (uids, values) = weights.iter().copied().unzip();
        self.submit(pair, Call::SetWeights { netuid, uids, values, version_key }).await
    }
}
