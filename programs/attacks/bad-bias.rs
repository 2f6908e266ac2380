//! Adds what is no number to a logit.

use realm_program::{Draw, Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Draw::free().bias(0, f32::NAN).into())
    }
}

processor!(Attack);
