//! Forces `tokens` tokens at once; 100,000 unless told.

use realm_program::{Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    #[serde(default = "many")]
    tokens: usize,
}

fn many() -> usize {
    100_000
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Plan::force(vec![0; self.tokens]))
    }
}

processor!(Attack);
