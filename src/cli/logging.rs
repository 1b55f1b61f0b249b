//! Logs go to standard error: for people by default, as JSON lines for collectors.

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(clap::Args, Clone, Debug)]
pub struct LogOptions {
    /// What to log, e.g. `info`, `argus=debug,libp2p=warn`.
    /// [default: warnings, and what nodes do]
    #[arg(long, global = true, env = "ARGUS_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[arg(long, global = true, env = "ARGUS_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: Format,
}

impl LogOptions {
    /// Starts logging. A command that gives one answer (`node` false) stays quiet by default.
    pub fn start(&self, node: bool) -> anyhow::Result<()> {
        let default = if node { "warn,argus=info" } else { "error" };
        let filter = self.log.as_deref().unwrap_or(default);
        let filter = EnvFilter::try_new(filter).map_err(|e| anyhow::anyhow!("--log {filter}: {e}"))?;
        let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
        match self.log_format {
            Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
            Format::Json => lines.json().init(),
        }
        Ok(())
    }
}
