//! What an operator can set about validating.

use std::collections::BTreeMap;

use argus_protocols::TaskKind;
use serde::{Deserialize, Serialize};

use super::{audits, period};
use crate::verify::{Scoring, Thresholds};

/// One task that is scored and paid for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSettings {
    pub task: TaskKind,
    /// The model that is asked for, by its id in the registry.
    pub model: String,
    /// Share of the incentive, in relation to the other tasks'.
    pub incentive: f64,
    /// At least one synthetic round in this time, milliseconds.
    pub interval_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The tasks and their models. Empty: every task that the embedded models serve.
    pub tasks: Vec<TaskSettings>,
    pub periods: period::Settings,
    pub scoring: Scoring,
    pub thresholds: Thresholds,
    /// The share of agreeing answers that are checked against this validator's own engine all the same,
    /// so that miners who are wrong in the same way are found.
    pub checked_agreements: f64,
    /// The share of organic answers that are compared and scored.
    pub checked_organic: f64,
    pub audits: audits::Settings,
    /// Miners tried for one organic query before it fails.
    pub organic_attempts: u32,
    /// How long a miner may take to accept a query, milliseconds.
    pub first_byte_ms: u32,
    /// How long a miner may be silent while it works, milliseconds.
    pub idle_ms: u32,
    /// How long an answer may take in all, milliseconds.
    pub total_ms: u32,
    /// Whether synthetic rounds are run. Without them only organic answers are scored.
    pub synthetic: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            periods: period::Settings::default(),
            scoring: Scoring::default(),
            thresholds: Thresholds::default(),
            checked_agreements: 0.05,
            checked_organic: 0.1,
            audits: audits::Settings::default(),
            organic_attempts: 4,
            first_byte_ms: 5_000,
            idle_ms: 20_000,
            total_ms: 60_000,
            synthetic: true,
        }
    }
}

/// Why settings cannot be used; says what to change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("validator.{0}")]
pub struct SettingsError(pub String);

impl Settings {
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.periods.validate().map_err(SettingsError)?;
        self.scoring.validate().map_err(SettingsError)?;
        self.thresholds.validate().map_err(SettingsError)?;
        self.audits.validate().map_err(SettingsError)?;
        for (name, share) in
            [("checked_agreements", self.checked_agreements), ("checked_organic", self.checked_organic)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(SettingsError(format!("{name} is {share}: give a share from 0 to 1")));
            }
        }
        if self.organic_attempts == 0 {
            return Err(SettingsError("organic_attempts is 0: give 1 or more".into()));
        }
        let limit = argus_protocols::limits::DEADLINE_MS;
        let ordered = 0 < self.first_byte_ms && self.first_byte_ms <= self.total_ms && 0 < self.idle_ms;
        if !ordered || self.total_ms > limit {
            return Err(SettingsError(format!(
                "first_byte_ms, idle_ms and total_ms must be above 0, the first at most the last, and that at most {limit}"
            )));
        }
        for task in &self.tasks {
            if !(task.incentive.is_finite() && task.incentive > 0.0) {
                return Err(SettingsError(format!(
                    "tasks: the incentive of {} is {}: give a number above 0",
                    task.task, task.incentive
                )));
            }
            if task.interval_ms < 100 {
                return Err(SettingsError(format!("tasks: interval_ms of {} is under 100", task.task)));
            }
            if self.tasks.iter().filter(|t| t.task == task.task).count() > 1 {
                return Err(SettingsError(format!("tasks: {} is there twice", task.task)));
            }
        }
        Ok(())
    }

    /// Incentive shares by task; only their relation matters.
    pub fn incentive(&self) -> BTreeMap<TaskKind, f64> {
        self.tasks.iter().map(|t| (t.task, t.incentive)).collect()
    }
}
