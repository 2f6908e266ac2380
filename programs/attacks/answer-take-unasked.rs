//! Takes a token that it did not ask for.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    Sequence::new(&request.prompt, request.sampling).take();
    Ok(Finish::Stop)
}

program!(answer);
