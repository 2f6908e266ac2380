//! Changes its sequences in every way while it draws, and says what came of it: for tests.

use realm_program::program::{Exhausted, Finish, Request, Sequence, emit};
use realm_program::{Draw, Error, program, random};

fn answer(request: Request) -> Result<Finish, Error> {
    let mut all = vec![Sequence::scored(&request.prompt, request.sampling, 2)];
    let mut drawn = 0;
    for round in 0..request.max_tokens {
        let at = round as usize % all.len();
        let one = &mut all[at];
        match round % 5 {
            1 => one.append(&[5, 6, 7]),
            2 => one.truncate(one.length() - 1),
            3 if all.len() < 4 => {
                let fork = all[at].fork();
                all.push(fork);
            }
            4 if all.len() > 2 => drop(all.swap_remove(0)),
            _ => {}
        }
        // All at once, and taken the other way round.
        for one in &mut all {
            match one.ask(&Draw::free().bias(9, 0.5)) {
                Ok(()) => {}
                Err(Exhausted::Context | Exhausted::Tokens) => return Ok(Finish::Length),
            }
        }
        for one in all.iter_mut().rev() {
            let token = one.take();
            drawn += 1;
            emit(&format!(
                "{}:{:.3}/{} ",
                token.token,
                token.logprob,
                token.alternatives.len()
            ));
        }
    }
    emit(&format!("{drawn} {}", random()));
    Ok(Finish::Stop)
}

program!(answer);
