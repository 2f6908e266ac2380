//! Logs `lines` lines of 1 MiB before each of its plans; 64 unless told.

use realm_program::{Error, Plan, Processor, Request, Token, processor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attack {
    #[serde(default = "many")]
    lines: u32,
}

fn many() -> u32 {
    64
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        request.args()
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        let line = "flood ".repeat((1 << 20) / 6);
        for _ in 0..self.lines {
            realm_program::log(&line);
        }
        Ok(Plan::free())
    }
}

processor!(Attack);
