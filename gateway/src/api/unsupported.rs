//! Parameters of the OpenAI API that this server does not honour. Each is accepted where it asks
//! for what happens anyway and refused where it asks for more; none is dropped silently.

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;

/// A parameter, the values that change nothing, and those values in words.
pub(super) type Unsupported = (&'static str, fn(&Value) -> bool, &'static str);

fn nothing(_: &Value) -> bool {
    false
}

fn empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn off(value: &Value) -> bool {
    value == false
}

fn text_only(value: &Value) -> bool {
    matches!(value.as_array().map(Vec::as_slice), Some([one]) if one == "text")
}

fn no_choice(value: &Value) -> bool {
    value == "none" || value == "auto"
}

const NULL: &str = "null";
const EMPTY: &str = "null or an empty list";
const OFF: &str = "null or false";

/// Of `/v1/chat/completions`.
pub(super) const CHAT: &[Unsupported] = &[
    ("audio", nothing, NULL),
    ("function_call", no_choice, "null, \"none\" or \"auto\""),
    ("functions", empty_list, EMPTY),
    ("modalities", text_only, "null or [\"text\"]"),
    ("prediction", nothing, NULL),
    ("prompt_cache_options", nothing, NULL),
    (
        "prompt_cache_retention",
        |v| v == "in_memory",
        "null or \"in_memory\"",
    ),
    ("store", off, OFF),
    ("verbosity", |v| v == "medium", "null or \"medium\""),
    ("web_search_options", nothing, NULL),
];

/// Of `/v1/completions`.
pub(super) const COMPLETIONS: &[Unsupported] = &[("suffix", nothing, NULL)];

/// Of `stream_options`.
pub(super) const STREAM_OPTIONS: &[Unsupported] = &[("include_obfuscation", off, OFF)];

/// Of a message of the assistant, as clients send answers back.
pub(super) const ASSISTANT_MESSAGE: &[Unsupported] = &[
    ("annotations", empty_list, EMPTY),
    ("audio", nothing, NULL),
    ("function_call", nothing, NULL),
    ("refusal", nothing, NULL),
];

/// Takes the parameters of `table` out and refuses what asks for more than happens anyway.
pub(super) fn refuse(fields: &mut Fields, table: &[Unsupported]) -> Result<(), ApiError> {
    for (name, changes_nothing, accepted) in table {
        match fields.take(name) {
            Some(value) if !changes_nothing(&value) => {
                return Err(ApiError::unsupported(fields.path(name), accepted));
            }
            _ => {}
        }
    }
    Ok(())
}
