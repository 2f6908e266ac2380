//! Makes sequences until it may not.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let mut all = vec![Sequence::new(&request.prompt, request.sampling)];
    loop {
        all.push(all[0].fork());
    }
}

program!(answer);
