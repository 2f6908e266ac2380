//! Grammars: what the text of a sequence can be kept to.

use serde::{Deserialize, Serialize};

/// Longest text of a grammar, in bytes.
pub const MAX_GRAMMAR: usize = 64 << 10;

/// A grammar, in one of the languages that grammars are written in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grammar {
    /// JSON that this schema allows.
    JsonSchema(String),
    /// What this regular expression matches as a whole.
    Regex(String),
    /// What this context-free grammar describes, in a variant of Lark.
    Lark(String),
}

impl Grammar {
    /// As it is written.
    pub fn text(&self) -> &str {
        let (Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text)) = self;
        text
    }
}
