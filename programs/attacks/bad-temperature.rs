//! Wants the temperature `temperature`, or one that is no number.

use realm_program::{Draw, Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    temperature: Option<f32>,
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        let temperature = self.temperature.unwrap_or(f32::NAN);
        Ok(Draw::free().temperature(temperature).into())
    }
}

processor!(Attack);
