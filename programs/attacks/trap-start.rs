//! Traps instead of taking its sequence in.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        std::process::abort()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Plan::free())
    }
}

processor!(Attack);
