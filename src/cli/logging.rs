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
    #[arg(long, global = true, env = "ARGUS_LOG", default_value = "warn,argus=info", value_name = "FILTER")]
    log: String,
    #[arg(long, global = true, env = "ARGUS_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: Format,
}

impl LogOptions {
    /// Starts logging. Called once, by commands that run for long.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log).map_err(|e| anyhow::anyhow!("--log {}: {e}", self.log))?;
        let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
        match self.log_format {
            Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
            Format::Json => lines.json().init(),
        }
        Ok(())
    }
}
