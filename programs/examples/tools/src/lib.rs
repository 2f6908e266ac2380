//! A program that has any model call the client's tools, as OpenAI's API has them.
//!
//! The model is told of the tools by its chat template. A call is written as Hermes and Qwen write it:
//! `<tool_call>`, a JSON object with a name and arguments, `</tool_call>`. An answer begins with one where the
//! request asks for that; else the model may begin one wherever it likes. Within a call a grammar holds: its
//! name is that of a tool, and its arguments are what the tool's parameters describe.

use realm_program::grammar::{Grammar, Matcher};
use realm_program::program::{
    Finish, Request, Sequence, Tool, ToolChoice, begin_call, emit, emit_arguments, emit_tokens,
};
use realm_program::text::{self, Decoder};
use realm_program::{Draw, Error, Token, program};
use serde_json::{Value, json};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

/// An answer that is being drawn.
struct Answer {
    sequence: Sequence,
    ends: Vec<Token>,
    /// Tokens that may still be drawn.
    left: u32,
    /// Most tokens of the sequence.
    context: u32,
}

/// Why an answer breaks off.
enum Broken {
    /// It reached a limit.
    Limit,
    Failed(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Broken::Failed(error)
    }
}

fn answer(request: Request) -> Result<Finish, Error> {
    let mut answer = Answer {
        sequence: Sequence::new(&request.prompt, request.sampling),
        ends: text::end_tokens(),
        left: request.max_tokens,
        context: request.context,
    };
    match answer.run(&request) {
        Ok(()) => Ok(Finish::Stop),
        Err(Broken::Limit) => Ok(Finish::Length),
        Err(Broken::Failed(error)) => Err(error),
    }
}

impl Answer {
    fn run(&mut self, request: &Request) -> Result<(), Broken> {
        let all = || request.tools.iter().collect();
        let (tools, is_due, is_one): (Vec<_>, _, _) = match &request.tool_choice {
            ToolChoice::None => (Vec::new(), false, false),
            ToolChoice::Auto => (all(), false, false),
            ToolChoice::Required => (all(), true, false),
            ToolChoice::Function(name) => (request.tool(name).into_iter().collect(), true, true),
        };
        let is_last = is_one || !request.parallel_tool_calls;
        let mut begins = match is_due {
            true => self.append(&format!("{BEGIN}\n")).map(|()| true)?,
            false => self.speak(!tools.is_empty())?,
        };
        while begins {
            self.call(&tools)?;
            // Where there is no room for more, the calls are all there.
            if is_last || self.append(&format!("}}\n{END}")).is_err() {
                break;
            }
            begins = self.speak(true)?;
        }
        Ok(())
    }

    /// Draws text, up to where a call begins, if one may: true; or to the end of the answer.
    fn speak(&mut self, may_call: bool) -> Result<bool, Broken> {
        // Tokens that a call may begin with, and what they spell.
        let (mut held, mut spelled) = (Vec::new(), Vec::new());
        loop {
            let token = match self.draw(&Draw::free()) {
                Ok(token) if !self.ends.contains(&token) => token,
                over => {
                    emit_tokens(&held);
                    return over.map(|_| false);
                }
            };
            held.push(token);
            spelled.extend(text::decode(&[token]));
            if !may_call || !may_become(&spelled) {
                emit_tokens(&held);
                (held, spelled) = (Vec::new(), Vec::new());
            } else if let Some(at) = find(&spelled) {
                // The last token may spell more than that, and the first one something before it.
                let before = String::from_utf8_lossy(&spelled[..at]);
                emit(&before);
                let length = self.sequence.length() - held.len() as u32;
                self.sequence.truncate(length);
                self.append(&format!("{before}{BEGIN}\n"))?;
                return Ok(true);
            }
        }
    }

    /// Draws a call of one of these tools, all of it but what closes it.
    fn call(&mut self, tools: &[&Tool]) -> Result<(), Broken> {
        let names: Vec<_> = tools.iter().map(|tool| tool.name.as_str()).collect();
        let head = format!(r#"\{{"name": "({})", "arguments": "#, names.join("|"));
        let mut said = String::new();
        self.follow(&Grammar::Regex(head), |text| said += text)?;
        let name = said.split('"').nth(3).unwrap_or_default();
        let called = tools.iter().find(|tool| tool.name == name);
        let tool = called.ok_or_else(|| Error::from("the model has named no tool"))?;
        begin_call(&tool.name);
        self.follow(&parameters(tool)?, emit_arguments)
    }

    /// Draws a text of a grammar, which is over as soon as it is complete.
    fn follow(&mut self, grammar: &Grammar, mut say: impl FnMut(&str)) -> Result<(), Broken> {
        let mut matcher = Matcher::compile(grammar)?;
        let mut decoder = Decoder::default();
        while !matcher.is_complete() {
            let draw = matcher.draw()?;
            let draw = draw.ok_or_else(|| Error::from("no token of this model goes on"))?;
            let token = self.draw(&draw)?;
            matcher.accept(&[token])?;
            say(&decoder.push(&[token]));
        }
        Ok(())
    }

    fn draw(&mut self, how: &Draw) -> Result<Token, Broken> {
        self.left = self.left.checked_sub(1).ok_or(Broken::Limit)?;
        let drawn = self.sequence.draw(how).map_err(|_| Broken::Limit)?;
        Ok(drawn.token)
    }

    /// Has the sequence go on with a text, if there is room for it.
    fn append(&mut self, text: &str) -> Result<(), Broken> {
        let tokens = text::encode(text);
        let room = self.context.saturating_sub(self.sequence.length());
        if tokens.len() >= room as usize {
            return Err(Broken::Limit);
        }
        self.sequence.append(&tokens);
        Ok(())
    }
}

/// What the arguments of a call are: an object, since that can be seen to be complete.
fn parameters(tool: &Tool) -> Result<Grammar, Error> {
    let wrong = |what: &str| format!("the parameters of the tool `{}`: {what}", tool.name);
    let mut schema: Value = serde_json::from_str(&tool.parameters)?;
    let fields = schema.as_object_mut().ok_or_else(|| wrong("no schema"))?;
    let kind = fields.entry("type").or_insert_with(|| json!("object"));
    if *kind != "object" {
        return Err(wrong("they must describe an object").into());
    }
    if !tool.strict {
        // What the grammars do not know is passed over.
        fields
            .entry("x-guidance")
            .or_insert_with(|| json!({"lenient": true}));
    }
    Ok(Grammar::JsonSchema(schema.to_string()))
}

/// Where a call begins.
fn find(spelled: &[u8]) -> Option<usize> {
    let mut places = spelled.windows(BEGIN.len());
    places.position(|place| place == BEGIN.as_bytes())
}

/// Whether a call begins in what is spelled, or would if the right bytes followed.
fn may_become(spelled: &[u8]) -> bool {
    let begun = |length| spelled.ends_with(&BEGIN.as_bytes()[..length]);
    find(spelled).is_some() || (1..BEGIN.len()).any(begun)
}

program!(answer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_wherever_its_tokens_are_cut() {
        for (spelled, may, at) in [
            ("", false, None),
            ("So.", false, None),
            ("<tool", true, None),
            ("Hm <", true, None),
            ("<tool_calls", false, None),
            ("<<tool_call", true, None),
            ("<tool_call>", true, Some(0)),
            (".<tool_call>\n", true, Some(1)),
        ] {
            let spelled = spelled.as_bytes();
            assert_eq!(
                (may_become(spelled), find(spelled)),
                (may, at),
                "{spelled:?}"
            );
        }
    }

    #[test]
    fn arguments_are_an_object() {
        let schema = |parameters: &str, strict| {
            parameters_of(parameters, strict).map_err(|error| error.message().to_owned())
        };
        assert_eq!(
            schema(r#"{"properties":{"b":{},"a":{}}}"#, true),
            Ok(r#"{"properties":{"b":{},"a":{}},"type":"object"}"#.into())
        );
        let lenient = r#"{"type":"object","x-guidance":{"lenient":true}}"#;
        assert_eq!(schema("{}", false), Ok(lenient.into()));
        let wrong = schema(r#"{"type":"string"}"#, false).unwrap_err();
        assert!(wrong.contains("`look`"), "{wrong}");
    }

    fn parameters_of(parameters: &str, strict: bool) -> Result<String, Error> {
        let tool = Tool {
            name: "look".into(),
            description: None,
            parameters: parameters.into(),
            strict,
        };
        match super::parameters(&tool)? {
            Grammar::JsonSchema(schema) => Ok(schema),
            _ => Err("another grammar".into()),
        }
    }
}
