//! Texts of a given form: JSON by a schema, what a regular expression matches, or any context-free
//! grammar.
//!
//! ```no_run
//! use realm_program::grammar::{Grammar, Matcher};
//! use realm_program::program::{Request, Sequence};
//! use realm_program::{Error, Token};
//!
//! /// Draws a text that fits, and stays what it was drawn for.
//! fn date(request: &Request) -> Result<Vec<Token>, Error> {
//!     let mut matcher = Matcher::compile(&Grammar::Regex(r"\d{4}-\d\d-\d\d".into()))?;
//!     let mut sequence = Sequence::new(&request.prompt, request.sampling);
//!     let mut tokens = Vec::new();
//!     while !matcher.is_complete() {
//!         let draw = matcher.draw()?.ok_or("no token fits")?;
//!         let drawn = sequence.draw(&draw)?;
//!         matcher.accept(&[drawn.token])?;
//!         tokens.push(drawn.token);
//!     }
//!     Ok(tokens)
//! }
//! ```

use crate::bindings::realm::program::grammars;
use crate::{Allowed, Draw, Error, Token};

pub use grammars::Grammar;

/// A place in a text that grows token by token.
///
/// What its tables take counts as memory of the component, and what it computes as its processor time. There
/// may be 64 at once.
#[derive(Debug)]
pub struct Matcher(grammars::Matcher);

impl Matcher {
    /// At the beginning of a text. The error says what is wrong with the grammar, which may be that it
    /// is too complex. Traps if it is longer than 64 KiB.
    pub fn compile(grammar: &Grammar) -> Result<Self, Error> {
        Ok(Matcher(grammars::Matcher::compile(grammar)?))
    }

    /// Another one at the same place, which goes on by itself.
    #[must_use]
    pub fn fork(&self) -> Self {
        Matcher(self.0.fork())
    }

    /// A draw of what may come next, among it what ends an answer where the text may be over. None if
    /// nothing may come: a token ended the text, or only the end may come and the model has no token for
    /// it.
    pub fn draw(&self) -> Result<Option<Draw>, Error> {
        let mask = self.0.mask()?;
        let some = mask.iter().any(|word| *word != 0);
        Ok(some.then(|| Draw {
            allowed: Allowed::Mask(mask),
            ..Draw::free()
        }))
    }

    /// Goes on by as many of these tokens as fit, and tells how many those were.
    pub fn accept(&mut self, tokens: &[Token]) -> Result<usize, Error> {
        Ok(self.0.accept(tokens)? as usize)
    }

    /// Goes back by so many tokens. Traps if there were fewer.
    pub fn rollback(&mut self, tokens: u32) {
        self.0.rollback(tokens);
    }

    /// Whether the text may be over here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.complete()
    }
}
