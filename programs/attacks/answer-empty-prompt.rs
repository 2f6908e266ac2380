//! Begins a sequence with nothing.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let _sequence = Sequence::new(&[], request.sampling);
    Ok(Finish::Stop)
}

program!(answer);
