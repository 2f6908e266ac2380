//! Benign: proves that a sequence that goes on on another worker is given all that it was given before.
//!
//! It hashes the tokens it is given, how they are portioned, and random numbers; every `every` tokens it
//! forces a text that spells the hash. Were a token missing, doubled or portioned otherwise after a
//! resume, the text would be another, or the sequence would end in an error.

use realm_program::{Error, Plan, Processor, Request, Token, processor, random, text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    every: u32,
}

struct Echo {
    every: u32,
    /// Tokens drawn since the hash was spelled.
    drawn: u32,
    /// FNV-1a of everything so far.
    hash: u64,
    /// What the next portion must be.
    due: Due,
}

/// A portion of tokens.
enum Due {
    /// None: the first.
    Nothing,
    /// One that was drawn.
    Drawn,
    /// These.
    Forced(Vec<Token>),
}

impl Processor for Echo {
    fn start(request: Request) -> Result<Self, Error> {
        let args: Args = request.args()?;
        let mut echo = Echo {
            every: args.every.max(1),
            drawn: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            due: Due::Nothing,
        };
        echo.add(request.choice.into());
        request
            .prompt
            .iter()
            .for_each(|token| echo.add((*token).into()));
        Ok(echo)
    }

    fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error> {
        match &self.due {
            Due::Nothing if accepted.is_empty() => {}
            Due::Drawn if accepted.len() == 1 => self.drawn += 1,
            Due::Forced(tokens) if accepted == tokens => self.drawn = 0,
            Due::Nothing => return Err(format!("began with {accepted:?}").into()),
            Due::Drawn => return Err(format!("drew one token and was given {accepted:?}").into()),
            Due::Forced(tokens) => {
                return Err(format!("forced {tokens:?} and was given {accepted:?}").into());
            }
        }
        self.add(accepted.len() as u64);
        accepted.iter().for_each(|token| self.add((*token).into()));
        self.add(random());
        if self.drawn < self.every {
            self.due = Due::Drawn;
            return Ok(Plan::free());
        }
        let tokens = text::encode(&format!(" [{:016x}]", self.hash));
        self.due = Due::Forced(tokens.clone());
        Ok(Plan::force(tokens))
    }
}

impl Echo {
    fn add(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

processor!(Echo);
