//! Programs that answer requests: what they begin with, what they say, and what they have seen.
//!
//! A program is a function of its [`Request`], of the tokens that were drawn for it, and of what it
//! sees otherwise, such as numbers of a tensor. So that it outlives its worker, the gateway writes these
//! down, in a [`Journal`]: another worker runs the program anew, and where it takes a token or looks at
//! something that is in the journal, gives it that.
//!
//! What the program [says](Said) depends on tokens that it has taken, and may reach the gateway
//! before the results of the step that drew them. It counts for nothing until they are in the journal:
//! else a client could have seen what the next worker would not say again. What it saw is said like
//! anything else, and so is in the journal before whatever follows from it counts.
//!
//! Tokens come by another way, and can be in the journal although what the program saw before it asked
//! for them was never said. It may see something else on the next worker: then they were drawn for
//! nothing, and are [taken out](What::Redraw).

use serde::{Deserialize, Serialize};

use crate::wire::{Fault, MAX_TOP_LOGPROBS, Sampling};

/// Most tokens of a message, so that it fits a slot: as JSON, each is eleven bytes at most.
pub const PORTION: usize = 4096;

/// Most words of [`Journal::seen`].
pub const MOST_SEEN: usize = 1 << 19;
/// Most tokens that a program may save, one sequence after the other, and one for each time.
pub const MOST_KEPT: usize = 1 << 20;
/// Most calls of tools in an answer.
pub const MOST_CALLS: usize = 128;
/// Most bytes of a name that something is kept under.
pub const MOST_NAME: usize = 256;
/// Most seconds for which something is kept: a day.
pub const MOST_SECONDS: u32 = 86_400;

/// A token with its log-probability.
pub type Scored = (u32, f32);

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions.
    System,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
    /// What the assistant called.
    Tool,
}

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What.
    pub content: String,
    /// Tools that the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result it is.
    pub tool_call_id: Option<String>,
}

/// A call of a tool that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// By which its result is known.
    pub id: String,
    /// Of the tool.
    pub name: String,
    /// As they were sent.
    pub arguments: String,
}

/// What a request says of the tools that its client has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// Those that there are.
    pub offered: Vec<Tool>,
    /// Whether they are to be called.
    pub choice: ToolChoice,
    /// Whether there may be several calls in an answer.
    pub parallel: bool,
}

impl Default for Tools {
    /// None.
    fn default() -> Self {
        Tools {
            offered: Vec::new(),
            choice: ToolChoice::None,
            parallel: true,
        }
    }
}

/// A function that a client has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// What it is called by.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its arguments, as JSON.
    pub parameters: String,
    /// Whether the client insists that arguments fit.
    pub strict: bool,
}

/// Whether tools are to be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// They are not.
    None,
    /// If it is of use.
    Auto,
    /// They are.
    Required,
    /// The one of this name is.
    Function(String),
}

/// How the tokens of a sequence are drawn, as [`Sampling`](crate::wire::Sampling) has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Dials {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Smallest set of tokens whose probability reaches this.
    pub top_p: f32,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: u32,
    /// Tokens below this fraction of the best one's probability are dropped.
    pub min_p: f32,
}

impl From<&Sampling> for Dials {
    fn from(sampling: &Sampling) -> Self {
        Dials {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
        }
    }
}

/// What a program is to answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The chat, as it was sent.
    pub messages: Vec<Message>,
    /// The same, by the model's chat template. At least one token.
    pub prompt: Vec<u32>,
    /// Arguments, as JSON.
    pub args: String,
    /// How the request wants tokens to be drawn.
    pub dials: Dials,
    /// Tokens that it wants in the answer at most.
    pub max_tokens: u32,
    /// Tokens that may be drawn, and logits asked for, over all sequences.
    pub budget: u64,
    /// Key of its random numbers.
    pub key: u64,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// Most tokens of a sequence.
    pub context: u32,
    /// What it may call.
    pub tools: Tools,
}

/// A token that a program has taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// Its log-probability, 0 where the sequence does not ask for any.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub alternatives: Vec<Scored>,
}

/// What happened to a program.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Journal {
    /// What was drawn for it: sequence by sequence, in the order in which it made them.
    pub drawn: Vec<Vec<Drawn>>,
    /// What it saw otherwise, in the order in which it looked: each time as many words as the word
    /// before them says.
    pub seen: Vec<u32>,
}

/// Something that a program says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Number of its run.
    pub run: u64,
    /// Of which sequences it has taken how many tokens since it said something last, those of a journal
    /// among them. Empty where a sequence is to be computed: that tells its tokens itself.
    pub took: Vec<(u32, u32)>,
    /// What it says.
    pub what: What,
}

/// What a program says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Words that come before those of what is said next, which would not fit a slot with all of them.
    More(Vec<u32>),
    /// A sequence is to be computed.
    Open(Open),
    /// It saw something: these words.
    Saw(Vec<u32>),
    /// It wants to see the tokens that its tenant keeps under this name. They come with
    /// [`KEPT`](crate::wire::KEPT), and are in the journal then.
    Reopen(String),
    /// Tokens are to be kept under a name.
    Keep(Keep),
    /// What it sees now is not in its journal, though tokens are that it has not asked for again. They
    /// are to be forgotten: of each of these sequences, all beyond its first so many.
    Redraw(Vec<(u32, u32)>),
    /// This follows in the answer.
    Emit(Part),
    /// The answer is over.
    Finished(Finish),
    /// The program cannot go on.
    Failed(u8, String),
}

/// A sequence that is to be computed, until its program ends it as a processor would.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// What [`JOIN`](crate::wire::JOIN) calls it. The worker gives no number twice.
    pub lease: u64,
    /// Which of the program's sequences it is, in the order in which it made them. One after the
    /// other, a sequence may have several leases.
    pub sequence: u32,
    /// Tokens to go on from.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub dials: Dials,
    /// Key of the random numbers.
    pub key: u64,
    /// Alternatives to report; `None` for no log-probabilities at all.
    pub alternatives: Option<u32>,
}

impl Open {
    /// How its tokens are drawn, in the worker's terms.
    pub fn sampling(&self) -> Sampling {
        let most = MAX_TOP_LOGPROBS as u32;
        Sampling {
            key: self.key,
            temperature: self.dials.temperature,
            top_p: self.dials.top_p,
            top_k: self.dials.top_k,
            min_p: self.dials.min_p,
            top_logprobs: self.alternatives.map_or(-1, |n| n.min(most) as i32),
            ..Sampling::default()
        }
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text(String),
    /// A call of the tool of this name begins.
    Call(String),
    /// More of the arguments of the call that began last.
    Arguments(String),
}

impl Part {
    /// How many bytes of the answer it is.
    pub fn bytes(&self) -> usize {
        let (Part::Text(text) | Part::Call(text) | Part::Arguments(text)) = self;
        text.len()
    }

    /// What there is of it behind its first bytes, however an answer is cut into parts. The beginning of a
    /// call is never cut.
    pub fn behind(mut self, bytes: usize) -> Option<Part> {
        match &mut self {
            Part::Text(text) | Part::Arguments(text) => {
                let rest = text.get(bytes..).filter(|rest| !rest.is_empty())?;
                *text = rest.to_owned();
            }
            Part::Call(_) if bytes > 0 => return None,
            Part::Call(_) => {}
        }
        Some(self)
    }
}

/// Why an answer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// It is complete.
    Stop,
    /// It reached a limit.
    Length,
}

/// Tokens that are to be kept for a tenant, in place of those of the same name. None at all are not
/// kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// What they are called: at most [`MOST_NAME`] bytes.
    pub name: String,
    /// For how long: at most [`MOST_SECONDS`].
    pub seconds: u32,
    /// Which.
    pub tokens: Vec<u32>,
}

impl What {
    /// How much it is: its words, or bytes of text, and one.
    pub fn size(&self) -> usize {
        let much = match self {
            What::More(words) | What::Saw(words) => words.len(),
            What::Open(open) => open.prompt.len(),
            What::Keep(keep) => keep.tokens.len() + keep.name.len(),
            What::Redraw(kept) => kept.len(),
            What::Emit(part) => part.bytes(),
            What::Reopen(text) | What::Failed(_, text) => text.len(),
            What::Finished(_) => 0,
        };
        1 + much
    }

    /// The words in it, of which there may be many.
    fn words(&mut self) -> Option<&mut Vec<u32>> {
        match self {
            What::Open(open) => Some(&mut open.prompt),
            What::Saw(words) => Some(words),
            What::Keep(keep) => Some(&mut keep.tokens),
            _ => None,
        }
    }

    /// The same in pieces of at most [`PORTION`] words, the first of them first.
    pub fn pieces(mut self) -> Vec<What> {
        let Some(words) = self.words() else {
            return vec![self];
        };
        let rest = words.len().saturating_sub(1) / PORTION * PORTION;
        let rest = words.split_off(rest);
        let before = std::mem::replace(words, rest);
        let before = before.chunks(PORTION).map(|words| What::More(words.into()));
        before.chain([self]).collect()
    }

    /// Puts the words of its other pieces back.
    pub fn prepend(&mut self, mut before: Vec<u32>) {
        if let Some(words) = self.words() {
            before.append(words);
            *words = before;
        }
    }

    /// A failure.
    pub fn failed(fault: Fault, message: impl Into<String>) -> What {
        What::Failed(fault as u8, message.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_beginning_is_the_rest() {
        let text = |text: &str| Part::Text(text.into());
        assert_eq!(text("aé").behind(0), Some(text("aé")));
        assert_eq!(text("aé").behind(1), Some(text("é")));
        for nothing in [2, 3, 4, usize::MAX] {
            assert_eq!(text("aé").behind(nothing), None, "{nothing}");
        }
        assert_eq!(text("").behind(0), None);
        let arguments = |text: &str| Part::Arguments(text.into());
        assert_eq!(arguments("{}").behind(1), Some(arguments("}")));
        let call = Part::Call("f".into());
        assert_eq!(call.clone().behind(0), Some(call.clone()));
        assert_eq!(call.behind(1), None);
    }
}
