//! What a development chain can be told, and the genesis that follows from it.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::limits;
use crate::chain::{Hash, Hyperparameters, TAO};

/// How to run a development chain.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to answer HTTP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the chain is kept.
    pub data_dir: PathBuf,
    /// From one block to the next, milliseconds.
    pub block_ms: u64,
    pub rules: Rules,
}

/// What becomes part of the genesis. What is not given is by default for a new chain, and as it was for one
/// that exists; a chain that exists refuses other rules than its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The subnets.
    pub netuids: Option<Vec<u16>>,
    /// Blocks from epoch to epoch.
    pub tempo: Option<u16>,
    /// Blocks between two weight sets of one validator.
    pub weights_rate_limit: Option<u64>,
    /// The oldest version key that is taken.
    pub version_key: Option<u64>,
    pub min_allowed_weights: Option<u16>,
    /// Of 65535.
    pub max_weights_limit: Option<u16>,
    pub activity_cutoff: Option<u16>,
    pub max_validators: Option<u16>,
    pub max_neurons: Option<u16>,
    pub immunity_period: Option<u16>,
    /// Stake that a validator needs, rao.
    pub min_stake: Option<u64>,
    /// Paid to each subnet a block, rao.
    pub emission: Option<u64>,
    /// Price of a registration, rao.
    pub registration_cost: Option<u64>,
    /// The most one faucet call gives, rao; 0 for none.
    pub faucet: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("{name} is {value}: it has to be between {least} and {most}")]
    Range { name: &'static str, value: u64, least: u64, most: u64 },
    #[error("netuids: give between 1 and {most} different ones")]
    Netuids { most: usize },
    #[error(
        "this chain was made with {name} {stored}, asked is {asked}: leave it out, or choose another data \
         directory for a new chain"
    )]
    Differs { name: &'static str, stored: String, asked: String },
}

/// Everything a chain begins with; its hash is what extrinsics are signed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// So that no two chains are the same.
    pub entropy: Hash,
    pub netuids: Vec<u16>,
    pub hyperparameters: Hyperparameters,
    pub emission: u64,
    pub registration_cost: u64,
    pub faucet: u64,
}

impl Genesis {
    pub fn hash(&self) -> Hash {
        let text = serde_json::to_vec(self).expect("plain data becomes JSON");
        Hash(blake3::derive_key("argus/devchain/genesis/1", &text))
    }
}

impl Rules {
    /// The genesis of a new chain.
    pub fn genesis(&self, entropy: Hash) -> Result<Genesis, SettingsError> {
        self.check()?;
        let by_default = Hyperparameters::default();
        Ok(Genesis {
            entropy,
            netuids: self.netuids.clone().unwrap_or_else(|| vec![1]),
            hyperparameters: Hyperparameters {
                // Short, since these networks live for minutes.
                tempo: self.tempo.unwrap_or(20),
                weights_rate_limit: self.weights_rate_limit.unwrap_or(5),
                version_key: self.version_key.unwrap_or(by_default.version_key),
                min_allowed_weights: self.min_allowed_weights.unwrap_or(by_default.min_allowed_weights),
                max_weights_limit: self.max_weights_limit.unwrap_or(by_default.max_weights_limit),
                activity_cutoff: self.activity_cutoff.unwrap_or(by_default.activity_cutoff),
                max_validators: self.max_validators.unwrap_or(by_default.max_validators),
                max_neurons: self.max_neurons.unwrap_or(by_default.max_neurons),
                immunity_period: self.immunity_period.unwrap_or(by_default.immunity_period),
                min_stake: self.min_stake.unwrap_or(by_default.min_stake),
                ..by_default
            },
            emission: self.emission.unwrap_or(TAO),
            registration_cost: self.registration_cost.unwrap_or(0),
            faucet: self.faucet.unwrap_or(100_000 * TAO),
        })
    }

    fn check(&self) -> Result<(), SettingsError> {
        let most = limits::SUBNETS;
        if let Some(netuids) = &self.netuids {
            let different: std::collections::BTreeSet<_> = netuids.iter().collect();
            if netuids.is_empty() || netuids.len() > most || different.len() != netuids.len() {
                return Err(SettingsError::Netuids { most });
            }
        }
        let largest = u64::from(u16::MAX);
        for (name, value, least, most) in [
            ("tempo", self.tempo.map(u64::from), 1, largest),
            ("max_validators", self.max_validators.map(u64::from), 1, limits::NEURONS),
            ("max_neurons", self.max_neurons.map(u64::from), 1, limits::NEURONS),
            ("activity_cutoff", self.activity_cutoff.map(u64::from), 1, largest),
            ("emission", self.emission, 0, 1000 * TAO),
            ("faucet", self.faucet, 0, limits::FAUCET),
        ] {
            if let Some(value) = value
                && !(least..=most).contains(&value)
            {
                return Err(SettingsError::Range { name, value, least, most });
            }
        }
        Ok(())
    }

    /// Whether an existing chain follows these rules.
    pub fn agree(&self, genesis: &Genesis) -> Result<(), SettingsError> {
        fn same<T: PartialEq + std::fmt::Debug>(
            name: &'static str,
            asked: Option<&T>,
            stored: &T,
        ) -> Result<(), SettingsError> {
            match asked {
                Some(asked) if asked != stored => Err(SettingsError::Differs {
                    name,
                    stored: format!("{stored:?}"),
                    asked: format!("{asked:?}"),
                }),
                _ => Ok(()),
            }
        }
        let stored = &genesis.hyperparameters;
        same("netuids", self.netuids.as_ref(), &genesis.netuids)?;
        same("tempo", self.tempo.as_ref(), &stored.tempo)?;
        same("weights_rate_limit", self.weights_rate_limit.as_ref(), &stored.weights_rate_limit)?;
        same("version_key", self.version_key.as_ref(), &stored.version_key)?;
        same("min_allowed_weights", self.min_allowed_weights.as_ref(), &stored.min_allowed_weights)?;
        same("max_weights_limit", self.max_weights_limit.as_ref(), &stored.max_weights_limit)?;
        same("activity_cutoff", self.activity_cutoff.as_ref(), &stored.activity_cutoff)?;
        same("max_validators", self.max_validators.as_ref(), &stored.max_validators)?;
        same("max_neurons", self.max_neurons.as_ref(), &stored.max_neurons)?;
        same("immunity_period", self.immunity_period.as_ref(), &stored.immunity_period)?;
        same("min_stake", self.min_stake.as_ref(), &stored.min_stake)?;
        same("emission", self.emission.as_ref(), &genesis.emission)?;
        same("registration_cost", self.registration_cost.as_ref(), &genesis.registration_cost)?;
        same("faucet", self.faucet.as_ref(), &genesis.faucet)
    }
}

impl Settings {
    /// A chain on a free loopback port.
    pub fn local(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: data_dir.into(),
            block_ms: 1000,
            rules: Rules::default(),
        }
    }

    pub fn validate(&self) -> Result<(), SettingsError> {
        let (least, most) = (limits::SHORTEST_BLOCK_MS, limits::LONGEST_BLOCK_MS);
        if !(least..=most).contains(&self.block_ms) {
            return Err(SettingsError::Range { name: "block_ms", value: self.block_ms, least, most });
        }
        self.rules.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named() {
        let refuse = |rules: Rules| {
            let settings = Settings { rules, ..Settings::local("x") };
            settings.validate().unwrap_err().to_string()
        };
        let rules = Rules::default;
        assert!(refuse(Rules { tempo: Some(0), ..rules() }).contains("tempo is 0"));
        assert!(refuse(Rules { netuids: Some(vec![]), ..rules() }).contains("netuids"));
        assert!(refuse(Rules { netuids: Some(vec![1, 1]), ..rules() }).contains("netuids"));
        assert!(refuse(Rules { max_neurons: Some(999), ..rules() }).contains("256"));
        let fast = Settings { block_ms: 0, ..Settings::local("x") };
        assert!(fast.validate().unwrap_err().to_string().contains("block_ms"));
    }

    #[test]
    fn an_existing_chain_keeps_its_rules() {
        let rules = Rules { tempo: Some(7), ..Rules::default() };
        let genesis = rules.genesis(Hash([1; 32])).unwrap();
        rules.agree(&genesis).unwrap();
        Rules::default().agree(&genesis).unwrap();
        let other = Rules { tempo: Some(8), ..Rules::default() };
        let error = other.agree(&genesis).unwrap_err().to_string();
        assert!(error.contains("made with tempo 7, asked is 8"), "{error}");
        assert_ne!(genesis.hash(), rules.genesis(Hash([2; 32])).unwrap().hash());
    }
}
