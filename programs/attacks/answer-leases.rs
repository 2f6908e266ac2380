//! Asks for tokens that it does not wait for.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Draw, Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    while Sequence::new(&request.prompt, request.sampling)
        .ask(&Draw::free())
        .is_ok()
    {}
    Ok(Finish::Length)
}

program!(answer);
