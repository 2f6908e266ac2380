//! Counts to `loops` before each of its plans.

use realm_program::{Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    loops: u64,
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        for n in 0..self.loops {
            std::hint::black_box(n);
        }
        Ok(Plan::free())
    }
}

processor!(Attack);
