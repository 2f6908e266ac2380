//! Served models and the workers behind them.
//!
//! Each model has one [driver](driver) task that owns its scheduler and its current worker
//! incarnation. Requests reach the driver through a channel and get a [`Generation`] back; the
//! driver turns plans of the scheduler into tensors in shared memory ([`link`]), and results into
//! events. A worker that ends is replaced by a new [incarnation](process), and the scheduler goes
//! on with the tokens it has.
//!
//! Each version of a model has a driver of its own, which lives as long as somebody holds a handle
//! to it: [`Models`] holds one to the version that is served, every request one to the version that
//! it began with. So a [swap](Models::swap) is one pointer that changes, and the version before
//! unloads by itself after its last request.

mod driver;
mod generation;
mod hearing;
mod heartbeat;
mod link;
mod live;
mod models;
mod process;
mod queue;
mod runs;
mod saved;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use realm_shared::control::ModelInfo;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

pub use generation::{Generation, Refused};
pub use models::{ModelStatus, Models, SwapError, Version};
pub use process::{WorkerError, default_binary};

use crate::batching::{Event, Sequence, TenantId};
use crate::config::{ModelSource, ModelSpec, Workers};
use crate::tenants::Reservation;
use crate::text::Text;
use generation::{Backlog, Command, Start, StartRun};
use queue::{Places, Queue};
pub use runs::Task;

/// Retry hint while a worker starts or the queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How a model's worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// A worker is starting; `fraction` of its weights are read.
    Loading {
        /// 0 to 1.
        fraction: f32,
    },
    /// A worker serves, and has produced a token to prove it.
    Ready,
    /// The last worker ended and another will be started. Running requests wait for it.
    Restarting {
        /// Why the last one ended.
        reason: String,
    },
    /// There will be no worker.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What requests must know of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelLimits {
    /// Every token is below it.
    pub vocab_size: u32,
    /// Most tokens, prompt and output together.
    pub max_context: u32,
    /// Positions per KV block.
    pub block_size: u32,
    /// KV blocks of the worker.
    pub block_count: u32,
}

/// A model cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("model `{model}`: {reason}")]
pub struct LoadError {
    model: String,
    reason: String,
}

/// A version of a model: its text side, and the driver of its workers. The driver ends, and its
/// worker with it, when this and every [`Generation`] are dropped.
#[derive(Debug)]
pub struct Model {
    /// The name that requests ask for.
    pub name: String,
    /// Its tokenizer, template and defaults.
    pub text: Arc<Text>,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    next_request: AtomicU64,
}

/// What a model's driver and its requests share.
#[derive(Debug)]
struct Shared {
    source: ModelSource,
    /// In seconds since 1970.
    created: u64,
    state: watch::Sender<State>,
    /// Of the worker that was ready last.
    info: Mutex<Option<ModelInfo>>,
    /// Sequences running or waiting.
    queue: Arc<Queue>,
}

impl Shared {
    fn info(&self) -> Option<ModelInfo> {
        self.info.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn set_info(&self, info: ModelInfo) {
        *self.info.lock().unwrap_or_else(|e| e.into_inner()) = Some(info);
    }
}

impl Model {
    /// Reads the text files of a model and starts its driver, and through it the first worker.
    pub async fn load(spec: ModelSpec, settings: Arc<Workers>) -> Result<Arc<Self>, LoadError> {
        let source = spec.source.clone();
        let read = tokio::task::spawn_blocking(move || match source {
            ModelSource::Embedded => Text::from_parts(&crate::embedded::text_files()),
            ModelSource::Directory(dir) => Text::from_dir(&dir),
        });
        let error = |reason| LoadError {
            model: spec.name.clone(),
            reason,
        };
        let text = read.await.map_err(|e| error(e.to_string()))?;
        let text = text.map_err(|e| error(e.to_string()))?;
        Ok(Self::start(spec, Arc::new(text), settings))
    }

    fn start(spec: ModelSpec, text: Arc<Text>, settings: Arc<Workers>) -> Arc<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let shared = Arc::new(Shared {
            source: spec.source.clone(),
            created,
            state: watch::Sender::new(State::Loading { fraction: 0.0 }),
            info: Mutex::new(None),
            queue: Arc::new(Queue::new(settings.max_queue)),
        });
        let name = spec.name.clone();
        let driver = driver::Driver::new(spec.clone(), settings, shared.clone(), inbox);
        tokio::spawn(async move {
            driver.run().await;
            tracing::info!(model = spec.name, source = %spec.source, "unloaded");
        });
        Arc::new(Model {
            name,
            text,
            shared,
            commands,
            next_request: AtomicU64::new(0),
        })
    }

    /// Where it was loaded from.
    pub fn source(&self) -> &ModelSource {
        &self.shared.source
    }

    /// When it was added, in seconds since 1970.
    pub fn created(&self) -> u64 {
        self.shared.created
    }

    /// Limits of the worker that was ready last; `None` before the first.
    pub fn limits(&self) -> Option<ModelLimits> {
        let info = self.info()?;
        Some(ModelLimits {
            vocab_size: info.vocab_size,
            max_context: info.max_context,
            block_size: info.block_size,
            block_count: info.block_count,
        })
    }

    /// What the worker said of the model; `None` before the first was ready.
    pub fn info(&self) -> Option<ModelInfo> {
        self.shared.info()
    }

    /// How its worker is now, and every change from here on.
    pub fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Resolves once a worker is ready, or there will be none. Waiting does not keep the model
    /// loaded.
    pub fn ready(&self) -> impl Future<Output = Result<(), LoadError>> + Send + use<> {
        let mut state = self.state();
        let model = self.name.clone();
        async move {
            let known = |s: &State| matches!(s, State::Ready | State::Failed { .. });
            let reason = match state.wait_for(known).await.as_deref() {
                Ok(State::Failed { reason }) => reason.clone(),
                Ok(_) => return Ok(()),
                Err(_) => "it was unloaded".to_owned(),
            };
            Err(LoadError { model, reason })
        }
    }

    /// Admits all sequences of a request, or none. Their ids are assigned here. What they take is
    /// counted on the `reservation`, which lasts until the request is over.
    pub fn generate(
        &self,
        sequences: Vec<Sequence>,
        reservation: Option<Reservation>,
    ) -> Result<Generation, Refused> {
        let count = sequences.len();
        let tenant = sequences.first().map_or(TenantId::ANYONE, |s| s.tenant);
        self.admit(tenant, count, reservation, |admitted| {
            Command::Start(Start {
                request: admitted.request,
                sequences,
                events: admitted.events,
                places: admitted.places,
                backlogs: admitted.backlogs,
                reservation: admitted.reservation,
            })
        })
    }

    /// Has a program answer a request: a generation of one sequence, whose tokens come as
    /// [parts of an answer](crate::batching::Event::Emitted).
    pub fn run(&self, task: Task, reservation: Option<Reservation>) -> Result<Generation, Refused> {
        self.admit(task.tenant, 1, reservation, |admitted| {
            Command::Run(StartRun {
                request: admitted.request,
                task: Box::new(task),
                events: admitted.events,
                backlog: admitted.backlogs.into_iter().next().unwrap_or_default(),
                places: admitted.places,
                reservation: admitted.reservation,
            })
        })
    }

    /// Takes places in the queue, and tells the driver.
    fn admit(
        &self,
        tenant: TenantId,
        count: usize,
        reservation: Option<Reservation>,
        command: impl FnOnce(Admitted) -> Command,
    ) -> Result<Generation, Refused> {
        let reason = match &*self.shared.state.borrow() {
            // While a worker is replaced, requests wait with those that it left behind.
            State::Ready | State::Restarting { .. } => None,
            State::Loading { .. } => Some("its worker is loading".to_owned()),
            State::Failed { reason } => Some(reason.clone()),
        };
        if let Some(reason) = reason {
            return Err(Refused::NotReady {
                retry_after: RETRY_AFTER,
                reason,
            });
        }
        let queue = &self.shared.queue;
        let limit = queue.limit();
        if count > limit {
            return Err(Refused::TooMany { limit });
        }
        let Some(places) = queue.take(tenant, count) else {
            return Err(Refused::QueueFull {
                retry_after: RETRY_AFTER,
            });
        };
        let (sender, events) = mpsc::unbounded_channel();
        let backlogs: Vec<Arc<Backlog>> = (0..count).map(|_| Arc::default()).collect();
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let reservation = reservation.map(Arc::new);
        if let Some(reservation) = &reservation {
            reservation.begin();
        }
        let command = command(Admitted {
            request,
            events: sender,
            places,
            backlogs: backlogs.clone(),
            reservation,
        });
        if self.commands.send(command).is_err() {
            let reason = "the gateway is shutting down".to_owned();
            return Err(Refused::NotReady {
                retry_after: RETRY_AFTER,
                reason,
            });
        }
        Ok(Generation::new(
            request,
            backlogs,
            events,
            self.commands.clone(),
        ))
    }
}

/// What a request has of the driver once it is admitted.
struct Admitted {
    request: u64,
    events: mpsc::UnboundedSender<(usize, Event)>,
    places: Places,
    /// One of each sequence.
    backlogs: Vec<Arc<Backlog>>,
    reservation: Option<Arc<Reservation>>,
}
