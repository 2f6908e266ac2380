//! The text files of the built-in model. Its weights are built into the worker.

use crate::text::TextFiles;

/// What the gateway needs of the model in `models/tiny`.
pub(crate) fn text_files() -> TextFiles<'static> {
    TextFiles {
        tokenizer_json: include_bytes!("../../models/tiny/tokenizer.json"),
        tokenizer_config: Some(include_bytes!("../../models/tiny/tokenizer_config.json")),
        generation_config: Some(include_bytes!("../../models/tiny/generation_config.json")),
        config: include_bytes!("../../models/tiny/config.json"),
        chat_template: None,
    }
}
