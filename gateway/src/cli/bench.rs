//! `realm bench`

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use crate::api::random;
use crate::bench::{self, Arrivals, Client, Summary, Work};
use crate::config::{Listen, ModelSource, ModelSpec, TenantTable, WorkerSettings};
use crate::http::{self, Bound};
use crate::metrics;
use crate::programs::Programs;
use crate::tenants::{Access, Ledger};
use crate::workers::{Model, Models};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Load the server at URL, such as http://127.0.0.1:8080/v1, with --model as it names it
    /// [default: serve --model here and load that]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Key to show to the server at URL
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    api_key: Option<String>,
    /// Requests at once, the next one when one is answered; each number is a run of its own
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,8,32"
    )]
    concurrency: Vec<usize>,
    /// Requests per second, whether or not earlier ones are answered, instead of --concurrency
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency")]
    rate: Option<f64>,
    /// Requests of each run [default: three for each at once, or ten seconds of --rate]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    prompt: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    output: usize,
    /// Another seed gives other prompts and arrivals; give one where a server remembers prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    workers: WorkerSettings,
}

pub(super) async fn bench(args: Args, file: WorkerSettings) -> anyhow::Result<ExitCode> {
    let runs: Vec<_> = match args.rate {
        Some(rate) => vec![Arrivals::Open { rate }],
        None => args
            .concurrency
            .iter()
            .map(|&concurrency| Arrivals::Closed { concurrency })
            .collect(),
    };
    let none = [Some(args.prompt), Some(args.output), args.requests].contains(&Some(0));
    if none || runs.iter().any(|run| !is_possible(*run)) {
        bail!("--prompt, --output, --requests, --concurrency and --rate must be above zero");
    }
    let (client, model) = match &args.url {
        Some(url) => {
            let client = Client::new(url, args.api_key.clone())?;
            let model = match args.workers.model.as_slice() {
                [] => client.first_model().await?,
                [spec] => as_given(spec),
                _ => bail!("give one --model to load"),
            };
            (client, model)
        }
        None => serve(args.workers.clone(), file).await?,
    };
    let mut summaries: Vec<Summary> = Vec::new();
    if !args.json {
        println!(
            "{model}: prompts of {} tokens, answers of {}\n{}",
            args.prompt,
            args.output,
            bench::header()
        );
    }
    for (index, run) in runs.into_iter().enumerate() {
        let work = Work {
            model: model.clone(),
            prompt_tokens: args.prompt,
            output_tokens: args.output,
            requests: args.requests.unwrap_or(match run {
                Arrivals::Closed { concurrency } => 3 * concurrency,
                Arrivals::Open { rate } => (10.0 * rate).ceil() as usize,
            }),
            // Other prompts than in the runs before, which a server may remember.
            seed: random::key(args.seed, index),
        };
        let (total, shows) = (work.requests, std::io::stderr().is_terminal());
        let progress = move |done| {
            if shows {
                show(done, total);
            }
        };
        let summary = bench::run(&client, &work, run, progress).await?;
        if shows {
            eprint!("\r\x1b[K");
        }
        if !args.json {
            println!("{summary}");
        }
        summaries.push(summary);
    }
    if args.json {
        let (prompt, output, seed) = (args.prompt, args.output, args.seed);
        println!(
            "{:#}",
            json!({
                "model": model, "prompt_tokens": prompt, "output_tokens": output, "seed": seed,
                "runs": summaries,
            })
        );
    }
    let failed = summaries.iter().any(|summary| summary.failed > 0);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn is_possible(run: Arrivals) -> bool {
    match run {
        Arrivals::Closed { concurrency } => concurrency > 0,
        Arrivals::Open { rate } => rate > 0.0 && rate.is_finite(),
    }
}

/// Serves a model in this process, over HTTP like any other, until the process ends.
async fn serve(workers: WorkerSettings, file: WorkerSettings) -> anyhow::Result<(Client, String)> {
    let workers = Arc::new(workers.resolve(file)?);
    let [spec] = workers.models.as_slice() else {
        bail!("`realm bench` measures one model: give one --model");
    };
    let name = spec.name.clone();
    let recorder = metrics::install().context("cannot set up metrics")?;
    let bound = Bound::new(Listen {
        api: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        admin: None,
        max_body_bytes: 16 << 20,
        drain_timeout: Duration::ZERO,
    })
    .await?;
    let client = Client::new(&format!("http://{}/v1", bound.api_addr()?), None)?;
    let model = Model::load(spec.clone(), workers.clone()).await?;
    model.ready().await?;
    let models = Models::new(vec![model], workers);
    let access = Arc::new(Access::new(
        None,
        TenantTable::default(),
        Arc::new(Ledger::new(None)?),
    ));
    let never = std::future::pending();
    tokio::spawn(http::serve(
        bound,
        models,
        Programs::off(),
        access,
        recorder,
        never,
    ));
    Ok((client, name))
}

/// What `--model` said, unless it was NAME=DIR.
fn as_given(spec: &ModelSpec) -> String {
    match &spec.source {
        ModelSource::Directory(path) if path.ends_with(&spec.name) => path.display().to_string(),
        _ => spec.name.clone(),
    }
}

/// A bar for people who wait.
fn show(done: usize, total: usize) {
    const WIDTH: usize = 40;
    let filled = WIDTH * done / total.max(1);
    let bar = "#".repeat(filled) + &"·".repeat(WIDTH - filled);
    let mut err = std::io::stderr().lock();
    // A terminal that is gone is no reason to stop measuring.
    let _ = write!(err, "\r{bar} {done}/{total}").and_then(|()| err.flush());
}
