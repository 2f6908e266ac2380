//! Programs that answer requests, and are called as models.
//!
//! ```
//! use realm_program::program::{Finish, Request, Sequence, emit, emit_tokens};
//! use realm_program::{Draw, Error, program, text};
//!
//! /// Answers, and says how long the answer is.
//! fn answer(request: Request) -> Result<Finish, Error> {
//!     let mut sequence = Sequence::new(&request.prompt, request.sampling);
//!     let mut finish = Finish::Length;
//!     for _ in 0..request.max_tokens {
//!         let Ok(drawn) = sequence.draw(&Draw::free()) else {
//!             break;
//!         };
//!         if text::end_tokens().contains(&drawn.token) {
//!             finish = Finish::Stop;
//!             break;
//!         }
//!         emit_tokens(&[drawn.token]);
//!     }
//!     let tokens = sequence.length() - request.prompt.len() as u32;
//!     emit(&format!("\n({tokens} tokens)"));
//!     Ok(finish)
//! }
//!
//! program!(answer);
//! ```

use std::fmt::{Display, Formatter};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::bindings::answering::realm::program::{client, sequences};
use crate::tensor::Tensor;
use crate::{Draw, Error, Token};

pub use crate::bindings::answering::exports::realm::program::answering::{
    Finish, Message, Request, Role, Tool, ToolCall, ToolChoice,
};
pub use crate::bindings::answering::realm::program::sequences::{Drawn, Sampling};

impl Request {
    /// Reads `program.args`. A request that says nothing reads like one that says `{}`, unless `T` has
    /// a reading of `null`. The error names what is missing or wrong.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Error> {
        crate::args("program.args", &self.args)
    }

    /// The client's tool of this name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }
}

/// Adds to the answer's text. An answer has at most 1 MiB, what it says of calls among it.
pub fn emit(text: &str) {
    client::emit(text);
}

/// Adds what these tokens spell, as the model's own answers are spelled: special tokens are silent, and
/// no character is split.
pub fn emit_tokens(tokens: &[Token]) {
    client::emit_tokens(tokens);
}

/// Begins a call of the client's tool of this name, which must be one of [`Request::tools`]: at most 128 in an
/// answer. What is emitted as arguments from now on is its.
pub fn begin_call(tool: &str) {
    client::begin_call(tool);
}

/// Adds to the arguments of the call that was begun last. They are JSON, and may be cut anywhere.
pub fn emit_arguments(fragment: &str) {
    client::emit_arguments(fragment);
}

/// Waits until what was asked for is there of one of these sequences, and tells which of them it is; the first
/// of several. It is still to be taken. Traps for no sequence, and for one that was asked for nothing.
#[must_use]
pub fn wait_any(sequences: &[&Sequence]) -> usize {
    let handles: Vec<_> = sequences.iter().map(|sequence| &sequence.0).collect();
    sequences::wait_any(&handles) as usize
}

/// Tokens, and what the model has computed of them. It is computed when a token is drawn; what
/// sequences have in common at their beginning is computed once.
#[derive(Debug)]
pub struct Sequence(sequences::Sequence);

impl Sequence {
    /// One that begins with these tokens; there must be at least one.
    #[must_use]
    pub fn new(prompt: &[Token], sampling: Sampling) -> Self {
        Sequence(sequences::Sequence::new(prompt, sampling, None))
    }

    /// One whose draws tell log-probabilities, and so many of the likeliest tokens: at most 20.
    #[must_use]
    pub fn scored(prompt: &[Token], sampling: Sampling, alternatives: u32) -> Self {
        Sequence(sequences::Sequence::new(
            prompt,
            sampling,
            Some(alternatives),
        ))
    }

    /// One with the tokens that were [saved](Self::save) under this name, if they still are.
    #[must_use]
    pub fn reopen(name: &str, sampling: Sampling) -> Option<Self> {
        sequences::Sequence::reopen(name, sampling, None).map(Sequence)
    }

    /// The same, of which draws tell log-probabilities.
    #[must_use]
    pub fn reopen_scored(name: &str, sampling: Sampling, alternatives: u32) -> Option<Self> {
        sequences::Sequence::reopen(name, sampling, Some(alternatives)).map(Sequence)
    }

    /// Saves its tokens under a name, for later requests of the same tenant to the same model: for so long,
    /// at most a day, in whole seconds. They may be gone before that where the tenant saves much.
    pub fn save(&self, name: &str, time: Duration) {
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
        self.0.save(name, seconds);
    }

    /// Drops what was saved under a name.
    pub fn forget(name: &str) {
        sequences::Sequence::forget(name);
    }

    /// One with the same tokens, which goes on by itself, with random numbers of its own.
    #[must_use]
    pub fn fork(&self) -> Self {
        Sequence(self.0.fork())
    }

    /// How many tokens it has.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.0.length()
    }

    /// Adds tokens at its end.
    pub fn append(&mut self, tokens: &[Token]) {
        self.0.append(tokens);
    }

    /// Drops what is behind its first tokens; at least one must stay.
    pub fn truncate(&mut self, length: u32) {
        self.0.truncate(length);
    }

    /// Draws its next token.
    pub fn draw(&mut self, how: &Draw) -> Result<Drawn, Exhausted> {
        self.ask(how)?;
        Ok(self.take())
    }

    /// Draws its next token from these logits, as if the model had given them.
    pub fn draw_from(&mut self, logits: &Tensor, how: &Draw) -> Result<Drawn, Exhausted> {
        self.ask_from(logits, how)?;
        Ok(self.take())
    }

    /// The logits of its next token: a number for each token of the vocabulary. None is drawn by that.
    pub fn logits(&mut self) -> Result<Tensor, Exhausted> {
        self.ask_logits()?;
        Ok(self.take_logits())
    }

    /// Asks for its next token. Ask several sequences before you take of the first, and the model
    /// computes for all of them at once.
    pub fn ask(&mut self, how: &Draw) -> Result<(), Exhausted> {
        Ok(self.0.ask(how)?)
    }

    /// Asks for its next token, drawn from these logits.
    pub fn ask_from(&mut self, logits: &Tensor, how: &Draw) -> Result<(), Exhausted> {
        Ok(self.0.ask_from(&logits.0, how)?)
    }

    /// Asks for the logits of its next token: of several sequences, before you take those of the first.
    pub fn ask_logits(&mut self) -> Result<(), Exhausted> {
        Ok(self.0.ask_logits()?)
    }

    /// Waits for the logits that were asked for. What follows best is a token drawn from them or from
    /// what was made of them: then they need not be computed again.
    #[must_use]
    pub fn take_logits(&mut self) -> Tensor {
        Tensor(self.0.take_logits())
    }

    /// The model's hidden state at its last token: what the logits of its next token are computed from. None
    /// is drawn by that.
    pub fn hidden(&mut self) -> Result<Tensor, Exhausted> {
        self.ask_hidden()?;
        Ok(self.take_hidden())
    }

    /// Asks for the hidden state at its last token: of several sequences, before you take that of the first.
    pub fn ask_hidden(&mut self) -> Result<(), Exhausted> {
        Ok(self.0.ask_hidden()?)
    }

    /// Waits for the hidden state that was asked for.
    #[must_use]
    pub fn take_hidden(&mut self) -> Tensor {
        Tensor(self.0.take_hidden())
    }

    /// Waits for the token that was asked for.
    pub fn take(&mut self) -> Drawn {
        self.0.take()
    }
}

/// Why no token can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The sequence is as long as the model's context.
    Context,
    /// The request has drawn as many tokens as it may, over all its sequences. Logits and hidden
    /// states that are asked for count like tokens.
    Tokens,
}

impl From<sequences::Exhausted> for Exhausted {
    fn from(exhausted: sequences::Exhausted) -> Self {
        match exhausted {
            sequences::Exhausted::Context => Exhausted::Context,
            sequences::Exhausted::Tokens => Exhausted::Tokens,
        }
    }
}

impl Display for Exhausted {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Exhausted::Context => "the sequence is as long as the model's context",
            Exhausted::Tokens => "the request has drawn as many tokens as it may",
        })
    }
}

impl From<Exhausted> for Finish {
    /// Both are limits.
    fn from(_: Exhausted) -> Self {
        Finish::Length
    }
}

/// Makes a function that takes a [`Request`] and gives a `Result<`[`Finish`]`, `[`Error`]`>` what the
/// component exports. Once in a crate.
#[macro_export]
macro_rules! program {
    ($answer:path) => {
        const _: () = {
            struct Entry;

            impl $crate::entry::Answering for Entry {
                fn run(
                    request: $crate::program::Request,
                ) -> Result<$crate::program::Finish, String> {
                    $crate::entry::answer($answer, request)
                }
            }

            #[cfg(target_arch = "wasm32")]
            $crate::bindings::answering::export_program! {
                Entry with_types_in $crate::bindings::answering
            }

            #[cfg(not(target_arch = "wasm32"))]
            const _: $crate::entry::Answer = <Entry as $crate::entry::Answering>::run;
        };
    };
}
