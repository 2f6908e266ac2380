//! The messages of a chat.

use realm_shared::run;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::tools;
use super::unsupported::{ASSISTANT_MESSAGE, refuse};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Instructions. OpenAI's newer name `developer` means the same; templates know this one.
    System,
    User,
    Assistant,
    Tool,
}

/// One message, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Message {
    pub(super) role: Role,
    /// Empty where an assistant only called tools: not all templates bear `null`.
    pub(super) content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_call_id: Option<String>,
}

/// A call that an assistant made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Called,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Called {
    name: String,
    #[serde(serialize_with = "as_object")]
    arguments: String,
}

/// Templates expect an object, where it is one, and write it as JSON themselves.
fn as_object<S: Serializer>(arguments: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => object.serialize(serializer),
        _ => serializer.serialize_str(arguments),
    }
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
            "tool" => Role::Tool,
            "function" => {
                return Err(ApiError::unsupported(
                    fields.path("role"),
                    "the roles system, developer, user, assistant and tool",
                ));
            }
            _ => {
                return Err(ApiError::invalid(
                    fields.path("role"),
                    "one of system, developer, user, assistant and tool",
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
    let (mut tool_calls, mut tool_call_id) = (Vec::new(), None);
    match role {
        Role::System | Role::User => {}
        Role::Assistant => {
            refuse(&mut fields, ASSISTANT_MESSAGE)?;
            tool_calls = calls(&mut fields)?;
        }
        Role::Tool => {
            let id = fields.string("tool_call_id")?;
            let path = fields.path("tool_call_id");
            tool_call_id = Some(id.ok_or_else(|| ApiError::missing(path))?);
        }
    }
    let name = fields.string("name")?;
    let path = fields.path("content");
    let content = match fields.take("content") {
        Some(value) => content(path, value)?,
        None if tool_calls.is_empty() => return Err(ApiError::missing(path)),
        None => String::new(),
    };
    fields.finish()?;
    Ok(Message {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
    })
}

/// `tool_calls` of an assistant's message.
fn calls(fields: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let at = fields.path("tool_calls");
    match fields.take("tool_calls") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(i, value)| call(Fields::of(format!("{at}[{i}]"), value)?))
            .collect(),
        Some(other) => Err(ApiError::wrong_type(at, "an array of objects", &other)),
    }
}

fn call(mut fields: Fields) -> Result<ToolCall, ApiError> {
    let id = fields.string("id")?;
    let id = id.ok_or_else(|| ApiError::missing(fields.path("id")))?;
    let mut function = tools::function(&mut fields)?;
    fields.finish()?;
    let name = tools::named(&mut function)?;
    let arguments = function.string("arguments")?;
    let arguments = arguments.ok_or_else(|| ApiError::missing(function.path("arguments")))?;
    function.finish()?;
    Ok(ToolCall {
        id,
        kind: "function",
        function: Called { name, arguments },
    })
}

/// Refuses messages that a model cannot be sent: it calls no tools by itself.
pub(super) fn check_for_model(messages: &[Message]) -> Result<(), ApiError> {
    for (i, message) in messages.iter().enumerate() {
        if message.role == Role::Tool {
            return Err(ApiError::unsupported(
                format!("messages[{i}].role"),
                "the roles system, developer, user and assistant for a model, which calls no tools by itself: a \
                 program can",
            ));
        }
        if !message.tool_calls.is_empty() {
            return Err(ApiError::unsupported(
                format!("messages[{i}].tool_calls"),
                "null or an empty list for a model, which calls no tools by itself: a program can",
            ));
        }
    }
    Ok(())
}

/// Refuses calls without results, and results without calls.
pub(super) fn check_for_program(messages: &[Message]) -> Result<(), ApiError> {
    // Of the assistant's last message: where each call stands, and its id.
    let mut open: Vec<(String, &str)> = Vec::new();
    let mut called = false;
    for (i, message) in messages.iter().enumerate() {
        if let Some(id) = &message.tool_call_id {
            if !called {
                return Err(ApiError::conflict(
                    format!("messages[{i}].role"),
                    "A message of role 'tool' must follow the 'tool_calls' that it is a result of.",
                ));
            }
            let Some(at) = open.iter().position(|(_, open)| open == id) else {
                return Err(ApiError::invalid(
                    format!("messages[{i}].tool_call_id"),
                    "the id of one of the calls before, which has no result yet",
                ));
            };
            open.remove(at);
            continue;
        }
        all_have_results(&open)?;
        called = !message.tool_calls.is_empty();
        for (j, call) in message.tool_calls.iter().enumerate() {
            let at = format!("messages[{i}].tool_calls[{j}]");
            if open.iter().any(|(_, id)| *id == call.id) {
                let expected = "an id that no other call of the message has";
                return Err(ApiError::invalid(format!("{at}.id"), expected));
            }
            open.push((at, &call.id));
        }
    }
    all_have_results(&open)
}

fn all_have_results(open: &[(String, &str)]) -> Result<(), ApiError> {
    match open.first() {
        None => Ok(()),
        Some((at, _)) => Err(ApiError::conflict(
            at,
            format!("'{at}' has no result: a message of role 'tool' with its id must follow."),
        )),
    }
}

impl From<Message> for run::Message {
    fn from(message: Message) -> Self {
        let call = |call: ToolCall| run::ToolCall {
            id: call.id,
            name: call.function.name,
            arguments: call.function.arguments,
        };
        run::Message {
            role: match message.role {
                Role::System => run::Role::System,
                Role::User => run::Role::User,
                Role::Assistant => run::Role::Assistant,
                Role::Tool => run::Role::Tool,
            },
            content: message.content,
            tool_calls: message.tool_calls.into_iter().map(call).collect(),
            tool_call_id: message.tool_call_id,
        }
    }
}

/// `content`: a string, or text parts, which are joined by line breaks.
fn content(path: String, content: Value) -> Result<String, ApiError> {
    let parts = match content {
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
                "Invalid 'messages[0].role': expected one of system, developer, user, assistant and tool.",
            ),
            (
                json!([{"role": "function", "content": "x", "name": "f"}]),
                "Unsupported value for 'messages[0].role': this server accepts only the roles system, developer, user, assistant and tool.",
            ),
            (
                json!([{"role": "tool", "content": "x"}]),
                "Missing required parameter: 'messages[0].tool_call_id'.",
            ),
            (
                json!([{"role": "tool", "tool_call_id": "1"}]),
                "Missing required parameter: 'messages[0].content'.",
            ),
            (
                json!([{"role": "user", "content": "x", "tool_call_id": "1"}]),
                "Unrecognized request argument supplied: messages[0].tool_call_id",
            ),
            (
                json!([{"role": "assistant", "content": null, "tool_calls": []}]),
                "Missing required parameter: 'messages[0].content'.",
            ),
            (
                json!([{"role": "assistant", "tool_calls": {}}]),
                "Invalid type for 'messages[0].tool_calls': expected an array of objects, but got an object.",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{}]}]),
                "Missing required parameter: 'messages[0].tool_calls[0].id'.",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}]),
                "Unsupported value for 'messages[0].tool_calls[0].type': this server accepts only the type \"function\".",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}]),
                "Missing required parameter: 'messages[0].tool_calls[0].function.arguments'.",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
                    "function": {"name": "f", "arguments": {}}}]}]),
                "Invalid type for 'messages[0].tool_calls[0].function.arguments': expected a string, but got an object.",
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

    fn calls(ids: &[&str]) -> Value {
        let call = |id: &&str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}});
        let calls: Vec<_> = ids.iter().map(call).collect();
        json!({"role": "assistant", "content": null, "tool_calls": calls})
    }

    fn result(id: &str) -> Value {
        json!({"role": "tool", "tool_call_id": id, "content": [{"type": "text", "text": "7"}]})
    }

    #[test]
    fn calls_and_results_become_what_templates_know() {
        let mut broken = calls(&["2"]);
        broken["tool_calls"][0]["function"]["arguments"] = json!("{\"b\": ");
        let messages = json!([calls(&["1"]), result("1"), broken, result("2")]);
        let messages = read(messages).expect("valid");
        assert_eq!(check_for_program(&messages), Ok(()));
        let call = |id: &str, arguments: Value| {
            json!({"role": "assistant", "content": "", "tool_calls": [
                {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}]})
        };
        let result = |id: &str| json!({"role": "tool", "content": "7", "tool_call_id": id});
        let object = json!({"b": 1, "a": 2});
        assert_eq!(
            serde_json::to_value(&messages).expect("serializes"),
            json!([
                call("1", object),
                result("1"),
                call("2", json!("{\"b\": ")),
                result("2")
            ])
        );
        let said = run::Message::from(messages[0].clone());
        assert_eq!(said.tool_calls[0].arguments, "{\"b\": 1, \"a\": 2}");
    }

    #[test]
    fn every_call_has_its_result() {
        let hello = json!({"role": "user", "content": "hi"});
        for (messages, expected) in [
            (
                json!([calls(&["1", "2"]), result("2"), result("1"), hello]),
                None,
            ),
            (
                json!([calls(&["1"]), result("1"), calls(&["1"]), result("1")]),
                None,
            ),
            (
                json!([hello, result("1")]),
                Some(
                    "A message of role 'tool' must follow the 'tool_calls' that it is a result of.",
                ),
            ),
            (
                json!([calls(&["1"]), result("1"), hello, result("1")]),
                Some(
                    "A message of role 'tool' must follow the 'tool_calls' that it is a result of.",
                ),
            ),
            (
                json!([calls(&["1"]), result("2")]),
                Some(
                    "Invalid 'messages[1].tool_call_id': expected the id of one of the calls before, which has no result yet.",
                ),
            ),
            (
                json!([calls(&["1"]), result("1"), result("1")]),
                Some(
                    "Invalid 'messages[2].tool_call_id': expected the id of one of the calls before, which has no result yet.",
                ),
            ),
            (
                json!([calls(&["1", "1"])]),
                Some(
                    "Invalid 'messages[0].tool_calls[1].id': expected an id that no other call of the message has.",
                ),
            ),
            (
                json!([calls(&["1", "2"]), result("1"), hello]),
                Some(
                    "'messages[0].tool_calls[1]' has no result: a message of role 'tool' with its id must follow.",
                ),
            ),
            (
                json!([hello, calls(&["1"])]),
                Some(
                    "'messages[1].tool_calls[0]' has no result: a message of role 'tool' with its id must follow.",
                ),
            ),
        ] {
            let checked = check_for_program(&read(messages).expect("valid"));
            let message = checked.err().map(|error| error.to_string());
            assert_eq!(message.as_deref(), expected);
        }
    }

    #[test]
    fn a_model_is_sent_no_calls() {
        let refused = |messages| check_for_model(&read(messages).expect("valid")).unwrap_err();
        assert_eq!(
            refused(json!([result("1")])).to_string(),
            "Unsupported value for 'messages[0].role': this server accepts only the roles system, developer, user and \
             assistant for a model, which calls no tools by itself: a program can."
        );
        assert_eq!(
            refused(json!([{"role": "user", "content": "x"}, calls(&["1"])])).to_string(),
            "Unsupported value for 'messages[1].tool_calls': this server accepts only null or an empty list for a \
             model, which calls no tools by itself: a program can."
        );
    }
}
