//! A processor whose answer has a form that the request gives, and no other:
//! `{"name": "grammar", "args": {"json_schema": {"type": "object"}}}`, or `"regex"`, or `"lark"` and a
//! text.
//!
//! An answer of too few `max_tokens` ends inside its form.

use realm_program::grammar::{Grammar, Matcher};
use realm_program::{Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Args {
    JsonSchema(Value),
    Regex(String),
    Lark(String),
}

struct Formed(Matcher);

impl Processor for Formed {
    fn start(request: Request) -> Result<Self, Error> {
        let grammar = match request.args()? {
            Args::JsonSchema(schema) => Grammar::JsonSchema(schema.to_string()),
            Args::Regex(regex) => Grammar::Regex(regex),
            Args::Lark(lark) => Grammar::Lark(lark),
        };
        let matcher = Matcher::compile(&grammar)
            .map_err(|error| format!("processor.args: {}", error.message()))?;
        Ok(Formed(matcher))
    }

    fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error> {
        self.0.accept(accepted)?;
        Ok(match self.0.draw()? {
            Some(draw) => draw.into(),
            None if self.0.is_complete() => Plan::Stop,
            None => return Err("no token of this model goes on with the text".into()),
        })
    }
}

processor!(Formed);
