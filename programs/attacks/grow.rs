//! Takes memory for ever, and writes to the beginning of each piece of it: no more than that, not even zeros, for the
//! limit on memory is to be met before that on processor time also where pages come slowly.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        let mut kept = Vec::new();
        loop {
            let mut piece = Vec::with_capacity(1 << 20);
            piece.push(1_u8);
            kept.push(piece);
            std::hint::black_box(&kept);
        }
    }
}

processor!(Attack);
