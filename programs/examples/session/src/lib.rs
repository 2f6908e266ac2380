//! A program that goes on from where an earlier request left off: a client sends what is new, and not the
//! whole chat. `program.args` name the session: `{"session": "42"}`, and may say for how many minutes it
//! is remembered: `"minutes": 60`.

use std::time::Duration;

use realm_program::program::{Finish, Request, Sequence, emit_tokens};
use realm_program::{Draw, Error, program, text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    session: String,
    #[serde(default = "hour")]
    minutes: u64,
}

fn hour() -> u64 {
    60
}

fn answer(request: Request) -> Result<Finish, Error> {
    let args: Args = request.args()?;
    let mut sequence = begin(&request, &args.session);
    let finish = speak(&mut sequence, request.max_tokens);
    sequence.save(&args.session, Duration::from_secs(args.minutes * 60));
    Ok(finish)
}

/// What was said before, with what is new at its end. A session that has become too long begins anew.
fn begin(request: &Request, session: &str) -> Sequence {
    let new = &request.prompt;
    if let Some(mut before) = Sequence::reopen(session, request.sampling)
        && before.length() as usize + new.len() < request.context as usize
    {
        before.append(new);
        return before;
    }
    Sequence::new(new, request.sampling)
}

fn speak(sequence: &mut Sequence, most: u32) -> Finish {
    let ends = text::end_tokens();
    for _ in 0..most {
        let token = match sequence.draw(&Draw::free()) {
            Ok(drawn) => drawn.token,
            Err(limit) => return limit.into(),
        };
        if ends.contains(&token) {
            return Finish::Stop;
        }
        emit_tokens(&[token]);
    }
    Finish::Length
}

program!(answer);
