//! Chat templates: Jinja as Hugging Face runs it, through minijinja.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, merge_maps};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;
use serde_json::Map;

use super::clock::strftime;

const NAME: &str = "chat template";
/// Of the template for chats with tools, where that is another one.
const WITH_TOOLS: &str = "chat template with tools";
/// The special tokens that templates may name.
pub(super) const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];
/// What else every template is told.
const OWN: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// A compiled chat template with the special tokens it may use.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    has_other_with_tools: bool,
    specials: Value,
}

/// Why messages could not be rendered; the text is fit for whoever sent them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refused them.
    #[error("{0}")]
    Raised(String),
    /// The template does something that failed.
    #[error("the model's chat template failed on these messages: {0}")]
    Failed(String),
}

/// What a template's `raise_exception` said, on its way through minijinja.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles `source`, and `with_tools`, which takes its place in chats with tools. `specials` are the
    /// tokens offered to them by name, such as `bos_token`.
    pub fn new(
        source: &str,
        with_tools: Option<&str>,
        specials: &[(&'static str, String)],
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
        });
        environment.add_function("strftime_now", |format: String| {
            strftime(&format, unix_now())
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        environment.add_filter("tojson", to_json);
        let sources = [(NAME, Some(source)), (WITH_TOOLS, with_tools)];
        for (name, source) in sources.iter().filter_map(|(name, s)| Some((*name, (*s)?))) {
            environment
                .add_template_owned(name, without_generation_tags(source))
                .map_err(|e| e.to_string())?;
        }
        let specials = specials.iter().map(|(k, v)| (*k, v.as_str())).collect();
        Ok(ChatTemplate {
            environment,
            has_other_with_tools: with_tools.is_some(),
            specials,
        })
    }

    /// Whether templates have a variable of this name by themselves, so that no request can bring one.
    pub fn sets(name: &str) -> bool {
        OWN.contains(&name) || SPECIAL_TOKENS.contains(&name)
    }

    /// The prompt for `messages`, ending where the assistant's answer begins. `tools` are those that it may
    /// call, as OpenAI's API has them, for templates that know of tools. `variables` are what else it is
    /// told; none of them replaces one that it [sets](Self::sets).
    pub fn render(
        &self,
        messages: &[impl Serialize],
        tools: &[serde_json::Value],
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let own = context! {
            messages => Value::from_serialize(messages),
            // As in transformers, of which templates tell no tools by `none`.
            tools => (!tools.is_empty()).then(|| Value::from_serialize(tools)),
            add_generation_prompt => true,
        };
        // Of a name given twice the last value counts.
        let variables = merge_maps([Value::from_serialize(variables), self.specials.clone(), own]);
        let name = match self.has_other_with_tools && !tools.is_empty() {
            true => WITH_TOOLS,
            false => NAME,
        };
        self.environment
            .get_template(name)
            .and_then(|template| template.render(variables))
            .map_err(|error| match raised(&error) {
                Some(message) => TemplateError::Raised(message),
                None => TemplateError::Failed(error.to_string()),
            })
    }
}

/// The template's own words, if it is what failed.
fn raised(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Some(message.clone());
        }
        source = cause.source();
    }
    None
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Some templates mark the assistant's part for training with `{% generation %}`, which changes
/// nothing in what they print. A block that is always taken keeps its white-space control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, tail)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        let word = tag.trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace(word, " if true ")),
            "endgeneration" => out.push_str(&tag.replace(word, " endif ")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// `tojson` as Hugging Face defines it: Python's `json.dumps` without escapes for HTML.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(width) => Some(width),
        None => options.get::<Option<usize>>("indent")?,
    };
    let failed = |e: serde_json::Error| {
        Error::new(ErrorKind::InvalidOperation, "cannot be written as JSON").with_source(e)
    };
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, format,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out,
            PythonFormatter,
        )),
    };
    written.map_err(failed)?;
    Ok(Value::from_safe_string(
        String::from_utf8_lossy(&out).into_owned(),
    ))
}

/// A space after every comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: serde_json::Value) -> Result<String, TemplateError> {
        render_with(source, messages, json!([]))
    }

    fn render_with(
        source: &str,
        messages: serde_json::Value,
        tools: serde_json::Value,
    ) -> Result<String, TemplateError> {
        let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
        compiled(source).render(&list(&messages), &list(&tools), &Map::new())
    }

    fn compiled(source: &str) -> ChatTemplate {
        let specials = [("bos_token", "<s>".into())];
        ChatTemplate::new(source, None, &specials).expect("compiles")
    }

    /// The end of Qwen3's.
    #[test]
    fn variables_are_those_of_the_request_but_for_its_own() {
        let source = "{{- bos_token + '<|im_start|>assistant\\n' }}\n    \
            {%- if enable_thinking is defined and enable_thinking is false %}\n        \
            {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}";
        let told = |variables: serde_json::Value| {
            let variables = variables.as_object().expect("an object");
            let out = compiled(source).render(&["x"], &[], variables);
            out.expect("renders")
        };
        let (thinks, answers) = (
            "<s><|im_start|>assistant\n",
            "<s><|im_start|>assistant\n<think>\n\n</think>\n\n",
        );
        assert_eq!(told(json!({})), thinks);
        assert_eq!(told(json!({"enable_thinking": true})), thinks);
        assert_eq!(told(json!({"enable_thinking": null})), thinks);
        assert_eq!(told(json!({"enable_thinking": false})), answers);
        assert_eq!(told(json!({"bos_token": "<a>"})), thinks);
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        let variables = json!({"deep": deep});
        let out = compiled("{{ deep | tojson }}").render(
            &["x"],
            &[],
            variables.as_object().expect("an object"),
        );
        assert_eq!(out.expect("renders").len(), 201);
    }

    #[test]
    fn chatml_renders_as_in_transformers() {
        let source = "{%- if messages[0]['role'] == 'system' %}\n    \
            {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n\
            {%- endif %}\n{%- for message in messages %}\n    \
            {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}\n        \
            {{- '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}\n    \
            {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    \
            {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
        let out = render(
            source,
            json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]),
        );
        assert_eq!(
            out.expect("renders"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    /// As Hermes and Qwen have it, shortened.
    #[test]
    fn tools_and_their_calls_render_as_in_transformers() {
        let source = "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n        \
            {{- '\\n' }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '\\n</tools>\\n' }}\n{%- endif %}\n\
            {%- for message in messages %}\n    {%- if message.role == 'assistant' and message.tool_calls %}\n        \
            {{- 'assistant' }}\n        {%- if message.content %}\n            {{- '\\n' + message.content }}\n        \
            {%- endif %}\n        {%- for tool_call in message.tool_calls %}\n            \
            {%- if tool_call.function is defined %}\n                {%- set tool_call = tool_call.function %}\n            \
            {%- endif %}\n            {{- '\\n<tool_call>\\n{\"name\": \"' }}\n            {{- tool_call.name }}\n            \
            {{- '\", \"arguments\": ' }}\n            {{- tool_call.arguments | tojson }}\n            \
            {{- '}\\n</tool_call>' }}\n        {%- endfor %}\n        {{- '\\n' }}\n    {%- elif message.role == 'tool' %}\n        \
            {{- 'tool ' + message.tool_call_id + ': ' + message.content + '\\n' }}\n    {%- else %}\n        \
            {{- message.role + ': ' + message.content + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n";
        let messages = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function",
                "function": {"name": "f", "arguments": {"b": 1, "a": "<>"}}}]},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
        ]);
        let tool =
            json!({"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}});
        let chat = "user: Hi\nassistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": \
            {\"b\": 1, \"a\": \"<>\"}}\n</tool_call>\ntool 1: 7\n";
        let tools = "<tools>\n{\"type\": \"function\", \"function\": \
            {\"name\": \"f\", \"parameters\": {\"z\": 1, \"a\": 2}}}\n</tools>\n";
        assert_eq!(
            render_with(source, messages.clone(), json!([tool])).expect("renders"),
            format!("{tools}{chat}")
        );
        assert_eq!(render(source, messages).expect("renders"), chat);
        assert_eq!(
            render("{{ tools is none }}", json!([])).expect("renders"),
            "True"
        );
    }

    #[test]
    fn a_template_refuses_in_its_own_words() {
        let out = render("{{ raise_exception('Roles must alternate') }}", json!([]));
        assert_eq!(
            out,
            Err(TemplateError::Raised("Roles must alternate".into()))
        );
        // Also from inside a macro, where the cause is nested.
        let nested = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
        assert_eq!(
            render(nested, json!([])),
            Err(TemplateError::Raised("no".into()))
        );
    }

    #[test]
    fn other_failures_say_that_the_template_failed() {
        let out = render(
            "{{ messages[0].content.nope() }}",
            json!([{"content": "x"}]),
        );
        assert!(matches!(out, Err(TemplateError::Failed(_))), "{out:?}");
    }

    #[test]
    fn blocks_are_trimmed_and_tokens_known() {
        let source =
            "  {% for m in messages %}\n{{ bos_token }}{{ m }}\n  {% endfor %}\n{{ eos_token }}.";
        assert_eq!(
            render(source, json!(["a", "b"])).expect("renders"),
            "<s>a\n<s>b\n."
        );
    }

    #[test]
    fn tojson_is_pythons() {
        let source = "{{ messages[0] | tojson }} {{ messages[0] | tojson(indent=1) }}";
        assert_eq!(
            render(source, json!([{"a": "<'é>", "b": [1, 2]}])).expect("renders"),
            "{\"a\": \"<'é>\", \"b\": [1, 2]} {\n \"a\": \"<'é>\",\n \"b\": [\n  1,\n  2\n ]\n}"
        );
    }

    #[test]
    fn generation_tags_are_transparent() {
        let source =
            "{% for m in messages %} {%- generation -%} {{ m }} {%- endgeneration %}{% endfor %}";
        assert_eq!(render(source, json!(["x", "y"])).expect("renders"), "xy");
        assert_eq!(without_generation_tags("a {% b"), "a {% b");
    }

    #[test]
    fn a_broken_template_is_refused_when_loaded() {
        assert!(ChatTemplate::new("{% if %}", None, &[]).is_err());
    }
}
