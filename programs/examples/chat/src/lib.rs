//! A program that answers as the model does without it: the same tokens, and the same text. It is the
//! measure of what a program costs, and a beginning for others.

use realm_program::program::{Finish, Request, Sequence, emit_tokens};
use realm_program::{Draw, Error, program, text};

fn answer(request: Request) -> Result<Finish, Error> {
    let ends = text::end_tokens();
    let mut sequence = Sequence::new(&request.prompt, request.sampling);
    for _ in 0..request.max_tokens {
        let token = match sequence.draw(&Draw::free()) {
            Ok(drawn) => drawn.token,
            Err(limit) => return Ok(limit.into()),
        };
        if ends.contains(&token) {
            return Ok(Finish::Stop);
        }
        emit_tokens(&[token]);
    }
    Ok(Finish::Length)
}

program!(answer);
