//! A program that has the model fill in a JSON schema:
//! `{"program": {"args": {"schema": {"type": "object", ...}, "attempts": 3}}}`.
//!
//! A grammar keeps the model from writing anything else, but not from writing on and on, in a string for
//! example. What is not complete within the request's `max_tokens` is thrown away and drawn anew.

use realm_program::grammar::{Grammar, Matcher};
use realm_program::program::{Finish, Request, Sequence, emit_tokens};
use realm_program::{Error, Token, program, text};
use serde::Deserialize;
use serde_json::Value;

/// Attempts where nothing is said, and at most.
const USUAL: u32 = 3;
const MOST: u32 = 8;
/// Temperature of the second attempt and later ones, where the request has a lower one: at 0 they would
/// all be alike.
const WARM: f32 = 0.8;

#[derive(Deserialize)]
struct Args {
    schema: Value,
    #[serde(default = "usual")]
    attempts: u32,
}

fn usual() -> u32 {
    USUAL
}

fn answer(request: Request) -> Result<Finish, Error> {
    let Args { schema, attempts } = request.args()?;
    if !(1..=MOST).contains(&attempts) {
        let message = format!("program.args.attempts: {attempts} is not between 1 and {MOST}");
        return Err(message.into());
    }
    let beginning = Matcher::compile(&Grammar::JsonSchema(schema.to_string()))
        .map_err(|error| format!("program.args.schema: {}", error.message()))?;
    let mut sampling = request.sampling;
    for _ in 0..attempts {
        let sequence = Sequence::new(&request.prompt, sampling);
        if let Some(tokens) = attempt(sequence, beginning.fork(), request.max_tokens)? {
            emit_tokens(&tokens);
            return Ok(Finish::Stop);
        }
        sampling.temperature = sampling.temperature.max(WARM);
    }
    let most = request.max_tokens;
    Err(format!("no JSON was complete within {most} tokens, in {attempts} attempts").into())
}

/// Draws a text to its end, if that comes within so many tokens.
fn attempt(
    mut sequence: Sequence,
    mut matcher: Matcher,
    most: u32,
) -> Result<Option<Vec<Token>>, Error> {
    let ends = text::end_tokens();
    let mut tokens = Vec::new();
    for _ in 0..most {
        if ends.is_empty() && matcher.is_complete() {
            return Ok(Some(tokens));
        }
        let draw = matcher.draw()?;
        let draw = draw.ok_or("no token of this model goes on with the JSON")?;
        let Ok(drawn) = sequence.draw(&draw) else {
            return Ok(None);
        };
        if ends.contains(&drawn.token) {
            return Ok(Some(tokens));
        }
        matcher.accept(&[drawn.token])?;
        tokens.push(drawn.token);
    }
    Ok(matcher.is_complete().then_some(tokens))
}

program!(answer);
