//! Allows `tokens` tokens at every step, the first of the vocabulary; 1,000 unless told. That is no attack, but as
//! much as an honest processor may have to hand over.

use realm_program::{Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    #[serde(default = "many")]
    tokens: Token,
}

fn many() -> Token {
    1000
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Plan::only((0..self.tokens).collect::<Vec<_>>()))
    }
}

processor!(Attack);
