//! Has `tokens` tokens decoded in one call; 2,000,000 unless told, more than is allowed.

use realm_program::{Error, Plan, Processor, Request, Token, processor, text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    #[serde(default = "many")]
    tokens: usize,
}

fn many() -> usize {
    2_000_000
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        std::hint::black_box(text::decode(&vec![0; self.tokens]));
        Ok(Plan::free())
    }
}

processor!(Attack);
