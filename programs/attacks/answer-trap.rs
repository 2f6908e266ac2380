//! Traps in the middle of its answer.

use realm_program::program::{Finish, Request, Sequence, emit};
use realm_program::{Draw, Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let mut sequence = Sequence::new(&request.prompt, request.sampling);
    if sequence.draw(&Draw::free()).is_ok() {
        emit("x");
    }
    std::process::abort()
}

program!(answer);
