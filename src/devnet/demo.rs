//! The demo on a running devnet: a picture through the API, then the scores and weights of the first
//! periods as a table.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Devnet, NETUID};
use crate::{
    chain::{Chain, ChainError, Settings, TAO, dev},
    client::{Client, ClientError, Generated, Progress, Request},
    node::{AdminClient, DataFolder},
};

/// Until validators have found their miners.
const FIRST_PICTURE: Duration = Duration::from_secs(90);
/// Until every validator's weights are on the chain and an epoch has paid for them.
const WEIGHTS: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("not every miner had incentive and a weight of every validator within {seconds} s\n{table}")]
    NoWeights { seconds: u64, table: String },
}

/// One neuron of the table. Weights and shares are fractions.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub uid: u16,
    pub hotkey: String,
    pub stake_tao: f64,
    /// By each validator, in their order; `None` where it set none.
    pub weights: Vec<Option<f64>>,
    /// Mean score over the periods, as the first validator sees it; 1 is par.
    pub score: Option<f64>,
    pub incentive: f64,
    pub dividends: f64,
    pub vtrust: f64,
}

/// Asks the first validator's API for a picture and writes it. Right after the start validators may not
/// have found a miner yet; "no capacity" is then waited out.
pub async fn picture(
    net: &Devnet,
    key: &str,
    prompt: &str,
    file: &Path,
    mut progress: impl FnMut(Progress),
) -> Result<Generated, DemoError> {
    let client = Client::new(&net.validators[0].api, Some(key.to_owned()));
    let request = Request { prompt: prompt.to_owned(), ..Request::default() };
    let deadline = Instant::now() + FIRST_PICTURE;
    let generated = loop {
        match client.generate(&request, &mut progress).await {
            Err(ClientError::Refused { .. }) if Instant::now() < deadline => sleep(POLL).await,
            done => break done?,
        }
    };
    std::fs::write(file, &generated.png)
        .map_err(|source| DemoError::Write { path: file.to_owned(), source })?;
    Ok(generated)
}

/// Waits until every miner has a weight of every validator and incentive on the chain.
pub async fn weights(net: &Devnet, mut waiting: impl FnMut(&[Line])) -> Result<Vec<Line>, DemoError> {
    let deadline = Instant::now() + WEIGHTS;
    loop {
        let lines = lines(net).await?;
        let paid = |line: &Line| {
            line.incentive > 0.0 && line.weights.iter().all(|weight| weight.is_some_and(|w| w > 0.0))
        };
        if lines.iter().filter(|line| line.name.starts_with("miner")).all(paid) {
            return Ok(lines);
        }
        if Instant::now() >= deadline {
            let table = table(&lines);
            return Err(DemoError::NoWeights { seconds: WEIGHTS.as_secs(), table });
        }
        waiting(&lines);
        sleep(POLL).await;
    }
}

async fn lines(net: &Devnet) -> Result<Vec<Line>, ChainError> {
    let client = dev::Client::new(&Settings::at(&net.chain_url))?;
    let metagraph = client.metagraph(NETUID).await?;
    let rows = client.weights(NETUID).await?;
    let scores = scores(net).await;
    let share = |value: u16| f64::from(value) / f64::from(u16::MAX);
    let nodes = net.miners.iter().map(|m| (&m.process, &m.hotkey));
    let nodes = nodes.chain(net.validators.iter().map(|v| (&v.process, &v.hotkey)));
    let line = |(process, hotkey): (&super::Process, &argus_protocols::Hotkey)| {
        let neuron = metagraph.by_hotkey(hotkey)?;
        let weight = |validator: &super::Validator| {
            let row = rows.iter().find(|row| row.hotkey == validator.hotkey)?;
            let sum: f64 = row.weights.iter().map(|&(_, weight)| f64::from(weight)).sum();
            let (_, weight) = row.weights.iter().find(|(uid, _)| *uid == neuron.uid)?;
            Some(f64::from(*weight) / sum)
        };
        Some(Line {
            name: process.name().to_owned(),
            uid: neuron.uid,
            hotkey: hotkey.to_string(),
            stake_tao: neuron.stake as f64 / TAO as f64,
            weights: net.validators.iter().map(weight).collect(),
            score: scores.iter().find(|(key, _)| *key == hotkey.to_string()).map(|(_, score)| *score),
            incentive: share(neuron.incentive),
            dividends: share(neuron.dividends),
            vtrust: share(neuron.vtrust),
        })
    };
    Ok(nodes.filter_map(line).collect())
}

/// What the first validator thinks of its miners.
async fn scores(net: &Devnet) -> Vec<(String, f64)> {
    let status = match AdminClient::open(&DataFolder::at(&net.validators[0].dir)) {
        Ok(client) => client.status().await.unwrap_or_default(),
        Err(_) => Value::Null,
    };
    let miners = status["work"]["miners"].as_array().cloned().unwrap_or_default();
    let score = |miner: &Value| Some((miner["hotkey"].as_str()?.to_owned(), miner["score"].as_f64()?));
    miners.iter().filter_map(score).collect()
}

/// The lines for people.
pub fn table(lines: &[Line]) -> String {
    let validators = lines.iter().map(|line| line.weights.len()).max().unwrap_or(0);
    let mut header: Vec<String> =
        ["uid", "node", "hotkey", "stake", "score"].iter().map(|&h| h.to_owned()).collect();
    header.extend((1..=validators).map(|n| format!("weight by v{n}")));
    header.extend(["incentive", "dividends", "vtrust"].iter().map(|&h| h.to_owned()));
    let number = |value: f64| {
        if value == 0.0 { "–".to_owned() } else { format!("{value:.3}") }
    };
    let mut rows = vec![header];
    for line in lines {
        let mut row = vec![
            line.uid.to_string(),
            line.name.clone(),
            format!("{}…", &line.hotkey[..8]),
            if line.stake_tao == 0.0 { "–".into() } else { format!("{:.0} τ", line.stake_tao) },
            line.score.map_or("–".into(), |score| format!("{score:.3}")),
        ];
        row.extend(line.weights.iter().map(|weight| weight.map_or("–".into(), number)));
        row.extend([line.incentive, line.dividends, line.vtrust].map(number));
        rows.push(row);
    }
    align(&rows)
}

/// Columns as wide as their widest cell; a rule under the header.
fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        text += &format!("  {}\n", cells.join("  "));
        if index == 0 {
            text += &format!("  {}\n", "─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_shows_what_is_missing() {
        let line = Line {
            name: "miner-1".into(),
            uid: 0,
            hotkey: "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".into(),
            stake_tao: 0.0,
            weights: vec![Some(0.5), None],
            score: Some(1.25),
            incentive: 0.333,
            dividends: 0.0,
            vtrust: 0.0,
        };
        let text = table(&[line]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| l.chars().count() == lines[0].chars().count()), "{text}");
        assert!(lines[2].contains("5GrwvaEF…") && lines[2].contains("0.500") && lines[2].contains("1.250"));
    }
}
