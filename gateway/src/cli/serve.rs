//! `realm serve`

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::{ListenSettings, WorkerSettings};
use crate::http::{self, Bound};
use crate::metrics;
use crate::workers::{Model, Models};

/// Exit code of a process that a second signal ended, as shells report SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    listen: ListenSettings,
    #[command(flatten)]
    workers: WorkerSettings,
}

pub(super) async fn serve(
    args: Args,
    listen: ListenSettings,
    workers: WorkerSettings,
) -> anyhow::Result<ExitCode> {
    let listen = args.listen.resolve(listen)?;
    let workers = Arc::new(args.workers.resolve(workers)?);
    let recorder = metrics::install().context("cannot set up metrics")?;
    tokio::spawn(metrics::upkeep(recorder.clone()));
    let bound = Bound::new(listen).await?;
    let mut models = Vec::new();
    for spec in &workers.models {
        models.push(Model::load(spec.clone(), workers.clone()).await?);
    }
    let mut loading: JoinSet<_> = models.iter().map(|model| model.ready()).collect();
    let models = Models::new(models, workers);
    tracing::info!("listening on http://{}", bound.api_addr()?);
    if let Some(addr) = bound.admin_addr() {
        tracing::info!("admin on http://{}", addr?);
    }
    let all_ready = async {
        while let Some(ready) = loading.join_next().await {
            ready??;
        }
        anyhow::Ok(())
    };
    let mut serving = std::pin::pin!(http::serve(bound, models, recorder, shutdown_signal()?));
    let drained = tokio::select! {
        // A model that cannot be loaded at all is a mistake in the command, to be seen at once.
        // One that fails later leaves the others serving.
        ready = all_ready => match ready {
            Ok(()) => serving.await,
            Err(error) => return Err(error),
        },
        drained = &mut serving => drained,
    };
    if drained {
        tracing::info!("all requests finished");
    } else {
        tracing::warn!("the drain timeout passed; ending the requests that still run");
    }
    Ok(ExitCode::SUCCESS)
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process at once.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut sender = Some(sender);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match sender.take() {
                Some(first) => drop(first.send(())),
                None => std::process::exit(INTERRUPTED.into()),
            }
        }
    });
    Ok(async move {
        // The sender lives in a task that never ends before it has sent.
        let _ = receiver.await;
    })
}
