//! Write a program that Realm runs beside the model.
//!
//! There are two kinds. A program in the narrower sense answers whole requests, and is called as a
//! model: see [`mod@program`]. A *processor* steers how the tokens of one answer are chosen. Realm asks it for a [`Plan`]
//! before every token, while the model computes. This one begins the answer as an item of a list,
//! lets the model go on at a low temperature, and stops at ten tokens:
//!
//! ```no_run
//! use realm_program::{Draw, Error, Plan, Processor, Request, Token, log, processor, text};
//! use serde::Deserialize;
//!
//! /// What a request may say in `processor.args`.
//! #[derive(Deserialize)]
//! struct Args {
//!     #[serde(default)]
//!     bullet: Option<String>,
//! }
//!
//! struct List {
//!     bullet: Vec<Token>,
//!     seen: usize,
//! }
//!
//! impl Processor for List {
//!     fn start(request: Request) -> Result<Self, Error> {
//!         let args: Args = request.args()?;
//!         let bullet = text::encode(args.bullet.as_deref().unwrap_or("- "));
//!         if bullet.is_empty() {
//!             return Err("processor.args.bullet spells nothing".into());
//!         }
//!         log!("choice {} goes on from {} tokens", request.choice, request.prompt.len());
//!         Ok(List { bullet, seen: 0 })
//!     }
//!
//!     fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error> {
//!         self.seen += accepted.len();
//!         Ok(match self.seen {
//!             0 => Plan::force(self.bullet.clone()),
//!             1..10 => Draw::free().temperature(0.2).into(),
//!             _ => Plan::Stop,
//!         })
//!     }
//! }
//!
//! processor!(List);
//! # fn main() {}
//! ```
//!
//! Its crate is a `cdylib`; `realm program build` makes a component of it.
//!
//! A program runs alone: one instance serves one sequence, without a clock, files or a network, and
//! what it does must follow from what it is given. When a worker dies, another starts the program
//! anew and gives it all that it was given before, in the same portions, so a program that keeps to
//! this answers the same as if nothing had happened.
//!
//! The functions that ask Realm for something, here and in [`text`], exist only where Realm runs
//! the program: a unit test on your machine that calls one panics. Keep what you want to test in
//! functions without them.

use std::fmt::Display;

use serde::de::DeserializeOwned;

#[doc(hidden)]
pub mod bindings;
#[doc(hidden)]
pub mod entry;
pub mod grammar;
pub mod program;
pub mod tensor;
pub mod text;

pub use bindings::exports::realm::program::steering::{Plan, Request};
pub use bindings::realm::program::types::{Allowed, Draw, Token};

/// Tokens that one [`Plan::Force`] may have at most.
pub const MOST_FORCED: usize = 4096;

/// A program that steers how the tokens of one sequence are chosen.
pub trait Processor: Sized {
    /// Takes the sequence in, before its first token. An error fails the request: its text is what
    /// the client reads, with code `processor_error`.
    fn start(request: Request) -> Result<Self, Error>;

    /// Says what is to happen next. Called before the first token with no tokens, then after every
    /// token drawn and after all tokens forced, with these.
    ///
    /// A sequence may also end without another call, for example at its most tokens.
    fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error>;
}

/// Why a program gives up. Everything that can be displayed becomes one: `?` works on the errors
/// of other crates, and `Err("a text".into())` makes one of a text.
#[derive(Debug)]
pub struct Error(String);

// `Error` is not `Display` itself, as it would then be convertible from itself in two ways.
impl<E: Display> From<E> for Error {
    fn from(error: E) -> Self {
        Error(error.to_string())
    }
}

impl Error {
    /// What the client reads.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl Request {
    /// Reads `processor.args`. A request that says nothing reads like one that says `{}`, unless
    /// `T` has a reading of `null`. The error names what is missing or wrong.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Error> {
        args("processor.args", &self.args)
    }
}

fn args<T: DeserializeOwned>(what: &str, json: &str) -> Result<T, Error> {
    let args = match serde_json::from_str(json) {
        Err(_) if json == "null" => serde_json::from_str("{}"),
        args => args,
    };
    args.map_err(|error| format!("{what}: {error}").into())
}

impl Draw {
    /// Any token may be drawn, among them those that end the answer.
    #[must_use]
    pub fn free() -> Self {
        Draw {
            allowed: Allowed::All,
            bias: Vec::new(),
            temperature: None,
        }
    }

    /// Only these tokens may be drawn; there must be one. What ends an answer may be drawn only if
    /// it is among them: see [`text::end_tokens`].
    #[must_use]
    pub fn only(tokens: impl Into<Vec<Token>>) -> Self {
        Draw {
            allowed: Allowed::Tokens(tokens.into()),
            ..Draw::free()
        }
    }

    /// Adds to the logit of a token, at most 1,024 times in all.
    #[must_use]
    pub fn bias(mut self, token: Token, by: f32) -> Self {
        self.bias.push((token, by));
        self
    }

    /// Draws at this temperature, whatever the request says; at 0 the likeliest token is taken.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = Some(temperature);
        self
    }
}

impl From<Draw> for Plan {
    fn from(draw: Draw) -> Self {
        Plan::Draw(draw)
    }
}

impl Plan {
    /// Draws any token: see [`Draw::free`].
    #[must_use]
    pub fn free() -> Self {
        Draw::free().into()
    }

    /// Draws one of these tokens: see [`Draw::only`].
    #[must_use]
    pub fn only(tokens: impl Into<Vec<Token>>) -> Self {
        Draw::only(tokens).into()
    }

    /// Has these tokens follow, whatever the model says: at least one, at most [`MOST_FORCED`].
    #[must_use]
    pub fn force(tokens: impl Into<Vec<Token>>) -> Self {
        Plan::Force(tokens.into())
    }
}

/// 64 random bits. They follow from the request's seed, the choice, and how often this was called.
#[must_use]
pub fn random() -> u64 {
    bindings::realm::program::control::random()
}

/// Writes a line to the log of whoever runs Realm: what [`log!`] calls. A sequence has 64 KiB;
/// what exceeds it is dropped, and so are control characters.
pub fn log(line: &str) {
    bindings::realm::program::control::log(line);
}

/// Writes a line to the log of whoever runs Realm, with the arguments of `format!`.
#[macro_export]
macro_rules! log {
    ($($arg:tt)*) => {
        $crate::log(&::std::format!($($arg)*))
    };
}

/// Makes a type that implements [`Processor`] what the component exports. Once in a crate.
#[macro_export]
macro_rules! processor {
    ($type:ty) => {
        const _: () = {
            ::std::thread_local! {
                static PROCESSOR: $crate::entry::Cell<$type> = const { $crate::entry::empty() };
            }

            struct Entry;

            impl $crate::entry::Guest for Entry {
                fn start(request: $crate::Request) -> Result<(), String> {
                    PROCESSOR.with(|cell| $crate::entry::start(cell, request))
                }

                fn advance(accepted: Vec<$crate::Token>) -> Result<$crate::Plan, String> {
                    PROCESSOR.with(|cell| $crate::entry::advance(cell, &accepted))
                }
            }

            #[cfg(target_arch = "wasm32")]
            $crate::bindings::export! { Entry with_types_in $crate::bindings }

            // The names of the exports are no symbols to the linkers of other systems, where unit
            // tests run. There this keeps the compiler from calling the program unused.
            #[cfg(not(target_arch = "wasm32"))]
            const _: $crate::entry::Exports = (
                <Entry as $crate::entry::Guest>::start,
                <Entry as $crate::entry::Guest>::advance,
            );
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Args {
        words: Vec<String>,
        #[serde(default)]
        most: u32,
    }

    fn request(args: &str) -> Request {
        Request {
            prompt: Vec::new(),
            args: args.into(),
            vocabulary: 8,
            choice: 0,
        }
    }

    #[test]
    fn args_are_read_and_their_errors_say_where_they_are() {
        let read = |args| request(args).args::<Args>();
        assert_eq!(
            read(r#"{"words": ["a"]}"#).unwrap(),
            Args {
                words: vec!["a".into()],
                most: 0
            }
        );
        for (args, message) in [
            ("null", "processor.args: missing field `words`"),
            ("[]", "processor.args: invalid length 0"),
            (
                r#"{"words": 3}"#,
                "processor.args: invalid type: integer `3`",
            ),
        ] {
            let error = read(args).unwrap_err();
            assert!(error.message().starts_with(message), "{error:?}");
        }
    }

    #[test]
    fn a_request_without_args_reads_as_null_or_as_an_empty_object() {
        #[derive(Debug, Default, PartialEq, serde::Deserialize)]
        #[serde(default)]
        struct Optional {
            most: u32,
        }
        assert_eq!(request("null").args::<Option<Args>>().unwrap(), None);
        assert_eq!(
            request("null").args::<Optional>().unwrap(),
            Optional::default()
        );
    }

    #[test]
    fn every_error_becomes_one() {
        fn parse(text: &str) -> Result<u32, Error> {
            Ok(text.parse()?)
        }
        assert_eq!(parse("7").unwrap(), 7);
        assert_eq!(
            parse("x").unwrap_err().message(),
            "invalid digit found in string"
        );
        assert_eq!(Error::from("no luck").message(), "no luck");
    }

    #[test]
    fn a_draw_is_built_up() {
        let draw = Draw::only([1, 2])
            .bias(1, 0.5)
            .bias(2, -1.0)
            .temperature(0.0);
        assert!(matches!(&draw.allowed, Allowed::Tokens(tokens) if tokens == &[1, 2]));
        assert_eq!(draw.bias, [(1, 0.5), (2, -1.0)]);
        assert_eq!(draw.temperature, Some(0.0));
        assert!(matches!(
            Plan::free(),
            Plan::Draw(Draw { allowed: Allowed::All, bias, temperature: None }) if bias.is_empty()
        ));
    }
}
