//! Served models and the workers behind them.
//!
//! Each model has one [driver](driver) task that owns its scheduler and its current worker
//! incarnation. Requests reach the driver through a channel and get a [`Generation`] back; the
//! driver turns plans of the scheduler into tensors in shared memory ([`link`]), and results into
//! events. A worker that ends is replaced by a new [incarnation](process), and the scheduler goes
//! on with the tokens it has.

mod driver;
mod generation;
mod link;
mod process;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use realm_shared::control::ModelInfo;
use tokio::sync::{mpsc, watch};

pub use generation::{Generation, Refused};
pub use process::{WorkerError, default_binary};

use crate::batching::Sequence;
use crate::config::{ModelSpec, Workers};
use crate::text::Text;
use generation::{Command, Places, Start};

/// Retry hint while a worker starts or the queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How a model's worker is.
#[derive(Debug, Clone, PartialEq)]
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
}

/// A served model.
#[derive(Debug)]
pub struct Model {
    /// The name that requests ask for.
    pub name: String,
    /// Its tokenizer, template and defaults.
    pub text: Arc<Text>,
    /// When it was added, in seconds since 1970.
    pub created: u64,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    next_request: AtomicU64,
    max_queue: usize,
}

/// What a model's driver and its requests share.
#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    /// Of the worker that was ready last.
    info: Mutex<Option<ModelInfo>>,
    /// Sequences running or waiting.
    live: Arc<AtomicUsize>,
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
    /// Starts the driver of a model, and through it the first worker.
    pub fn start(spec: ModelSpec, text: Arc<Text>, settings: Arc<Workers>) -> Arc<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: watch::Sender::new(State::Loading { fraction: 0.0 }),
            info: Mutex::new(None),
            live: Arc::default(),
        });
        let max_queue = settings.max_queue;
        let name = spec.name.clone();
        tokio::spawn(driver::Driver::new(spec, settings, shared.clone(), inbox).run());
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Arc::new(Model {
            name,
            text,
            created,
            shared,
            commands,
            next_request: AtomicU64::new(0),
            max_queue,
        })
    }

    /// Limits of the worker that was ready last; `None` before the first.
    pub fn limits(&self) -> Option<ModelLimits> {
        let info = self.info()?;
        Some(ModelLimits {
            vocab_size: info.vocab_size,
            max_context: info.max_context,
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

    /// Admits all sequences of a request, or none. Their ids are assigned here.
    pub fn generate(&self, sequences: Vec<Sequence>) -> Result<Generation, Refused> {
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
        let (count, limit) = (sequences.len(), self.max_queue);
        if count > limit {
            return Err(Refused::TooMany { limit });
        }
        let Some(places) = Places::take(&self.shared.live, count, limit) else {
            return Err(Refused::QueueFull {
                retry_after: RETRY_AFTER,
            });
        };
        let (sender, events) = mpsc::unbounded_channel();
        let backlogs: Vec<_> = sequences.iter().map(|_| Arc::default()).collect();
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let start = Start {
            request,
            sequences,
            events: sender,
            places,
            backlogs: backlogs.clone(),
        };
        if self.commands.send(Command::Start(start)).is_err() {
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

/// All served models, the default one first.
#[derive(Debug, Clone)]
pub struct Models(Arc<[Arc<Model>]>);

impl Models {
    /// In the order given; names must differ.
    pub fn new(models: Vec<Arc<Model>>) -> Self {
        Models(models.into())
    }

    /// The model of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Model>> {
        self.0.iter().find(|m| m.name == name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Model>] {
        &self.0
    }
}
