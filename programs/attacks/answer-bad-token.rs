//! Begins a sequence with a token that there is not.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let _sequence = Sequence::new(&[request.vocabulary], request.sampling);
    Ok(Finish::Stop)
}

program!(answer);
