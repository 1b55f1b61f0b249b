//! Argus: a peer-to-peer overlay for verified, decentralised image inference.
//!
//! One binary plays every role: miner, validator, relay, development chain. ARCHITECTURE.md says what
//! lives where and who may know whom.

pub mod chain;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod devnet;
pub mod fetch;
pub mod gateway;
pub mod identity;
pub mod jobs;
pub mod miner;
pub mod net;
pub mod node;
pub mod store;
pub mod validator;
pub mod verify;
pub mod worker;
