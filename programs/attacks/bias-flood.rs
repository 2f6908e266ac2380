//! Adds to `biases` logits; 1,025 unless told, one more than is allowed.

use realm_program::{Draw, Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    #[serde(default = "many")]
    biases: usize,
}

fn many() -> usize {
    1025
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        let mut draw = Draw::free();
        draw.bias = vec![(0, 0.5); self.biases];
        Ok(draw.into())
    }
}

processor!(Attack);
