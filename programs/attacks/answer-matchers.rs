//! Does with matchers what the request says: compiles one, forks it, goes on and back.

use realm_program::grammar::{Grammar, Matcher};
use realm_program::program::{Finish, Request, emit};
use realm_program::{Error, program};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default)]
struct Args {
    lark: String,
    /// The grammar is this text, so many times.
    times: usize,
    /// Compiles it so often.
    compile: u32,
    /// Keeps so many forks.
    forks: usize,
    /// Takes the lowest token that may come next, so many times.
    tokens: u32,
    rollback: u32,
}

impl Default for Args {
    fn default() -> Self {
        Args {
            lark: String::new(),
            times: 1,
            compile: 1,
            forks: 0,
            tokens: 0,
            rollback: 0,
        }
    }
}

fn answer(request: Request) -> Result<Finish, Error> {
    let args: Args = request.args()?;
    let grammar = Grammar::Lark(args.lark.repeat(args.times));
    let mut matcher = Matcher::compile(&grammar)?;
    for _ in 1..args.compile {
        matcher = Matcher::compile(&grammar)?;
    }
    let forks: Vec<_> = (0..args.forks).map(|_| matcher.fork()).collect();
    for n in 0..args.tokens {
        let realm_program::Allowed::Mask(mask) = matcher.draw()?.ok_or("over")?.allowed else {
            return Err("no mask".into());
        };
        let word = mask.iter().position(|word| *word != 0).ok_or("nothing")?;
        let token = word as u32 * 32 + mask[word].trailing_zeros();
        if matcher.accept(&[token])? != 1 {
            return Err(format!("token {n} does not fit").into());
        }
    }
    matcher.rollback(args.rollback);
    emit(&format!(
        "{} forks, complete: {}",
        forks.len(),
        matcher.is_complete()
    ));
    Ok(Finish::Stop)
}

program!(answer);
