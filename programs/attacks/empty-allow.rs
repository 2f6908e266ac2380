//! Allows no token.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Plan::only([]))
    }
}

processor!(Attack);
