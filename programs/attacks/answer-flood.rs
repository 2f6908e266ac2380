//! Never ceases to give out text.

use realm_program::program::{Finish, Request, emit};
use realm_program::{Error, program};

fn answer(_: Request) -> Result<Finish, Error> {
    loop {
        emit("More, and more, and more, and more. ");
    }
}

program!(answer);
