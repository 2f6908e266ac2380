//! The registry of served models, and how one version of a model takes the place of another.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use realm_shared::control::ModelInfo;
use serde::{Deserialize, Serialize};

use super::{LoadError, Model, Shared, State};
use crate::config::{ModelSource, ModelSpec, Workers};

/// All served models, the default one first. The names stay; the version behind a name may be
/// [swapped](Models::swap).
#[derive(Debug, Clone)]
pub struct Models {
    entries: Arc<[Entry]>,
    settings: Arc<Workers>,
}

/// One name.
#[derive(Debug)]
struct Entry {
    name: String,
    versions: RwLock<Versions>,
    /// Held for as long as a swap takes.
    swap: tokio::sync::Mutex<()>,
}

/// The versions behind a name. The registry keeps only the served one loaded: an incoming one is
/// kept by the swap that waits for it, a draining one by its requests.
#[derive(Debug)]
struct Versions {
    serving: Arc<Model>,
    incoming: Weak<Shared>,
    draining: Vec<Weak<Shared>>,
}

/// Why a model was not swapped. The version before goes on serving.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SwapError {
    /// Nothing is served under that name.
    #[error("no model is served as `{0}`")]
    Unknown(String),
    /// One at a time.
    #[error("another swap of `{0}` is under way: wait until it is done, or end it")]
    Busy(String),
    /// There is nothing to swap yet.
    #[error("`{0}` is still being loaded for the first time: wait until it is ready")]
    Loading(String),
    /// The new version does not work.
    #[error("the new version cannot be served, and the one before stays: {0}")]
    Load(#[from] LoadError),
}

/// How one version of a model stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// A directory, or `embedded`.
    pub source: String,
    /// When it was added, in seconds since 1970.
    pub created: u64,
    /// How its worker is.
    #[serde(flatten)]
    pub state: State,
    /// Its sequences that run or wait.
    pub live_sequences: usize,
    /// What the worker that was ready last said of the model.
    pub info: Option<ModelInfo>,
}

/// How a model stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// The name that requests ask for.
    pub name: String,
    /// The version that new requests get.
    #[serde(flatten)]
    pub serving: Version,
    /// The one that is being loaded to take its place.
    pub incoming: Option<Version>,
    /// Those that it replaced and that still finish requests, the oldest first.
    pub draining: Vec<Version>,
}

impl Models {
    /// In the order given; names must differ. Versions to come run with the same `settings`.
    pub fn new(models: Vec<Arc<Model>>, settings: Arc<Workers>) -> Self {
        let entries = models.into_iter().map(|serving| Entry {
            name: serving.name.clone(),
            versions: RwLock::new(Versions {
                serving,
                incoming: Weak::new(),
                draining: Vec::new(),
            }),
            swap: tokio::sync::Mutex::default(),
        });
        Models {
            entries: entries.collect(),
            settings,
        }
    }

    /// What a new request for that name gets. It must keep to this version until its end.
    pub fn get(&self, name: &str) -> Option<Arc<Model>> {
        Some(self.entry(name)?.read().serving.clone())
    }

    /// The same of each name.
    pub fn all(&self) -> Vec<Arc<Model>> {
        let models = self.entries.iter().map(|e| e.read().serving.clone());
        models.collect()
    }

    /// How all versions of all models stand.
    pub fn status(&self) -> Vec<ModelStatus> {
        self.entries.iter().map(Entry::status).collect()
    }

    /// Loads a version of the model from `source` (by default from where it came last time) beside
    /// the one that is served, waits until it has produced a token, and hands new requests to it.
    /// What runs on the version before ends there; with the last of it, that version is unloaded.
    ///
    /// An error, or dropping the future, leaves everything as it was.
    pub async fn swap(
        &self,
        name: &str,
        source: Option<ModelSource>,
    ) -> Result<ModelStatus, SwapError> {
        let entry = self
            .entry(name)
            .ok_or_else(|| SwapError::Unknown(name.to_owned()))?;
        let _turn = entry
            .swap
            .try_lock()
            .map_err(|_| SwapError::Busy(name.to_owned()))?;
        let source = {
            let versions = entry.read();
            let serving = &versions.serving;
            if matches!(*serving.state().borrow(), State::Loading { .. }) {
                return Err(SwapError::Loading(name.to_owned()));
            }
            source.unwrap_or_else(|| serving.source().clone())
        };
        tracing::info!(model = name, %source, "loading another version");
        let spec = ModelSpec {
            name: name.to_owned(),
            source,
            // Whoever started a worker to attach has not started another one: this one is ours.
            attach: None,
        };
        let new = Model::load(spec, self.settings.clone()).await?;
        entry.write().incoming = Arc::downgrade(&new.shared);
        new.ready().await?;
        let source = new.source().to_string();
        entry.write().replace(new);
        tracing::info!(
            model = name,
            source,
            "new requests go to the version just loaded"
        );
        Ok(entry.status())
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }
}

impl Entry {
    fn read(&self) -> RwLockReadGuard<'_, Versions> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Versions> {
        self.versions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> ModelStatus {
        let versions = self.read();
        let loaded = |version: &Weak<Shared>| Some(version.upgrade()?.status());
        ModelStatus {
            name: self.name.clone(),
            serving: versions.serving.shared.status(),
            incoming: loaded(&versions.incoming),
            draining: versions.draining.iter().filter_map(loaded).collect(),
        }
    }
}

impl Versions {
    fn replace(&mut self, new: Arc<Model>) {
        let old = std::mem::replace(&mut self.serving, new);
        self.incoming = Weak::new();
        self.draining.retain(|version| version.strong_count() > 0);
        self.draining.push(Arc::downgrade(&old.shared));
    }
}

impl Shared {
    fn status(&self) -> Version {
        Version {
            source: self.source.to_string(),
            created: self.created,
            state: self.state.borrow().clone(),
            live_sequences: self.queue.len(),
            info: self.info(),
        }
    }
}
