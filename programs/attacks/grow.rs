//! Takes memory for ever, and writes to each piece of it: no more than that, for the limit on memory is to be met
//! before that on processor time also where pages come slowly.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack;

impl Processor for Attack {
    fn start(_: Request) -> Result<Self, Error> {
        Ok(Attack)
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        let mut kept = Vec::new();
        loop {
            let mut piece = vec![0_u8; 1 << 20];
            piece[0] = 1;
            kept.push(piece);
            std::hint::black_box(&kept);
        }
    }
}

processor!(Attack);
