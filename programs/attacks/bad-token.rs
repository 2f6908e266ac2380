//! Allows only tokens that the vocabulary does not have.

use realm_program::{Error, Plan, Processor, Request, Token, processor};

struct Attack {
    vocabulary: u32,
}

impl Processor for Attack {
    fn start(request: Request) -> Result<Self, Error> {
        Ok(Attack {
            vocabulary: request.vocabulary,
        })
    }

    fn advance(&mut self, _: &[Token]) -> Result<Plan, Error> {
        Ok(Plan::only([self.vocabulary, Token::MAX]))
    }
}

processor!(Attack);
