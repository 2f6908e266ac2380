//! Programs of tenants: components that they sent, and what was compiled of them.
//!
//! [`Programs`] is what requests ask. Behind it are the folder (`store`), the compiler (`compiler`) with its
//! processes (`process`), and what was used lately (`loaded`).

mod builtin;
mod compiler;
mod image;
mod loaded;
mod name;
mod process;
mod quarantine;
mod store;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use compiler::Compiled;
pub use compiler::{CompileError, CompileLimits, Compiler, Interfaces};
use image::Image;
use loaded::Loaded;
pub use name::{BadName, ProgramName};
pub use quarantine::{Quarantine, Quarantined};
pub use store::{ProgramRecord, StoreError};
use store::{Put, Store};

use crate::digest::Digest;

/// Components that are compiled at once; each takes a core.
const AT_ONCE: usize = 2;
/// How often a program is looked up anew that is replaced while it is loaded.
const TRIES: usize = 3;

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It steers how the tokens of a sequence are chosen.
    Processor,
    /// It answers requests, and is called as a model.
    Program,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Kind::Processor => "processor",
            Kind::Program => "program",
        })
    }
}

/// A program that is ready for workers. A request keeps the one that it began with.
#[derive(Debug)]
pub struct Program {
    /// What its tenant calls it.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// The model that it is made for, if it is for one.
    pub base: Option<String>,
    /// SHA-256 of the component.
    pub digest: [u8; 32],
    /// Sealed memory with what was compiled of it, by us.
    pub compiled: OwnedFd,
    /// Whose it is, by name.
    pub tenant: String,
    /// Where it is written down if it crashes workers.
    pub quarantine: Quarantine,
}

impl Program {
    fn new(tenant: &str, record: ProgramRecord, image: Image, quarantine: Quarantine) -> Arc<Self> {
        Arc::new(Program {
            tenant: tenant.to_owned(),
            quarantine,
            name: record.name.to_string(),
            kind: record.kind,
            base: record.base,
            digest: record.sha256.0,
            compiled: image.into_fd(),
        })
    }

    /// Has this version of it refused from now on, under whatever name its tenant stores it.
    pub fn put_in_quarantine(&self) {
        let Program { tenant, name, .. } = self;
        let digest = Digest(self.digest);
        tracing::error!(
            tenant,
            program = name,
            digest = digest.hex(),
            "a program crashes workers: this version of it is refused until that is lifted"
        );
        self.quarantine.add(tenant, name, digest);
    }

    /// Whether this version is refused.
    pub fn is_quarantined(&self) -> bool {
        self.quarantine.holds(&self.tenant, Digest(self.digest))
    }

    /// Whether this is what is stored now.
    fn is_of(&self, record: &ProgramRecord) -> bool {
        self.digest == record.sha256.0 && self.base == record.base
    }
}

/// What a tenant sends to be stored.
#[derive(Debug, Clone)]
pub struct Push {
    /// What it is to be called.
    pub name: ProgramName,
    /// The model that it is made for, if it is for one.
    pub base: Option<String>,
    /// A component.
    pub component: Bytes,
}

/// What a component turned out to be.
#[derive(Debug)]
pub struct Verdict {
    /// It, ready for workers.
    pub program: Program,
    /// What it imports and exports.
    pub interfaces: Interfaces,
    /// Bytes of code that were made of it.
    pub compiled_bytes: u64,
}

/// Something cannot be had of programs.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There are none.
    #[error(
        "this server keeps no programs: whoever runs it turns them on with `realm serve --programs DIR`, or with \
         `programs` in its config file"
    )]
    Off,
    /// The tenant has none of that name.
    #[error("the program `{0}` does not exist")]
    NotFound(String),
    /// The version of it that is stored crashed workers.
    #[error(
        "the version of the program `{0}` that is stored crashed the worker again and again, and is not run any \
         more: push another version of it, or have whoever runs this server lift that"
    )]
    Quarantined(ProgramName),
    /// The component is longer than this many bytes.
    #[error("the component is longer than {0} bytes")]
    TooLarge(usize),
    /// The tenant has as many programs as it may.
    #[error(
        "there are {0} programs already, as many as this tenant may store: remove one, or replace one by its name"
    )]
    TooMany(usize),
    /// The component was not compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a record names is not there.
    #[error("the component of the program `{0}` is not in the store any more: push it again")]
    Lost(ProgramName),
    /// Our own fault.
    #[error("a task of the store of programs ended early")]
    Task,
}

/// The programs of all tenants; a handle.
#[derive(Debug, Clone)]
pub struct Programs(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    compiler: Compiler,
    loaded: Loaded,
    quarantine: Quarantine,
    most_bytes: usize,
    compiling: Semaphore,
    /// By tenant: held by what compiles for it. So one that sends much waits for itself. Tenants
    /// are made by hand, and stay few.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Programs {
    /// None at all.
    pub fn off() -> Self {
        Programs(None)
    }

    /// Those in a folder, which is made if it is not there. `most_bytes` is how long a component may
    /// be.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn open(dir: &Path, compiler: Compiler, most_bytes: usize) -> Result<Self, StoreError> {
        Ok(Programs(Some(Arc::new(Inner {
            store: Arc::new(Store::open(dir)?),
            compiler,
            loaded: Loaded::default(),
            quarantine: Quarantine::default(),
            most_bytes,
            compiling: Semaphore::new(AT_ONCE),
            turns: Mutex::default(),
        }))))
    }

    /// Longest component in bytes.
    ///
    /// # Errors
    /// If there are no programs here.
    pub fn most_bytes(&self) -> Result<usize, ProgramError> {
        Ok(self.inner()?.most_bytes)
    }

    /// A tenant's program as it is stored now, ready for workers; or the one that everybody has, if the
    /// tenant has stored none of its name.
    ///
    /// # Errors
    /// If there is none of that name, it is in quarantine, or it cannot be loaded.
    pub async fn find(&self, tenant: &str, name: &str) -> Result<Arc<Program>, ProgramError> {
        let inner = self.inner()?;
        for _ in 0..TRIES {
            let record = match inner.record(tenant, name).await {
                Err(ProgramError::NotFound(missing)) => {
                    let everybodys = builtin::chat().filter(|record| record.name.as_str() == name);
                    let record = everybodys.ok_or(ProgramError::NotFound(missing))?;
                    record.clone()
                }
                record => record?,
            };
            if inner.quarantine.holds(tenant, record.sha256) {
                return Err(ProgramError::Quarantined(record.name));
            }
            let place = inner.loaded.place(tenant, &record.name);
            let mut place = place.lock().await;
            if let Some(program) = place.as_ref().filter(|program| program.is_of(&record)) {
                return Ok(program.clone());
            }
            // Its component may go as it is replaced or removed, by another gateway too.
            let Some(image) = inner.load(tenant, &record.sha256).await? else {
                continue;
            };
            inner.loaded.weigh(tenant, &record.name, image.bytes());
            let program = Program::new(tenant, record, image, inner.quarantine.clone());
            *place = Some(program.clone());
            return Ok(program);
        }
        Err(ProgramError::Lost(parse(name)?))
    }

    /// Compiles a component and stores it under its name, in the place of what is there. A tenant
    /// may have `most` programs.
    ///
    /// # Errors
    /// If it cannot be compiled or stored; then what was there stays.
    pub async fn push(
        &self,
        tenant: &str,
        most: usize,
        push: Push,
    ) -> Result<ProgramRecord, ProgramError> {
        let inner = self.inner()?;
        let Push {
            name,
            base,
            component,
        } = push;
        if component.len() > inner.most_bytes {
            return Err(ProgramError::TooLarge(inner.most_bytes));
        }
        // To be told before it is compiled, and once more when it is stored.
        let stored = self.list(tenant).await?;
        if stored.len() >= most && stored.iter().all(|record| record.name != name) {
            return Err(ProgramError::TooMany(most));
        }
        // Also where another tenant has the same: how long it takes must not tell.
        let compiled = inner.compile(tenant, component.clone()).await?;
        let (record, image, put) = {
            let tenant = tenant.to_owned();
            inner.blocking(move |store| {
                let record = ProgramRecord {
                    name,
                    kind: compiled.kind,
                    base,
                    sha256: Digest::of(&component),
                    bytes: component.len() as u64,
                    created: Timestamp::now(),
                };
                let put = store.put(&tenant, most, &record, &component, &compiled)?;
                Ok((record, compiled.image, put))
            })
        }
        .await?;
        if put == Put::Full {
            return Err(ProgramError::TooMany(most));
        }
        let place = inner.loaded.place(tenant, &record.name);
        inner.loaded.weigh(tenant, &record.name, image.bytes());
        let program = Program::new(tenant, record.clone(), image, inner.quarantine.clone());
        *place.lock().await = Some(program);
        Ok(record)
    }

    /// Compiles a component, and stores nothing. `name` is what it is called meanwhile.
    ///
    /// # Errors
    /// If it cannot be compiled.
    pub async fn check(
        compiler: &Compiler,
        name: &str,
        component: Bytes,
    ) -> Result<Verdict, CompileError> {
        let digest = Digest::of(&component);
        let compiled = compiler.compile(component).await?;
        Ok(Verdict {
            interfaces: compiled.interfaces,
            compiled_bytes: compiled.image.bytes(),
            program: Program {
                name: name.to_owned(),
                kind: compiled.kind,
                base: None,
                digest: digest.0,
                compiled: compiled.image.into_fd(),
                tenant: String::new(),
                quarantine: Quarantine::default(),
            },
        })
    }

    /// What a tenant has stored, by name.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub async fn list(&self, tenant: &str) -> Result<Vec<ProgramRecord>, ProgramError> {
        let tenant = tenant.to_owned();
        let inner = self.inner()?;
        inner.blocking(move |store| store.records(&tenant)).await
    }

    /// What a tenant can use, by name: what it has stored, and what everybody has.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub async fn usable(&self, tenant: &str) -> Result<Vec<ProgramRecord>, ProgramError> {
        let mut records = self.list(tenant).await?;
        if let Some(record) = builtin::chat()
            && let Err(place) = records.binary_search_by(|other| other.name.cmp(&record.name))
        {
            records.insert(place, record.clone());
        }
        Ok(records)
    }

    /// What a tenant has stored under a name.
    ///
    /// # Errors
    /// If that is nothing.
    pub async fn get(&self, tenant: &str, name: &str) -> Result<ProgramRecord, ProgramError> {
        self.inner()?.record(tenant, name).await
    }

    /// The versions that are not run any more, of all tenants.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        let inner = self.0.as_deref();
        inner.map_or_else(Vec::new, |inner| inner.quarantine.list())
    }

    /// Has a version of a tenant's program run again, if it is not run any more.
    pub fn lift(&self, tenant: &str, version: Digest) -> Option<Quarantined> {
        self.0.as_deref()?.quarantine.lift(tenant, version)
    }

    /// Removes a program. Requests that use it go on.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot be removed.
    pub async fn remove(&self, tenant: &str, name: &str) -> Result<ProgramName, ProgramError> {
        let (inner, name) = (self.inner()?, parse(name)?);
        let (of, gone) = (tenant.to_owned(), name.clone());
        if !inner
            .blocking(move |store| store.remove(&of, &gone))
            .await?
        {
            return Err(ProgramError::NotFound(name.to_string()));
        }
        inner.loaded.forget(tenant, &name);
        Ok(name)
    }

    fn inner(&self) -> Result<&Inner, ProgramError> {
        self.0.as_deref().ok_or(ProgramError::Off)
    }
}

impl Inner {
    async fn record(&self, tenant: &str, name: &str) -> Result<ProgramRecord, ProgramError> {
        let (tenant, name) = (tenant.to_owned(), parse(name)?);
        let wanted = name.clone();
        let record = self.blocking(move |store| store.record(&tenant, &name));
        let missing = || ProgramError::NotFound(wanted.to_string());
        record.await?.ok_or_else(missing)
    }

    /// What was compiled of a component, now if need be. `None`: the component is gone.
    async fn load(&self, tenant: &str, digest: &Digest) -> Result<Option<Image>, ProgramError> {
        let (digest, fingerprint) = (*digest, self.compiler.fingerprint().await?);
        let kept = self.blocking(move |store| store.compiled(&digest, &fingerprint));
        if let Some(image) = kept.await? {
            return Ok(Some(image));
        }
        let component = self.blocking(move |store| store.component(&digest));
        let component = match component.await? {
            Some(component) => component.into(),
            None if Some(&digest) == builtin::chat().map(|record| &record.sha256) => {
                Bytes::from_static(builtin::CHAT)
            }
            None => return Ok(None),
        };
        let compiled = self.compile(tenant, component).await?;
        let keep = self.blocking(move |store| {
            if let Err(error) = store.keep(&digest, &compiled) {
                // It runs without, and is compiled again another time.
                tracing::warn!(%error, "what was compiled cannot be kept");
            }
            Ok(compiled.image)
        });
        keep.await.map(Some)
    }

    async fn compile(&self, tenant: &str, component: Bytes) -> Result<Compiled, ProgramError> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(tenant.to_owned()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let _place = self.compiling.acquire().await;
        Ok(self.compiler.compile(component).await?)
    }

    /// Works on the folder where no request waits for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ProgramError> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        Ok(done.map_err(|_| ProgramError::Task)??)
    }
}

/// What is no name names nothing.
fn parse(name: &str) -> Result<ProgramName, ProgramError> {
    name.parse()
        .map_err(|BadName| ProgramError::NotFound(name.to_owned()))
}
