//! `argus keys`: API keys of a validator's gateway, whether it runs or not.
//!
//! RocksDB belongs to one process: a running node is asked over its admin port, a stopped one's store is
//! opened here.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, Subcommand};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use argus_protocols::Role;

use crate::{
    gateway::{
        Ledger, Settings,
        admin::AdminFile,
        keys::{CreatedKey, Credits, KeyChange, KeyId, KeyView, NewKey},
    },
    node::DataFolder,
    store::Store,
};

/// Create, list, change and revoke API keys of this machine's validator.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Data directory of the validator [default: ~/.argus/validator].
    #[arg(long, env = "ARGUS_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key and print it. It is shown only this once.
    New {
        /// Whom or what the key is for.
        name: String,
        /// Requests a minute [default: the gateway's].
        #[arg(long)]
        rate: Option<u32>,
        /// Requests at once [default: the gateway's].
        #[arg(long)]
        concurrent: Option<u32>,
        /// Credits: an image costs 1, an embedding 0.2 [default: without limit].
        #[arg(long)]
        credits: Option<Credits>,
    },
    /// All keys, with what they have left.
    List {
        /// Revoked keys too.
        #[arg(long)]
        all: bool,
    },
    /// What a key was used for.
    Usage { id: KeyId },
    /// Change a key's name, limits or credits.
    Update {
        id: KeyId,
        #[arg(long)]
        name: Option<String>,
        /// Requests a minute.
        #[arg(long)]
        rate: Option<u32>,
        /// Requests at once.
        #[arg(long)]
        concurrent: Option<u32>,
        /// Credits to add to those given before.
        #[arg(long, conflicts_with = "unlimited")]
        add_credits: Option<Credits>,
        /// Take the credit limit away.
        #[arg(long)]
        unlimited: bool,
    },
    /// Close a key for good.
    Revoke {
        #[arg(required = true)]
        ids: Vec<KeyId>,
        /// Remove it with its usage instead of keeping the record.
        #[arg(long)]
        forget: bool,
    },
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let folder = DataFolder::locate(args.data_dir.as_deref(), Role::Validator)?;
    let access = Access::open(&folder).await?;
    match args.command {
        Command::New { name, rate, concurrent, credits } => {
            let created = access.create(NewKey { name, rate, concurrent, credits }).await?;
            if json {
                return print_json(&created);
            }
            eprintln!("Key {} ({}). Keep it: it is not shown again.", created.view.id, created.view.name);
            println!("{}", created.key);
        }
        Command::List { all } => {
            let mut views = access.list().await?;
            views.retain(|view| all || view.revoked_ms.is_none());
            if json {
                return print_json(&views);
            }
            print!("{}", table(&views));
        }
        Command::Usage { id } => show(&access.get(&id).await?, json)?,
        Command::Update { id, name, rate, concurrent, add_credits, unlimited } => {
            let change = KeyChange { name, rate, concurrent, add_credits, unlimited };
            if change == KeyChange::default() {
                bail!("nothing to change: give --name, --rate, --concurrent, --add-credits or --unlimited");
            }
            show(&access.change(&id, change).await?, json)?;
        }
        Command::Revoke { ids, forget } => {
            let mut revoked = Vec::new();
            for id in &ids {
                revoked.push(access.revoke(id, forget).await?);
            }
            if json {
                return print_json(&revoked);
            }
            for view in revoked {
                println!("{} ({}) opens nothing any more", view.id, view.name);
            }
        }
    }
    Ok(())
}

/// The one process that may touch the keys: a running node, or this one.
enum Access {
    Running { client: reqwest::Client, node: AdminFile },
    Stopped(Ledger),
}

impl Access {
    async fn open(folder: &DataFolder) -> anyhow::Result<Self> {
        let file = AdminFile::read(folder.path())
            .with_context(|| format!("cannot read {}", AdminFile::path(folder.path()).display()))?;
        if let Some(node) = file {
            let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
            let probe = client.get(format!("http://{}/keys", node.address)).bearer_auth(&node.token).send();
            match probe.await {
                Ok(answer) if answer.status().is_success() => {
                    return Ok(Self::Running { client, node });
                }
                // A node that was killed leaves its file behind; somebody else may have its port now.
                Ok(_) => {}
                Err(error) if error.is_connect() => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("the node at {} does not answer", node.address));
                }
            }
        }
        let database = folder.database();
        if !database.exists() {
            bail!(
                "{} has no validator's data; start a validator there first, or name its directory with --data-dir",
                folder.path().display()
            );
        }
        let store = Store::open(&database)?;
        Ok(Self::Stopped(Ledger::open(store, Settings::default().key_defaults())?))
    }

    async fn create(&self, new: NewKey) -> anyhow::Result<CreatedKey> {
        match self {
            Self::Running { client, node } => {
                call(client, node, Method::POST, "/keys", |request| request.json(&new)).await
            }
            Self::Stopped(ledger) => Ok(ledger.create(new)?),
        }
    }

    async fn list(&self) -> anyhow::Result<Vec<KeyView>> {
        match self {
            Self::Running { client, node } => call(client, node, Method::GET, "/keys", |r| r).await,
            Self::Stopped(ledger) => Ok(ledger.list()),
        }
    }

    async fn get(&self, id: &KeyId) -> anyhow::Result<KeyView> {
        match self {
            Self::Running { client, node } => {
                call(client, node, Method::GET, &format!("/keys/{id}"), |r| r).await
            }
            Self::Stopped(ledger) => Ok(ledger.get(id)?),
        }
    }

    async fn change(&self, id: &KeyId, change: KeyChange) -> anyhow::Result<KeyView> {
        match self {
            Self::Running { client, node } => {
                call(client, node, Method::PATCH, &format!("/keys/{id}"), |r| r.json(&change)).await
            }
            Self::Stopped(ledger) => Ok(ledger.change(id, change)?),
        }
    }

    async fn revoke(&self, id: &KeyId, forget: bool) -> anyhow::Result<KeyView> {
        match self {
            Self::Running { client, node } => {
                let path = format!("/keys/{id}?forget={forget}");
                call(client, node, Method::DELETE, &path, |r| r).await
            }
            Self::Stopped(ledger) if forget => Ok(ledger.forget(id)?),
            Self::Stopped(ledger) => Ok(ledger.revoke(id)?),
        }
    }
}

async fn call<T: DeserializeOwned>(
    client: &reqwest::Client,
    node: &AdminFile,
    method: Method,
    path: &str,
    with: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> anyhow::Result<T> {
    let request = client.request(method, format!("http://{}{path}", node.address)).bearer_auth(&node.token);
    let answer = with(request).send().await?;
    let status = answer.status();
    let body: serde_json::Value = answer.json().await.context("the node's answer is not JSON")?;
    if status.is_success() {
        return Ok(serde_json::from_value(body)?);
    }
    match body["error"]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => bail!("the node answered {}", StatusCode::as_u16(&status)),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn show(view: &KeyView, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(view);
    }
    let usage = &view.usage;
    println!("key        {}", view.id);
    println!("name       {}", view.name);
    println!("state      {}", if view.revoked_ms.is_some() { "revoked" } else { "open" });
    println!("rate       {} a minute, {} at once", view.requests_per_minute, view.concurrent);
    println!("credits    {}", credits(view));
    println!("spent      {}", Credits(usage.spent_thousandths));
    println!("requests   {} let in, {} refused", usage.requests, usage.refused);
    println!("images     {}", usage.images);
    println!("embeddings {}", usage.embeddings);
    println!("last used  {}", ago(usage.last_used_ms));
    Ok(())
}

fn credits(view: &KeyView) -> String {
    match (view.credits_left, view.credits) {
        (Some(left), Some(given)) => format!("{left} of {given}"),
        _ => "unlimited".into(),
    }
}

fn ago(then_ms: Option<u64>) -> String {
    let Some(then) = then_ms else {
        return "never".into();
    };
    let seconds = crate::clock::unix_ms().saturating_sub(then) / 1000;
    match seconds {
        0..60 => "just now".into(),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn table(views: &[KeyView]) -> String {
    if views.is_empty() {
        return "no keys; make one with `argus keys new NAME`\n".into();
    }
    let head = ["KEY", "NAME", "RATE", "CREDITS", "IMAGES", "EMBEDDINGS", "LAST USED"].map(str::to_owned);
    let rows = views.iter().map(|view| {
        let name = match view.revoked_ms {
            Some(_) => format!("{} (revoked)", view.name),
            None => view.name.clone(),
        };
        [
            view.id.to_string(),
            name,
            format!("{}/min", view.requests_per_minute),
            credits(view),
            view.usage.images.to_string(),
            view.usage.embeddings.to_string(),
            ago(view.usage.last_used_ms),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..7).map(width).collect();
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
