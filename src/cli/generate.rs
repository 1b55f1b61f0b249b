//! `argus generate`: a picture through a validator's API.

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::client::{Client, Progress, Request};

#[derive(clap::Args)]
pub struct Args {
    /// What the picture should show.
    prompt: String,
    /// Where to write the PNG.
    #[arg(short, long, value_name = "FILE", default_value = "argus.png")]
    output: PathBuf,
    /// The validator's API.
    #[arg(long, env = "ARGUS_API", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    api: String,
    /// API key, made by `argus keys new`.
    #[arg(long, env = "ARGUS_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Model id [default: the first one that makes pictures].
    #[arg(long)]
    model: Option<String>,
    /// What the picture should not show.
    #[arg(long)]
    negative_prompt: Option<String>,
    /// WIDTHxHEIGHT in pixels.
    #[arg(long)]
    size: Option<String>,
    #[arg(long)]
    steps: Option<u32>,
    /// Classifier-free guidance scale.
    #[arg(long)]
    guidance: Option<f32>,
}

/// Asks, shows the steps, writes the file.
pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let client = Client::new(&args.api, args.key);
    let request = Request {
        model: args.model,
        prompt: args.prompt,
        negative_prompt: args.negative_prompt,
        size: args.size,
        steps: args.steps,
        guidance: args.guidance,
    };
    let bar = step_bar(json);
    let generated = client.generate(&request, |progress| show(&bar, progress)).await?;
    bar.finish_and_clear();
    std::fs::write(&args.output, &generated.png)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    if json {
        let mut answer = generated.details;
        answer["file"] = args.output.display().to_string().into();
        println!("{answer}");
    } else {
        println!("{}", args.output.display());
    }
    Ok(())
}

/// A bar for sampler steps; hidden for programs and pipes.
pub fn step_bar(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let style = "{spinner} {msg} [{wide_bar:.cyan/blue}] step {pos}/{len} {elapsed}";
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template").progress_chars("━╸─"));
    bar.set_message("drawing");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

pub fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.of);
    bar.set_position(progress.step);
}
