//! Calls itself for ever.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Plan::only([down(0)]))
    }
}

/// What is done after the call inside keeps this from becoming a loop.
#[expect(unconditional_recursion, reason = "it is the attack")]
fn down(depth: Token) -> Token {
    std::hint::black_box(down(depth.wrapping_add(1))) ^ depth
}

processor!(Attack);
