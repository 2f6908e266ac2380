//! `chat_template_kwargs` and `reasoning_effort`: what a chat template is told beside messages and tools.

use serde_json::{Map, Value};

use super::body;
use super::error::ApiError;
use super::fields::Fields;
use crate::text::ChatTemplate;

/// vLLM's name for it, which other servers have taken over.
const NAME: &str = "chat_template_kwargs";
/// Most bytes of them, as JSON.
const MAX_BYTES: usize = 64 << 10;
/// What templates of models that think before they answer ask, as Qwen3's does.
const THINKING: &str = "enable_thinking";

/// Takes variables for the template out of a request. `reasoning_effort` can only be none, in words that
/// templates know; what is said of that by its own name counts.
pub(super) fn take(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let given = fields.object(NAME)?.map(Fields::into_rest);
    let mut variables = given.unwrap_or_default();
    if let Some(name) = variables.keys().find(|name| ChatTemplate::sets(name)) {
        return Err(ApiError::conflict(
            format!("{NAME}.{name}"),
            format!(
                "The '{name}' of a chat template follows from the request and the model: leave it out of '{NAME}'."
            ),
        ));
    }
    let long = body::json(&variables).len();
    if long > MAX_BYTES {
        return Err(ApiError::invalid(
            NAME,
            format!("at most {MAX_BYTES} bytes of JSON, but got {long}"),
        ));
    }
    match fields.take("reasoning_effort") {
        None => {}
        Some(effort) if effort == "none" => {
            variables.entry(THINKING).or_insert(Value::Bool(false));
        }
        Some(_) => {
            return Err(ApiError::unsupported(
                "reasoning_effort",
                "null or \"none\"",
            ));
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(request: Value) -> Result<Value, ApiError> {
        take(&mut Fields::of(String::new(), request)?).map(Value::Object)
    }

    #[test]
    fn no_effort_is_no_thinking_unless_that_is_said() {
        for (request, expected) in [
            (json!({}), json!({})),
            (json!({"chat_template_kwargs": null}), json!({})),
            (
                json!({"chat_template_kwargs": {"a": [null, {"b": 1}]}}),
                json!({"a": [null, {"b": 1}]}),
            ),
            (
                json!({"reasoning_effort": "none"}),
                json!({"enable_thinking": false}),
            ),
            (
                json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
                json!({"enable_thinking": true}),
            ),
            (
                json!({"reasoning_effort": "none", "chat_template_kwargs": {"documents": []}}),
                json!({"documents": [], "enable_thinking": false}),
            ),
        ] {
            assert_eq!(read(request), Ok(expected));
        }
    }

    #[test]
    fn faults_name_their_parameter() {
        let long = json!({"chat_template_kwargs": {"a": "x".repeat(MAX_BYTES)}});
        for (request, expected) in [
            (
                json!({"chat_template_kwargs": [1]}),
                "Invalid type for 'chat_template_kwargs': expected an object, but got an array.",
            ),
            (
                long,
                "Invalid 'chat_template_kwargs': expected at most 65536 bytes of JSON, but got 65544.",
            ),
            (
                json!({"reasoning_effort": "low"}),
                "Unsupported value for 'reasoning_effort': this server accepts only null or \"none\".",
            ),
        ] {
            assert_eq!(read(request).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_templates_have_already_is_nobodys_to_say() {
        for name in [
            "messages",
            "tools",
            "add_generation_prompt",
            "bos_token",
            "eos_token",
            "pad_token",
            "unk_token",
        ] {
            let error = read(json!({"chat_template_kwargs": {"a": 1, name: null}})).unwrap_err();
            let error: Value = serde_json::from_slice(&error.to_json()).expect("JSON");
            assert_eq!(
                error["error"]["param"],
                format!("chat_template_kwargs.{name}")
            );
            assert_eq!(error["error"]["code"], "invalid_value");
        }
    }
}
