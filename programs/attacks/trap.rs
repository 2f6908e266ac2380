//! Traps at its first call of `advance`.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        std::process::abort()
    }
}

processor!(Attack);
