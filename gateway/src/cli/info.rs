//! `realm info`

use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::config::WorkerSettings;
use crate::workers::{Model, default_binary};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    workers: WorkerSettings,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn info(args: Args, file: WorkerSettings) -> anyhow::Result<ExitCode> {
    let workers = Arc::new(args.workers.resolve(file)?);
    let binary = workers.binary.clone().unwrap_or_else(default_binary);
    let output = tokio::process::Command::new(&binary)
        .args(["info", "--json"])
        .stderr(Stdio::inherit())
        .output()
        .await
        .with_context(|| {
            format!(
                "cannot start the worker {}; build it with `cargo xtask build`",
                binary.display()
            )
        })?;
    if !output.status.success() {
        bail!(
            "the worker {} info ended with {}",
            binary.display(),
            output.status
        );
    }
    let worker: Value =
        serde_json::from_slice(&output.stdout).context("what the worker says of itself")?;
    let mut models = serde_json::Map::new();
    for spec in &workers.models {
        let model = Model::load(spec.clone(), workers.clone()).await?;
        model.ready().await?;
        if let Some(info) = model.info() {
            models.insert(model.name.clone(), serde_json::to_value(info)?);
        }
    }
    let all = json!({"realm": env!("CARGO_PKG_VERSION"), "worker": worker, "models": models});
    if args.json {
        println!("{all:#}");
    } else {
        print_tree(&all, 0);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints JSON as an indented list of names and values.
fn print_tree(value: &Value, depth: usize) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(_) => {
                println!("{indent}{name}");
                print_tree(value, depth + 1);
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                println!("{indent}{name}: {}", items.join(" "));
            }
            other => println!("{indent}{name}: {}", plain(other)),
        }
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
