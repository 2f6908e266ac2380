//! `realm serve`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::{AccessSettings, File, ListenSettings, ProgramSettings, WorkerSettings};
use crate::http::{self, Bound};
use crate::metrics;
use crate::programs::{Compiler, Programs};
use crate::tenants::{Access, Keys, Ledger};
use crate::workers::{Model, Models, default_binary};

/// Exit code of a process that a second signal ended, as shells report SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    access: AccessSettings,
    #[command(flatten)]
    programs: ProgramSettings,
    #[command(flatten)]
    listen: ListenSettings,
    #[command(flatten)]
    workers: WorkerSettings,
    /// Check the settings and the files that they name, and say what is wrong; serve nothing
    #[arg(long)]
    check: bool,
}

/// `config` is where `file` was read.
pub(super) async fn serve(
    args: Args,
    config: Option<PathBuf>,
    file: File,
) -> anyhow::Result<ExitCode> {
    let keys = match args.access.api_keys.or(file.access.api_keys.clone()) {
        Some(path) => Some(Keys::open(&path)?),
        None => None,
    };
    let has_keys = keys.is_some();
    let listen = file.under(args.listen, &file.server, |flags, file| {
        flags.resolve(file, has_keys)
    })?;
    let workers = file.under(args.workers, &file.worker, WorkerSettings::resolve)?;
    let workers = Arc::new(workers);
    let folder = file.under(args.programs, &file.programs, ProgramSettings::resolve)?;
    let usage_log = args.access.usage_log.or(file.access.usage_log.clone());
    let ledger = open_ledger(usage_log, args.check)?;
    let served: Vec<_> = workers
        .models
        .iter()
        .map(|model| model.name.as_str())
        .collect();
    for (tenant, model) in file.tenants.unserved(&served) {
        // Another gateway that shares the file may serve it.
        let tenant = tenant.unwrap_or("everybody");
        tracing::warn!(tenant, model, "may be used, and is not served");
    }
    if folder.is_none() {
        for (tenant, processor) in file.tenants.processors() {
            let tenant = tenant.unwrap_or("everybody");
            tracing::warn!(tenant, %processor, "is the default processor, and no programs are kept");
        }
    }
    let access = Arc::new(Access::new(keys.clone(), file.tenants, ledger));
    if args.check {
        println!("the settings are right");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(keys) = keys {
        tokio::spawn(keys.follow());
    }
    follow_tenants(config, access.clone())?;
    let programs = match folder {
        Some(folder) => {
            let binary = || workers.binary.clone().unwrap_or_else(default_binary);
            let compiler = match folder.compiler {
                Some(socket) => Compiler::listening(socket, folder.limits),
                None => Compiler::new(binary(), folder.limits, workers.require_sandbox),
            };
            Programs::open(&folder.dir, compiler, folder.most_bytes)?
        }
        None => Programs::off(),
    };
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
    tell_systemd();
    let all_ready = async {
        while let Some(ready) = loading.join_next().await {
            ready??;
        }
        anyhow::Ok(())
    };
    let mut serving = std::pin::pin!(http::serve(
        bound,
        models,
        programs,
        access,
        recorder,
        shutdown_signal()?
    ));
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

/// A ledger that writes to a log; one that only looks whether it could, to `check`.
fn open_ledger(log: Option<PathBuf>, check: bool) -> anyhow::Result<Arc<Ledger>> {
    let opened = match &log {
        Some(path) if check => Ledger::check(path).and_then(|()| Ledger::new(None)),
        _ => Ledger::new(log.clone()),
    };
    let ledger = opened.with_context(|| {
        let log = log.unwrap_or_default();
        format!("cannot write to the usage log {}", log.display())
    })?;
    Ok(Arc::new(ledger))
}

/// Has tenants use what the config file says at each SIGHUP. Nothing else of it is read again. Without
/// one the signal is no reason to end either.
fn follow_tenants(config: Option<PathBuf>, access: Arc<Access>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let Some(config) = config.clone() else {
                tracing::info!("SIGHUP has limits of tenants read again, and there is no --config");
                continue;
            };
            match read_again(config).await {
                Ok(file) => {
                    access.configure(file.tenants);
                    tracing::info!("read the limits of tenants again");
                }
                Err(error) => tracing::error!(%error, "the limits of tenants stay as they are"),
            }
        }
    });
    Ok(())
}

/// Reads a file where it keeps no request waiting.
async fn read_again(config: PathBuf) -> anyhow::Result<File> {
    Ok(tokio::task::spawn_blocking(move || File::read(Some(&config))).await??)
}

/// Tells systemd, if that has started this process and wants to know, that it listens, and from time
/// to time that tasks still take turns.
fn tell_systemd() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "cannot reach the service manager");
    }
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut often = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    tokio::spawn(async move {
        loop {
            often.tick().await;
            // If it has not heard for too long it starts another gateway.
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    });
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
                Some(first) => {
                    let _ = first.send(());
                    let _ = sd_notify::notify(&[NotifyState::Stopping]);
                }
                None => std::process::exit(INTERRUPTED.into()),
            }
        }
    });
    Ok(async move {
        // The sender lives in a task that never ends before it has sent.
        let _ = receiver.await;
    })
}
