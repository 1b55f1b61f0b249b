//! `argus generate`: any task through a validator's API.

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::task::{Asked, TaskArgs, TextToImage, Words, classes, lines};
use crate::{
    client::{Client, Progress},
    gateway::orders,
};

/// `argus generate PROMPT` is short for `argus generate text-to-image PROMPT`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    task: Option<TaskArgs<ApiOptions>>,
    /// What the picture should show.
    prompt: Option<String>,
    #[command(flatten)]
    words: Words,
    #[command(flatten)]
    api: ApiOptions,
}

#[derive(clap::Args)]
pub struct ApiOptions {
    /// The validator's API.
    #[arg(long, env = "ARGUS_API", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    api: String,
    /// API key, made by `argus keys new`.
    #[arg(long, env = "ARGUS_API_KEY", hide_env_values = true)]
    key: Option<String>,
}

/// Asks, shows the steps, writes the file.
pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (asked, api) = match (args.task, args.prompt) {
        (Some(task), _) => task.read()?,
        (None, Some(prompt)) => (TextToImage { prompt, words: args.words }.read()?, args.api),
        (None, None) => anyhow::bail!("say what the picture should show, or name a task (see --help)"),
    };
    let client = Client::new(&api.api, api.key);
    let Asked { kind, body, output, .. } = asked;
    match output {
        Some(output) => picture(&client, orders::path(kind), body, output, json).await,
        None => look(&client, orders::path(kind), body, json).await,
    }
}

async fn picture(
    client: &Client,
    path: &str,
    body: Value,
    output: PathBuf,
    json: bool,
) -> anyhow::Result<()> {
    let bar = step_bar(json);
    let generated = client.picture(path, body, |progress| show(&bar, progress)).await?;
    bar.finish_and_clear();
    std::fs::write(&output, &generated.png).with_context(|| format!("cannot write {}", output.display()))?;
    if json {
        let mut answer = generated.details;
        answer["file"] = output.display().to_string().into();
        println!("{answer}");
    } else {
        println!("{}", output.display());
    }
    Ok(())
}

async fn look(client: &Client, path: &str, body: Value, json: bool) -> anyhow::Result<()> {
    let answer = client.post(path, &body).await?;
    if json {
        println!("{answer}");
        return Ok(());
    }
    let data = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |one: &Value| match one.get("embedding") {
        Some(embedding) => embedding.to_string(),
        None => {
            let verdict = if one["nsfw"] == true { "not safe for work" } else { "safe for work" };
            format!("{verdict}: {}", classes(&one["scores"]))
        }
    };
    println!("{}", lines(data, line));
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
