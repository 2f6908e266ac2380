//! Traps at a later call of `advance`, the `at`-th from 0, by a panic, whose message it logs.

use realm_program::{Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    at: u32,
}

struct Attack {
    left: u32,
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        let args: Args = request.args()?;
        Ok(Attack { left: args.at })
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        self.left = self.left.checked_sub(1).expect("it was to be a trap");
        Ok(Plan::free())
    }
}

processor!(Attack);
