//! The command line.

mod admin;
mod api_key;
mod bench;
mod check;
mod client;
mod component;
mod info;
mod log;
mod models;
mod program;
mod run;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use realm_shared::causes::told;

use crate::config::{File, LogSettings};

/// An OpenAI-compatible server for language models, with tenants and workers that may die.
#[derive(Debug, Parser)]
#[command(name = "realm", version, max_term_width = 100)]
struct Cli {
    /// Settings file, see realm.example.toml; flags and REALM_* override it
    #[arg(long, env = "REALM_CONFIG", global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    log: LogSettings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over the OpenAI API
    Serve(serve::Args),
    /// Make, show and disable the keys that callers must show
    #[command(subcommand)]
    ApiKey(api_key::Command),
    /// Store, show, remove and check programs of tenants
    #[command(subcommand)]
    Program(program::Command),
    /// Ask a model one thing, or chat with it
    Run(run::Args),
    /// Show devices, CPU features, libtorch and the limits of models
    Info(info::Args),
    /// Measure a model here, or any OpenAI-compatible server, under load
    Bench(bench::Args),
    /// List and swap the models of a running server
    #[command(subcommand)]
    Models(models::Command),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run_command(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", told(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run_command(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut file = File::read(cli.config.as_deref())?;
    // `serve` tells what it does; the others answer on standard output and only warn beside it.
    let default_level = if matches!(cli.command, Command::Serve(_)) {
        "info"
    } else {
        "warn"
    };
    log::init(cli.log, std::mem::take(&mut file.log), default_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::serve(args, cli.config, file).await,
            Command::ApiKey(command) => api_key::api_key(command, file.access.api_keys),
            Command::Program(command) => program::program(command, file).await,
            Command::Run(args) => run::run(args, file.worker).await,
            Command::Info(args) => info::info(args, file.worker).await,
            Command::Bench(args) => bench::bench(args, file.worker).await,
            Command::Models(command) => models::models(command, file.server).await,
        }
    })
}
