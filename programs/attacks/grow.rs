//! Takes memory for ever, and writes to it.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        let mut kept = Vec::new();
        loop {
            kept.push(vec![1_u8; 1 << 20]);
            std::hint::black_box(&kept);
        }
    }
}

processor!(Attack);
