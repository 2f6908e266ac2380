//! Everything about a model that concerns text: its vocabulary, its chat template, the tokens
//! that end an answer, and the sampling defaults its makers chose.

mod clock;
#[cfg(test)]
mod detokenize_tests;
mod files;
mod stop;
mod template;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tokenizer_tests;

use realm_shared::tokenizer::TokenizerError;

pub use files::{Defaults, TextFiles};
pub use realm_shared::detokenize::Detokenizer;
pub use realm_shared::tokenizer::Tokenizer;
pub use stop::{Search, StopMatcher};
pub use template::{ChatTemplate, TemplateError};

/// The text side of one model.
#[derive(Debug)]
pub struct Text {
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How messages become a prompt; `None` for a model that only completes.
    pub template: Option<ChatTemplate>,
    /// Sampling values for requests that leave them out.
    pub defaults: Defaults,
    /// Tokens that end an answer; at most [`MAX_STOP_IDS`](realm_shared::wire::MAX_STOP_IDS).
    pub stop_ids: Vec<u32>,
    /// Token that begins a text, if the model knows one.
    pub bos_id: Option<u32>,
    /// Longest context that the model was made for, where its config says so.
    pub max_positions: Option<u32>,
}

/// Why the text side of a model could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file that must be there is not.
    #[error(
        "{file} is missing in {dir}; a model directory holds config.json, tokenizer.json and *.safetensors"
    )]
    Missing {
        /// Name of the file.
        file: &'static str,
        /// Where it was looked for.
        dir: String,
    },
    /// A file could not be read.
    #[error("{file} in {dir} could not be read: {source}")]
    Read {
        /// Name of the file.
        file: &'static str,
        /// Its directory.
        dir: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's contents make no sense.
    #[error("{file} cannot be used: {message}")]
    Invalid {
        /// Name of the file.
        file: &'static str,
        /// What was found, and what was expected.
        message: String,
    },
    /// The vocabulary cannot be used, or a text not be cut into it.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}
