//! A program that draws several answers side by side and gives the one that is likeliest by the model,
//! token for token: `{"program": {"args": {"n": 4}}}`.
//!
//! The prompt is computed once: sequences share what they have in common at their beginning.

use realm_program::program::{Finish, Request, Sequence, emit_tokens};
use realm_program::{Draw, Error, Token, program, text};
use serde::Deserialize;

/// Answers that are drawn where nothing is said, and at most.
const USUAL: usize = 4;
const MOST: usize = 8;

#[derive(Deserialize)]
struct Args {
    #[serde(default = "usual")]
    n: usize,
}

fn usual() -> usize {
    USUAL
}

/// An answer that is drawn.
struct Candidate {
    sequence: Sequence,
    tokens: Vec<Token>,
    /// Sum of the log-probabilities of all that was drawn for it.
    score: f32,
    drawn: u32,
    finish: Option<Finish>,
}

impl Candidate {
    fn of(sequence: Sequence) -> Self {
        Candidate {
            sequence,
            tokens: Vec::new(),
            score: 0.0,
            drawn: 0,
            finish: None,
        }
    }

    /// Asks for the next token, if there is to be one.
    fn ask(&mut self, most: u32) -> bool {
        if self.finish.is_none() && self.drawn == most {
            self.finish = Some(Finish::Length);
        }
        if self.finish.is_none() {
            self.finish = self.sequence.ask(&Draw::free()).err().map(Finish::from);
        }
        self.finish.is_none()
    }

    fn take(&mut self, ends: &[Token]) {
        let drawn = self.sequence.take();
        self.drawn += 1;
        self.score += drawn.logprob;
        match ends.contains(&drawn.token) {
            true => self.finish = Some(Finish::Stop),
            false => self.tokens.push(drawn.token),
        }
    }

    /// Its log-probability for each token, so that a short answer is not better for being short.
    fn merit(&self) -> f32 {
        self.score / self.drawn.max(1) as f32
    }
}

fn answer(request: Request) -> Result<Finish, Error> {
    let Args { n } = request.args()?;
    if !(1..=MOST).contains(&n) {
        return Err(format!("program.args.n: {n} is not between 1 and {MOST}").into());
    }
    let ends = text::end_tokens();
    let first = Sequence::scored(&request.prompt, request.sampling, 0);
    let mut candidates: Vec<_> = (1..n).map(|_| Candidate::of(first.fork())).collect();
    candidates.push(Candidate::of(first));
    loop {
        let asked: Vec<_> = candidates
            .iter_mut()
            .filter_map(|candidate| candidate.ask(request.max_tokens).then_some(candidate))
            .collect();
        if asked.is_empty() {
            break;
        }
        for candidate in asked {
            candidate.take(&ends);
        }
    }
    // Of equals, the first.
    let best = candidates
        .into_iter()
        .rev()
        .max_by(|a, b| a.merit().total_cmp(&b.merit()))
        .ok_or("there is no candidate")?;
    emit_tokens(&best.tokens);
    Ok(best.finish.unwrap_or(Finish::Stop))
}

program!(answer);
