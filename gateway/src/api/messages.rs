//! The messages of a chat.

use serde::Serialize;
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::unsupported::{ASSISTANT_MESSAGE, refuse};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Instructions. OpenAI's newer name `developer` means the same; templates know this one.
    System,
    User,
    Assistant,
}

/// One message, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
}

/// Reads `messages`.
pub(super) fn take(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    match fields.required("messages")? {
        Value::Array(list) if list.is_empty() => {
            Err(ApiError::invalid("messages", "at least one message"))
        }
        Value::Array(list) => list
            .into_iter()
            .enumerate()
            .map(|(i, value)| message(Fields::of(format!("messages[{i}]"), value)?))
            .collect(),
        other => Err(ApiError::wrong_type(
            "messages",
            "an array of objects",
            &other,
        )),
    }
}

fn message(mut fields: Fields) -> Result<Message, ApiError> {
    let role = match fields.required("role")? {
        Value::String(role) => match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "function" => {
                return Err(ApiError::unsupported(
                    fields.path("role"),
                    "the roles system, developer, user and assistant, as it offers no tools",
                ));
            }
            _ => {
                return Err(ApiError::invalid(
                    fields.path("role"),
                    "one of system, developer, user and assistant",
                ));
            }
        },
        other => {
            return Err(ApiError::wrong_type(
                fields.path("role"),
                "a string",
                &other,
            ));
        }
    };
    if role == Role::Assistant {
        refuse(&mut fields, ASSISTANT_MESSAGE)?;
    }
    let name = fields.string("name")?;
    let content = content(&mut fields)?;
    fields.finish()?;
    Ok(Message {
        role,
        content,
        name,
    })
}

/// `content`: a string, or text parts, which are joined by line breaks.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let path = fields.path("content");
    let parts = match fields.required("content")? {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if parts.is_empty() => {
            return Err(ApiError::invalid(path, "at least one part"));
        }
        Value::Array(parts) => parts,
        other => {
            return Err(ApiError::wrong_type(
                path,
                "a string or an array of text parts",
                &other,
            ));
        }
    };
    let texts: Vec<String> = parts
        .into_iter()
        .enumerate()
        .map(|(i, part)| text_part(Fields::of(format!("{path}[{i}]"), part)?))
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

fn text_part(mut part: Fields) -> Result<String, ApiError> {
    let path = part.path("type");
    match part.required("type")? {
        Value::String(kind) if kind == "text" => {}
        Value::String(_) => return Err(ApiError::unsupported(path, "parts of type \"text\"")),
        other => return Err(ApiError::wrong_type(path, "a string", &other)),
    }
    let text = part.string("text")?;
    let text = text.ok_or_else(|| ApiError::missing(part.path("text")))?;
    part.finish()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: Value) -> Result<Vec<Message>, ApiError> {
        let mut fields = Fields::of(String::new(), json!({ "messages": messages }))?;
        take(&mut fields)
    }

    #[test]
    fn roles_and_contents_become_what_templates_know() {
        let messages = read(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "", "refusal": null, "tool_calls": [], "annotations": []},
        ]));
        assert_eq!(
            serde_json::to_value(messages.expect("valid")).expect("serializes"),
            json!([{"role": "system", "content": "Be brief."},
                   {"role": "user", "content": "a\nb", "name": "ann"},
                   {"role": "assistant", "content": ""}])
        );
    }

    #[test]
    fn faults_are_located() {
        let user = |content: Value| json!([{"role": "user", "content": "x"}, {"role": "user", "content": content}]);
        for (messages, expected) in [
            (
                json!([]),
                "Invalid 'messages': expected at least one message.",
            ),
            (
                json!("hi"),
                "Invalid type for 'messages': expected an array of objects, but got a string.",
            ),
            (
                json!(["hi"]),
                "Invalid type for 'messages[0]': expected an object, but got a string.",
            ),
            (
                json!([{"content": "x"}]),
                "Missing required parameter: 'messages[0].role'.",
            ),
            (
                json!([{"role": "user"}]),
                "Missing required parameter: 'messages[0].content'.",
            ),
            (
                json!([{"role": "king", "content": "x"}]),
                "Invalid 'messages[0].role': expected one of system, developer, user and assistant.",
            ),
            (
                json!([{"role": "tool", "content": "x", "tool_call_id": "1"}]),
                "Unsupported value for 'messages[0].role': this server accepts only the roles system, developer, user and assistant, as it offers no tools.",
            ),
            (
                json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
                "Unsupported value for 'messages[0].tool_calls': this server accepts only null or an empty list.",
            ),
            (
                json!([{"role": "user", "content": "x", "tool_calls": []}]),
                "Unrecognized request argument supplied: messages[0].tool_calls",
            ),
            (
                user(json!(1)),
                "Invalid type for 'messages[1].content': expected a string or an array of text parts, but got an integer.",
            ),
            (
                user(json!([])),
                "Invalid 'messages[1].content': expected at least one part.",
            ),
            (
                user(json!(["x"])),
                "Invalid type for 'messages[1].content[0]': expected an object, but got a string.",
            ),
            (
                user(json!([{"type": "image_url", "image_url": {}}])),
                "Unsupported value for 'messages[1].content[0].type': this server accepts only parts of type \"text\".",
            ),
            (
                user(json!([{"type": "text"}])),
                "Missing required parameter: 'messages[1].content[0].text'.",
            ),
            (
                user(json!([{"type": "text", "text": "x", "y": 1}])),
                "Unrecognized request argument supplied: messages[1].content[0].y",
            ),
        ] {
            assert_eq!(read(messages).unwrap_err().to_string(), expected);
        }
    }
}
