//! `response_format` and `structured_outputs`: the form that an answer is to have.

use std::sync::Arc;

use realm_shared::grammar::{Grammar, MAX_GRAMMAR};
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use crate::batching;
use crate::config::TenantSettings;

/// OpenAI's name for it.
const FORMAT: &str = "response_format";
/// vLLM's, which has more kinds.
const OUTPUTS: &str = "structured_outputs";
/// Longest name of a schema, in characters.
const MAX_NAME: usize = 64;

/// What is asked of an answer, and by which parameter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Form {
    pub(super) param: &'static str,
    grammar: Grammar,
}

impl Form {
    /// Takes it out of a request, if it asks for one.
    pub(super) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let format = fields.object(FORMAT)?.map(response_format).transpose()?;
        let outputs = fields.object(OUTPUTS)?.map(structured).transpose()?;
        let form = |param| move |grammar| Form { param, grammar };
        match (format.flatten(), outputs) {
            (Some(_), Some(_)) => Err(ApiError::conflict(
                OUTPUTS,
                format!("A request has one form: leave out '{FORMAT}' or '{OUTPUTS}'."),
            )),
            (format, outputs) => Ok(format.map(form(FORMAT)).or(outputs.map(form(OUTPUTS)))),
        }
    }

    /// What keeps a sequence to it. A tenant's usual processor steers alone.
    pub(super) fn steering(&self, settings: &TenantSettings) -> Result<batching::Form, ApiError> {
        if let Some(usual) = &settings.processor {
            return Err(ApiError::conflict(
                self.param,
                format!(
                    "The processor `{}` steers all answers that you are given, which can have no '{}' beside it.",
                    usual.as_str(),
                    self.param
                ),
            ));
        }
        let grammar = serde_json::to_string(&self.grammar);
        let grammar = grammar.map_err(|e| ApiError::internal(e.to_string()))?;
        Ok(batching::Form {
            grammar: Arc::from(grammar),
            allotment: settings.allotment(),
        })
    }
}

/// `{"type": "text"}`, which asks for nothing, `{"type": "json_object"}`, or `{"type": "json_schema"}`
/// with a schema.
fn response_format(mut fields: Fields) -> Result<Option<Grammar>, ApiError> {
    let kind = fields.string("type")?;
    let kind = kind.ok_or_else(|| ApiError::missing(fields.path("type")))?;
    let grammar = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::JsonSchema(r#"{"type":"object"}"#.into())),
        "json_schema" => {
            let at = fields.path("json_schema");
            Some(json_schema(Fields::of(
                at,
                fields.required("json_schema")?,
            )?)?)
        }
        _ => {
            return Err(ApiError::unsupported(
                fields.path("type"),
                "\"text\", \"json_object\" and \"json_schema\"",
            ));
        }
    };
    fields.finish()?;
    Ok(grammar)
}

/// A schema, and what OpenAI has around it.
fn json_schema(mut fields: Fields) -> Result<Grammar, ApiError> {
    let name = fields.string("name")?;
    let name = name.ok_or_else(|| ApiError::missing(fields.path("name")))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err(ApiError::invalid(
            fields.path("name"),
            format!("1 to {MAX_NAME} letters, digits, underscores and dashes"),
        ));
    }
    // What the answer is for. The prompt is to tell the model.
    fields.string("description")?;
    // Every answer fits its schema, whether that has to be or not.
    fields.boolean("strict")?;
    let at = fields.path("schema");
    let schema = schema(at, fields.required("schema")?)?;
    fields.finish()?;
    Ok(schema)
}

/// A JSON schema.
fn schema(at: String, value: Value) -> Result<Grammar, ApiError> {
    match value {
        Value::Object(_) => bounded(at, Grammar::JsonSchema(value.to_string())),
        other => Err(ApiError::wrong_type(at, "an object", &other)),
    }
}

/// One of `json`, `regex`, `choice` and `grammar`.
fn structured(mut fields: Fields) -> Result<Grammar, ApiError> {
    let kinds = ["json", "regex", "choice", "grammar"].into_iter();
    let mut given = kinds.filter_map(|kind| Some((kind, fields.take(kind)?)));
    let (Some((kind, value)), None) = (given.next(), given.next()) else {
        return Err(ApiError::conflict(
            OUTPUTS,
            format!(
                "'{OUTPUTS}' must have exactly one of 'json', 'regex', 'choice' and 'grammar'."
            ),
        ));
    };
    let at = fields.path(kind);
    fields.finish()?;
    match (kind, value) {
        ("json", Value::String(text)) => match serde_json::from_str(&text) {
            Ok(value) => schema(at, value),
            Err(e) => Err(ApiError::invalid(
                at,
                format!("a JSON schema, but this is no JSON: {e}"),
            )),
        },
        ("json", value) => schema(at, value),
        ("choice", value) => choice(at, value),
        ("regex", Value::String(text)) => bounded(at, Grammar::Regex(text)),
        (_, Value::String(text)) => bounded(at, Grammar::Lark(text)),
        (_, other) => Err(ApiError::wrong_type(at, "a string", &other)),
    }
}

/// One of some texts.
fn choice(at: String, value: Value) -> Result<Grammar, ApiError> {
    let Value::Array(texts) = value else {
        return Err(ApiError::wrong_type(at, "an array of strings", &value));
    };
    let literals = texts.iter().enumerate().map(|(i, text)| match text {
        Value::String(text) => Ok(literal(text)),
        other => Err(ApiError::wrong_type(
            format!("{at}[{i}]"),
            "a string",
            other,
        )),
    });
    let literals = literals.collect::<Result<Vec<_>, _>>()?;
    if literals.is_empty() {
        return Err(ApiError::invalid(at, "at least one string"));
    }
    bounded(at, Grammar::Regex(format!("({})", literals.join("|"))))
}

/// A regular expression for this text.
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for c in text.chars() {
        // Behind a backslash, `<` and `>` are the ends of a word.
        if c.is_ascii_punctuation() && !matches!(c, '<' | '>') {
            literal.push('\\');
        }
        literal.push(c);
    }
    literal
}

fn bounded(at: String, grammar: Grammar) -> Result<Grammar, ApiError> {
    match grammar.text().len() {
        0..=MAX_GRAMMAR => Ok(grammar),
        long => Err(ApiError::invalid(
            at,
            format!("a grammar of at most {MAX_GRAMMAR} bytes, but got {long}"),
        )),
    }
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
