//! Gives up in the middle of its answer.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Draw, Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let mut sequence = Sequence::new(&request.prompt, request.sampling);
    let drawn = sequence.draw(&Draw::free()).is_ok();
    Err(format!("no luck: {drawn}").into())
}

program!(answer);
