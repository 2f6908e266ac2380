//! A program that prefers what follows from the whole prompt to what would follow from its end alone:
//! `{"program": {"args": {"strength": 0.5, "window": 16, "cutoff": 0.1}}}`.
//!
//! Contrastive decoding (Li et al., 2022), with a short-sighted view of the same model as the amateur. A
//! token's score is its log-probability after all of the text, and `strength` times what that is more than
//! after the last `window` tokens of the prompt. Only tokens at least `cutoff` times as likely as the likeliest
//! are drawn. All of that is computed where the model is; no logits come here.

use realm_program::program::{Finish, Request, Sequence, emit_tokens};
use realm_program::tensor::Tensor;
use realm_program::{Draw, Error, program, text};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default)]
struct Args {
    strength: f32,
    window: usize,
    cutoff: f32,
}

impl Default for Args {
    fn default() -> Self {
        Args {
            strength: 0.5,
            window: 16,
            cutoff: 0.1,
        }
    }
}

fn answer(request: Request) -> Result<Finish, Error> {
    let args: Args = request.args()?;
    if args.window == 0 {
        return Err("program.args.window: it must be at least 1".into());
    }
    if !(args.cutoff > 0.0 && args.cutoff <= 1.0) {
        return Err("program.args.cutoff: it must be more than 0 and at most 1".into());
    }
    let ends = text::end_tokens();
    let prompt = &request.prompt;
    let end = &prompt[prompt.len().saturating_sub(args.window)..];
    let mut expert = Sequence::new(prompt, request.sampling);
    let mut amateur = Sequence::new(end, request.sampling);
    for _ in 0..request.max_tokens {
        if expert.ask_logits().and(amateur.ask_logits()).is_err() {
            return Ok(Finish::Length);
        }
        let scores = contrast(&args, &expert.take_logits(), &amateur.take_logits());
        let Ok(drawn) = expert.draw_from(&scores, &Draw::free()) else {
            return Ok(Finish::Length);
        };
        if ends.contains(&drawn.token) {
            return Ok(Finish::Stop);
        }
        emit_tokens(&[drawn.token]);
        // The amateur follows.
        if amateur.draw(&Draw::only([drawn.token])).is_err() {
            return Ok(Finish::Length);
        }
    }
    Ok(Finish::Length)
}

fn contrast(args: &Args, expert: &Tensor, amateur: &Tensor) -> Tensor {
    let (expert, amateur) = (expert.log_softmax(), amateur.log_softmax());
    let scores = &expert + &(&(&expert - &amateur) * args.strength);
    let above_cutoff = &(&expert - &expert.max()) + -args.cutoff.ln();
    scores.where_not_negative(&above_cutoff)
}

program!(answer);
