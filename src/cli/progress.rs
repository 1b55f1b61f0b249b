//! Progress bars on a terminal, and nothing anywhere else.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::fetch::Watch;

/// The bars of one command.
pub(super) struct Bars {
    is_shown: bool,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// None with `--json`.
    pub(super) fn new(json: bool) -> Self {
        Self { is_shown: !json && std::io::stderr().is_terminal(), bar: None }
    }

    fn bytes(&self, name: &str, size: u64) -> ProgressBar {
        if !self.is_shown {
            return ProgressBar::hidden();
        }
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        ProgressBar::new(size).with_style(style).with_message(name.to_owned())
    }

    /// For files of `size` bytes together that are hashed.
    pub(super) fn hashing(&self, name: &str, size: u64) -> ProgressBar {
        self.bytes(name, size)
    }
}

impl Watch for Bars {
    fn begin(&mut self, name: &str, size: u64, already: u64) {
        let bar = self.bytes(name, size);
        bar.set_position(already);
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
