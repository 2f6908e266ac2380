//! The model's vocabulary, for grammars and the code of tenants. Nothing else in the worker knows of text.

use std::fs::File;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use realm_shared::tokenizer::Tokenizer;
use realm_shared::wire::Fault;

use super::grammar::Grammars;
use super::{Failure, code};
use crate::embedded;
use crate::engine::ModelSource;

/// Read when the first program or grammar arrives: most workers never need it.
pub struct Vocabulary {
    source: Source,
    read: OnceLock<Result<Tokenizer, String>>,
    grammars: OnceLock<Result<Grammars, String>>,
    making: Mutex<Making>,
}

/// How far the thread is that makes what compiles grammars.
#[derive(Default)]
struct Making {
    begun: bool,
    done: bool,
    /// Of those who wait for it.
    waiting: Vec<Waker>,
}

/// Where it is. A file is opened at once, as a worker that serves can open none.
enum Source {
    Embedded,
    File(Result<File, String>),
}

impl Vocabulary {
    /// That of a model.
    pub fn of(model: &ModelSource) -> Vocabulary {
        let source = match model {
            ModelSource::Embedded => Source::Embedded,
            ModelSource::Directory(directory) => {
                let file = File::open(directory.join("tokenizer.json"));
                Source::File(file.map_err(|e| unreadable(&e)))
            }
        };
        Vocabulary {
            source,
            read: OnceLock::new(),
            grammars: OnceLock::new(),
            making: Mutex::default(),
        }
    }

    /// Reads it, unless that was done before.
    ///
    /// # Errors
    /// If the model has none that can be used.
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        let read = self.read.get_or_init(|| {
            let bytes = match &self.source {
                Source::Embedded => embedded::TOKENIZER.to_vec(),
                Source::File(file) => {
                    let file = file.as_ref().map_err(String::clone)?;
                    code::read(file).map_err(|e| unreadable(&e))?
                }
            };
            Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string())
        });
        usable(read)
    }

    /// What compiles grammars for it. That is made when it is asked for first, which takes a second for
    /// a large vocabulary.
    ///
    /// # Errors
    /// If the model has no vocabulary that can be used.
    pub(super) fn grammars(&self) -> Result<&Grammars, Failure> {
        let tokenizer = self.tokenizer()?;
        usable(self.grammars.get_or_init(|| Grammars::of(tokenizer)))
    }

    /// Resolves when [`grammars`](Self::grammars) takes no time. What it needs is made by a thread of
    /// its own: nobody in the lanes is to wait for that, and nobody on a busy machine for the slow lane.
    pub(super) async fn prepare_grammars(self: &Arc<Self>) {
        poll_fn(|context| {
            let mut making = self.making();
            if making.done || self.grammars.get().is_some() {
                return Poll::Ready(());
            }
            making.waiting.push(context.waker().clone());
            if !std::mem::replace(&mut making.begun, true) {
                let vocabulary = self.clone();
                let thread = std::thread::Builder::new().name("grammars".into());
                let body = move || {
                    // Whoever uses them hears what is wrong.
                    let _ = vocabulary.grammars();
                    let mut making = vocabulary.making();
                    making.done = true;
                    let waiting = std::mem::take(&mut making.waiting);
                    drop(making);
                    waiting.into_iter().for_each(Waker::wake);
                };
                if thread.spawn(body).is_err() {
                    // Then whoever uses them makes them.
                    making.done = true;
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await
    }

    fn making(&self) -> MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreadable(error: &std::io::Error) -> String {
    format!("tokenizer.json of the model cannot be read: {error}")
}

fn usable<T>(made: &Result<T, String>) -> Result<&T, Failure> {
    let made = made.as_ref();
    made.map_err(|message| Failure::new(Fault::Unusable, message.as_str()))
}
