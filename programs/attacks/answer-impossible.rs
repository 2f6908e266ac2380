//! Allows only what cannot be drawn.

use realm_program::program::{Finish, Request, Sequence};
use realm_program::{Draw, Error, program};

fn answer(request: Request) -> Result<Finish, Error> {
    let mut sequence = Sequence::new(&request.prompt, request.sampling);
    let draw = Draw::only([5]).bias(5, f32::MIN).bias(5, f32::MIN);
    sequence.draw(&draw)?;
    Ok(Finish::Stop)
}

program!(answer);
