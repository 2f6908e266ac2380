//! `realm models`

use std::path::absolute;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::admin::Admin;
use crate::config::{AdminAddr, EMBEDDED, ListenSettings};
use crate::workers::{ModelStatus, State, Version};

/// How often a swap under way is looked at.
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show what a running server serves
    List(List),
    /// Replace a model of a running server by another version of it, without failing a request
    ///
    /// The new version is loaded beside the old one, and has to produce a token before new requests
    /// go to it. Running requests finish on the old version, which is unloaded after the last of
    /// them. If the new version cannot be loaded, or this command is ended before it is, the old
    /// one stays.
    ///
    /// Meanwhile both are in memory. The new worker takes blocks from what is free then: a quarter
    /// of that at most, unless the server was started with --kv-memory.
    Swap(Swap),
}

#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// Admin listener of the server [default: 127.0.0.1:9090]
    #[arg(long, env = "REALM_ADMIN_ADDR", value_name = "HOST:PORT")]
    admin_addr: Option<AdminAddr>,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Swap {
    /// Name that the model is served under
    name: String,
    /// Directory of the new version, or `embedded` [default: where the old one came from]
    source: Option<String>,
    #[command(flatten)]
    server: Server,
}

pub(super) async fn models(command: Command, file: ListenSettings) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(args) => list(args.server.find(file)?, args.json).await,
        Command::Swap(args) => swap(args.server.find(file)?, &args.name, args.source).await,
    }
}

impl Server {
    fn find(self, file: ListenSettings) -> anyhow::Result<Admin> {
        let admin = self.admin_addr.or(file.admin_addr).unwrap_or_default();
        match admin.addr() {
            Some(addr) => Ok(Admin(addr)),
            None => bail!("the admin listener is `off`: a server without one cannot be asked"),
        }
    }
}

async fn list(admin: Admin, as_json: bool) -> anyhow::Result<ExitCode> {
    let models = admin.models().await?;
    if as_json {
        println!("{:#}", json!({"models": models}));
        return Ok(ExitCode::SUCCESS);
    }
    for model in models {
        println!("{}: {}", model.name, describe(&model.serving));
        if let Some(version) = &model.incoming {
            println!("  to come: {}", describe(version));
        }
        for version in &model.draining {
            println!("  finishing: {}", describe(version));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(version: &Version) -> String {
    let source = &version.source;
    let state = progress(&version.state);
    let live = version.live_sequences;
    let sequences = if live == 1 { "sequence" } else { "sequences" };
    let limits = version.info.as_ref().map(|info| {
        let tokens = u64::from(info.block_count) * u64::from(info.block_size);
        format!(
            ", {} on {}, context {}, room for {tokens} tokens",
            info.dtype, info.device, info.max_context
        )
    });
    let limits = limits.unwrap_or_default();
    format!("{state}, from {source}{limits}, {live} {sequences}")
}

fn progress(state: &State) -> String {
    match state {
        State::Loading { fraction } => format!("loading, {:.0} %", fraction * 100.0),
        State::Ready => "ready".into(),
        State::Restarting { reason } => format!("its worker is being replaced ({reason})"),
        State::Failed { reason } => format!("failed ({reason})"),
    }
}

async fn swap(admin: Admin, name: &str, source: Option<String>) -> anyhow::Result<ExitCode> {
    // A relative path is meant from here, not from where the server was started.
    let source = match source {
        Some(dir) if dir != EMBEDDED => Some(absolute(&dir)?.display().to_string()),
        other => other,
    };
    let swap = admin.swap(name, source.as_deref());
    let mut swap = std::pin::pin!(swap);
    let mut last = String::new();
    let now = loop {
        tokio::select! {
            now = &mut swap => break now?,
            () = tokio::time::sleep(POLL) => {}
        }
        let Some(version) = incoming(admin, name).await else {
            continue;
        };
        let line = format!("{}: {}", version.source, progress(&version.state));
        if line != last {
            eprintln!("{line}");
            last = line;
        }
    };
    println!("{name} now comes from {}", now.serving.source);
    let finishing: usize = now.draining.iter().map(|v| v.live_sequences).sum();
    if finishing > 0 {
        eprintln!("sequences that still finish on versions before: {finishing}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is being loaded under that name. Whether the server answers at all, the swap itself tells.
async fn incoming(admin: Admin, name: &str) -> Option<Version> {
    let models: Vec<ModelStatus> = admin.models().await.ok()?;
    models.into_iter().find(|m| m.name == name)?.incoming
}
