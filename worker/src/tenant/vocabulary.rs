//! The model's vocabulary, for the code of tenants. Nothing else in the worker knows of text.

use std::sync::OnceLock;

use realm_shared::tokenizer::Tokenizer;
use realm_shared::wire::Fault;

use super::Failure;
use super::grammar::Grammars;
use crate::embedded;
use crate::engine::ModelSource;

/// Read when the first program arrives: most workers never need it.
pub struct Vocabulary {
    source: ModelSource,
    read: OnceLock<Result<Tokenizer, String>>,
    grammars: OnceLock<Result<Grammars, String>>,
}

impl Vocabulary {
    /// That of a model.
    pub fn of(source: ModelSource) -> Vocabulary {
        Vocabulary {
            source,
            read: OnceLock::new(),
            grammars: OnceLock::new(),
        }
    }

    /// Reads it, unless that was done before.
    ///
    /// # Errors
    /// If the model has none that can be used.
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        let read = self.read.get_or_init(|| {
            let bytes = match &self.source {
                ModelSource::Embedded => embedded::TOKENIZER.to_vec(),
                ModelSource::Directory(directory) => {
                    let path = directory.join("tokenizer.json");
                    std::fs::read(&path)
                        .map_err(|e| format!("tokenizer.json of the model cannot be read: {e}"))?
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
}

fn usable<T>(made: &Result<T, String>) -> Result<&T, Failure> {
    let made = made.as_ref();
    made.map_err(|message| Failure::new(Fault::Unusable, message.as_str()))
}
