//! Never answers.

use realm_program::program::{Finish, Request};
use realm_program::{Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let mut n = request.vocabulary;
    loop {
        n = std::hint::black_box(n.wrapping_mul(3));
    }
}

program!(answer);
