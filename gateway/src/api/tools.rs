//! The tools that a client offers, for programs to call.

use realm_shared::run::{self, Tool, ToolChoice};
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;

/// Most tools of a request.
const MAX_TOOLS: usize = 128;
/// Longest name of a tool, in characters.
const MAX_NAME: usize = 64;
/// Parameters of a tool that says nothing of them: there are none.
const NO_PARAMETERS: &str = r#"{"type":"object","properties":{},"additionalProperties":false}"#;

/// What a request says of tools, each part of it valid by itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tools {
    /// As they were sent, for chat templates.
    pub(super) sent: Vec<Value>,
    offered: Vec<Tool>,
    choice: Option<ToolChoice>,
    parallel: bool,
}

impl Tools {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls` out of a request.
    pub(super) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let sent = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(list)) if list.len() <= MAX_TOOLS => list,
            Some(Value::Array(list)) => {
                return Err(ApiError::invalid(
                    "tools",
                    format!("at most {MAX_TOOLS} tools, but got {}", list.len()),
                ));
            }
            Some(other) => return Err(ApiError::wrong_type("tools", "an array", &other)),
        };
        let mut offered: Vec<Tool> = Vec::new();
        for (i, value) in sent.iter().enumerate() {
            let tool = tool(Fields::of(format!("tools[{i}]"), value.clone())?)?;
            if offered.iter().any(|other| other.name == tool.name) {
                let at = format!("tools[{i}].function.name");
                return Err(ApiError::invalid(at, "a name that no other tool has"));
            }
            offered.push(tool);
        }
        Ok(Tools {
            sent,
            offered,
            choice: choice(fields)?,
            parallel: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
        })
    }

    /// Refuses what a model cannot be asked: it calls no tools by itself.
    pub(super) fn check_for_model(&self) -> Result<(), ApiError> {
        if !self.offered.is_empty() {
            return Err(ApiError::unsupported(
                "tools",
                "null or an empty list for a model, which calls no tools by itself: a program can",
            ));
        }
        match self.choice {
            None | Some(ToolChoice::None | ToolChoice::Auto) => Ok(()),
            Some(ToolChoice::Required | ToolChoice::Function(_)) => Err(ApiError::unsupported(
                "tool_choice",
                "null, \"none\" or \"auto\" for a model, which calls no tools by itself: a program can",
            )),
        }
    }

    /// Refuses a choice of what there is not.
    pub(super) fn check_for_program(&self) -> Result<(), ApiError> {
        match &self.choice {
            Some(ToolChoice::Required | ToolChoice::Function(_)) if self.offered.is_empty() => {
                Err(ApiError::conflict(
                    "tool_choice",
                    "The 'tool_choice' parameter can ask for a call only when there are 'tools'.",
                ))
            }
            Some(ToolChoice::Function(name)) if self.offered.iter().all(|t| t.name != *name) => {
                Err(ApiError::invalid(
                    "tool_choice.function.name",
                    "the name of one of the 'tools'",
                ))
            }
            _ => Ok(()),
        }
    }

    /// The same, as programs see it.
    pub(super) fn into_said(self) -> run::Tools {
        let usual = match self.offered.is_empty() {
            true => ToolChoice::None,
            false => ToolChoice::Auto,
        };
        run::Tools {
            choice: self.choice.unwrap_or(usual),
            offered: self.offered,
            parallel: self.parallel,
        }
    }
}

/// `{"type": "function", "function": {"name": ...}}`
fn tool(mut fields: Fields) -> Result<Tool, ApiError> {
    let mut function = function(&mut fields)?;
    fields.finish()?;
    let name = named(&mut function)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err(ApiError::invalid(
            function.path("name"),
            format!("1 to {MAX_NAME} letters, digits, underscores and dashes"),
        ));
    }
    let tool = Tool {
        name,
        description: function.string("description")?,
        parameters: match function.take("parameters") {
            None => NO_PARAMETERS.to_owned(),
            Some(schema @ Value::Object(_)) => schema.to_string(),
            Some(other) => {
                let at = function.path("parameters");
                return Err(ApiError::wrong_type(at, "an object", &other));
            }
        },
        strict: function.boolean("strict")?.unwrap_or(false),
    };
    function.finish()?;
    Ok(tool)
}

/// `"none"`, `"auto"`, `"required"`, or `{"type": "function", "function": {"name": ...}}`.
fn choice(fields: &mut Fields) -> Result<Option<ToolChoice>, ApiError> {
    const EXPECTED: &str = "one of \"none\", \"auto\", \"required\" and a function";
    let choice = match fields.take("tool_choice") {
        None => return Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return Err(ApiError::invalid("tool_choice", EXPECTED)),
        },
        Some(value @ Value::Object(_)) => {
            let mut fields = Fields::of("tool_choice".into(), value)?;
            let mut function = function(&mut fields)?;
            fields.finish()?;
            let name = named(&mut function)?;
            function.finish()?;
            ToolChoice::Function(name)
        }
        Some(other) => {
            let expected = "a string or an object";
            return Err(ApiError::wrong_type("tool_choice", expected, &other));
        }
    };
    Ok(Some(choice))
}

/// Takes out `function` of an object whose `type` says that there is one.
pub(super) fn function(fields: &mut Fields) -> Result<Fields, ApiError> {
    let path = fields.path("type");
    match fields.required("type")? {
        Value::String(kind) if kind == "function" => {}
        Value::String(_) => return Err(ApiError::unsupported(path, "the type \"function\"")),
        other => return Err(ApiError::wrong_type(path, "a string", &other)),
    }
    let at = fields.path("function");
    Fields::of(at, fields.required("function")?)
}

/// The name of a function.
pub(super) fn named(function: &mut Fields) -> Result<String, ApiError> {
    let name = function.string("name")?;
    name.ok_or_else(|| ApiError::missing(function.path("name")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(request: Value) -> Result<Tools, ApiError> {
        Tools::take(&mut Fields::of(String::new(), request)?)
    }

    fn offer(names: &[&str]) -> Value {
        let tool = |name: &&str| json!({"type": "function", "function": {"name": name}});
        names.iter().map(tool).collect()
    }

    #[test]
    fn tools_are_kept_as_they_are_and_told_in_order() {
        let parameters = json!({"type": "object", "properties": {"z": {}, "a": {}}});
        let sent = json!([
            {"type": "function", "function": {"name": "get-it_2", "description": "Gets it.",
             "strict": true, "parameters": parameters}},
            {"type": "function", "function": {"name": "b", "description": null, "parameters": null}},
        ]);
        let tools = read(json!({"tools": sent, "parallel_tool_calls": false})).expect("valid");
        assert_eq!(Value::from(tools.sent.clone()), sent);
        assert_eq!(tools.check_for_program(), Ok(()));
        let tool = |name: &str, description: Option<&str>, parameters: &str, strict| Tool {
            name: name.into(),
            description: description.map(str::to_owned),
            parameters: parameters.into(),
            strict,
        };
        assert_eq!(
            tools.into_said(),
            run::Tools {
                offered: vec![
                    tool(
                        "get-it_2",
                        Some("Gets it."),
                        r#"{"type":"object","properties":{"z":{},"a":{}}}"#,
                        true
                    ),
                    tool("b", None, NO_PARAMETERS, false),
                ],
                choice: ToolChoice::Auto,
                parallel: false,
            }
        );
    }

    #[test]
    fn a_choice_is_of_what_there_is() {
        let choice = |choice: Value| {
            let tools = read(json!({"tools": offer(&["f", "g"]), "tool_choice": choice}))?;
            tools.check_for_program()?;
            Ok::<_, ApiError>(tools.into_said().choice)
        };
        let function =
            |name: &str| json!({"type": "function", "function": {"name": name.to_owned()}});
        assert_eq!(choice(json!("none")), Ok(ToolChoice::None));
        assert_eq!(choice(json!("auto")), Ok(ToolChoice::Auto));
        assert_eq!(choice(json!("required")), Ok(ToolChoice::Required));
        assert_eq!(choice(function("g")), Ok(ToolChoice::Function("g".into())));
        let error = choice(function("h")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Invalid 'tool_choice.function.name': expected the name of one of the 'tools'."
        );
        let none = read(json!({"tool_choice": "auto"})).expect("valid");
        assert_eq!(none.check_for_program(), Ok(()));
        assert_eq!(
            read(json!({})).expect("valid").into_said(),
            run::Tools::default()
        );
        let alone = read(json!({"tools": [], "tool_choice": "required"})).expect("valid");
        assert!(alone.check_for_program().is_err());
    }

    #[test]
    fn faults_are_located() {
        let tool = |function: Value| {
            json!({"tools": offer(&["f"]).as_array().map(|tools| {
                [tools.as_slice(), &[json!({"type": "function", "function": function})]].concat()
            })})
        };
        for (request, expected) in [
            (
                json!({"tools": {}}),
                "Invalid type for 'tools': expected an array, but got an object.",
            ),
            (
                json!({"tools": vec![offer(&["f"])[0].clone(); 129]}),
                "Invalid 'tools': expected at most 128 tools, but got 129.",
            ),
            (
                json!({"tools": [1]}),
                "Invalid type for 'tools[0]': expected an object, but got an integer.",
            ),
            (
                json!({"tools": [{"function": {"name": "f"}}]}),
                "Missing required parameter: 'tools[0].type'.",
            ),
            (
                json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
                "Unsupported value for 'tools[0].type': this server accepts only the type \"function\".",
            ),
            (
                json!({"tools": [{"type": "function"}]}),
                "Missing required parameter: 'tools[0].function'.",
            ),
            (
                tool(json!({})),
                "Missing required parameter: 'tools[1].function.name'.",
            ),
            (
                tool(json!({"name": "a b"})),
                "Invalid 'tools[1].function.name': expected 1 to 64 letters, digits, underscores and dashes.",
            ),
            (
                tool(json!({"name": "x".repeat(65)})),
                "Invalid 'tools[1].function.name': expected 1 to 64 letters, digits, underscores and dashes.",
            ),
            (
                tool(json!({"name": "f"})),
                "Invalid 'tools[1].function.name': expected a name that no other tool has.",
            ),
            (
                tool(json!({"name": "g", "parameters": "{}"})),
                "Invalid type for 'tools[1].function.parameters': expected an object, but got a string.",
            ),
            (
                tool(json!({"name": "g", "strict": 1})),
                "Invalid type for 'tools[1].function.strict': expected a boolean, but got an integer.",
            ),
            (
                tool(json!({"name": "g", "returns": {}})),
                "Unrecognized request argument supplied: tools[1].function.returns",
            ),
            (
                json!({"tool_choice": "any"}),
                "Invalid 'tool_choice': expected one of \"none\", \"auto\", \"required\" and a function.",
            ),
            (
                json!({"tool_choice": 1}),
                "Invalid type for 'tool_choice': expected a string or an object, but got an integer.",
            ),
            (
                json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}),
                "Unsupported value for 'tool_choice.type': this server accepts only the type \"function\".",
            ),
            (
                json!({"tool_choice": {"type": "function", "function": {}}}),
                "Missing required parameter: 'tool_choice.function.name'.",
            ),
            (
                json!({"parallel_tool_calls": 1}),
                "Invalid type for 'parallel_tool_calls': expected a boolean, but got an integer.",
            ),
        ] {
            assert_eq!(read(request).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_model_is_asked_for_no_calls() {
        let refused = |request| {
            let error = read(request).expect("valid").check_for_model();
            error.map_err(|error| error.to_string())
        };
        assert_eq!(refused(json!({"tools": [], "tool_choice": "auto"})), Ok(()));
        assert_eq!(
            refused(json!({"tool_choice": "none", "parallel_tool_calls": true})),
            Ok(())
        );
        let unsupported = |param, accepted| {
            Err(format!(
                "Unsupported value for '{param}': this server accepts only {accepted} for a model, which calls no \
                 tools by itself: a program can."
            ))
        };
        assert_eq!(
            refused(json!({"tools": offer(&["f"])})),
            unsupported("tools", "null or an empty list")
        );
        assert_eq!(
            refused(json!({"tool_choice": "required"})),
            unsupported("tool_choice", "null, \"none\" or \"auto\"")
        );
    }
}
