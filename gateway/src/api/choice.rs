//! One choice of an answer: from what the scheduler says to text that may be sent.

use std::collections::VecDeque;
use std::sync::Arc;

use realm_shared::run::Part;

use super::calls::{Call, CallHead};
use super::random;
use crate::batching::sequence::{Event, FailReason, FinishReason, Sequence, TokenLogprobs};
use crate::text::{Detokenizer, Search, StopMatcher, Text};

/// What became certain about a choice.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Delta {
    /// Text that follows what was there before.
    pub(super) text: String,
    /// The tokens of that text, if the request asked for log-probabilities.
    pub(super) tokens: Vec<Scored>,
    /// Calls of tools, or what follows of them.
    pub(super) calls: Vec<Call>,
    /// Why the choice is over, with its last delta.
    pub(super) finish: Option<FinishReason>,
}

impl Delta {
    /// Adds what came later, so that all deltas together make the whole choice.
    pub(super) fn extend(&mut self, later: Delta) {
        self.text.push_str(&later.text);
        self.tokens.extend(later.tokens);
        for call in later.calls {
            match self.calls.last_mut() {
                Some(last) if last.index == call.index => last.arguments.push_str(&call.arguments),
                _ => self.calls.push(call),
            }
        }
        self.finish = later.finish.or(self.finish);
    }
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    pub(super) token: u32,
    /// Character of the choice's text at which the token's text begins.
    pub(super) start: usize,
    /// Missing for the first token of a prompt, which nothing precedes.
    pub(super) logprobs: Option<TokenLogprobs>,
}

/// A prompt that its answer repeats.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Echo {
    /// The prompt's text.
    pub(super) text: String,
    /// Character of the text at which each token begins; empty unless log-probabilities of the
    /// prompt are to come.
    pub(super) offsets: Vec<usize>,
}

/// The state of one choice while it is generated.
#[derive(Debug)]
pub(super) struct Choice {
    text: Arc<Text>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    stop_ids: Vec<u32>,
    min_tokens: u32,
    scored: bool,
    /// Characters decoded and characters let through, an echoed prompt included.
    decoded: usize,
    emitted: usize,
    /// Tokens whose text was not let through yet.
    waiting: VecDeque<Scored>,
    /// The prompt, until it is sent; its tokens get their log-probabilities meanwhile.
    echo: Option<(String, Vec<Scored>)>,
    prompt_tokens: usize,
    /// Those of them that were not computed for this.
    cached: usize,
    generated: u32,
    /// Calls that began.
    calls: usize,
    over: bool,
}

impl Choice {
    /// For the answer to `sequence`. `stop` are its stop strings.
    pub(super) fn new(
        text: Arc<Text>,
        sequence: &Sequence,
        detokenizer: Detokenizer,
        stop: Vec<String>,
        echo: Option<Echo>,
    ) -> Self {
        let sampling = &sequence.sampling;
        let prompt = sequence.prompt.iter();
        Choice {
            text,
            detokenizer,
            stop: StopMatcher::new(stop),
            stop_ids: sampling
                .stop_ids
                .iter()
                .take(sampling.stop_count as usize)
                .copied()
                .collect(),
            min_tokens: sampling.min_tokens,
            scored: sampling.top_logprobs >= 0,
            decoded: 0,
            emitted: 0,
            waiting: VecDeque::new(),
            echo: echo.map(|echo| {
                let tokens = prompt.zip(echo.offsets).map(|(&token, start)| Scored {
                    token,
                    start,
                    logprobs: None,
                });
                (echo.text, tokens.collect())
            }),
            prompt_tokens: sequence.prompt.len(),
            cached: 0,
            generated: 0,
            calls: 0,
            over: false,
        }
    }

    /// Tokens generated so far, one that ended the sequence included.
    pub(super) fn generated(&self) -> u32 {
        self.generated
    }

    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Those of them that had been computed before.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    /// Whether the last delta was given out.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Takes what happened; gives what became certain by it. Nothing does after the end.
    pub(super) fn push(&mut self, event: Event) -> Result<Delta, FailReason> {
        let mut delta = Delta::default();
        if self.over {
            return Ok(delta);
        }
        match event {
            Event::Started { cached } => self.cached = cached,
            Event::PromptLogprobs { start, entries } => {
                self.score_prompt(start, entries, &mut delta);
            }
            Event::Token { token, logprobs } => {
                self.release_echo(&mut delta);
                self.generated += 1;
                if !self.stop_ids.contains(&token) {
                    self.token(token, logprobs, &mut delta);
                }
            }
            Event::Emitted { part, tokens } => {
                self.generated += tokens;
                self.emit(part, &mut delta);
            }
            Event::Finished(reason) => {
                self.release_echo(&mut delta);
                let mut piece = String::new();
                self.detokenizer.finish(&mut piece);
                if self.let_through(&piece, &mut delta) == Search::Open {
                    self.stop.finish(&mut delta.text);
                    delta.tokens.extend(self.waiting.drain(..));
                    delta.finish = Some(reason);
                }
                self.over = true;
            }
            Event::Failed(reason) => return Err(reason),
        }
        Ok(delta)
    }

    /// Stop strings are looked for in the text alone, as if there were no calls in it.
    fn emit(&mut self, part: Part, delta: &mut Delta) {
        match part {
            Part::Text(text) => {
                self.decoded += text.chars().count();
                self.let_through(&text, delta);
            }
            Part::Call(name) => {
                let id = random::call_id();
                delta.calls.push(Call {
                    index: self.calls,
                    head: Some(CallHead { id, name }),
                    arguments: String::new(),
                });
                self.calls += 1;
            }
            Part::Arguments(arguments) => {
                // Only a worker that is broken says some without a call.
                let last = self.calls.checked_sub(1);
                delta.calls.extend(last.map(|index| Call {
                    index,
                    head: None,
                    arguments,
                }));
            }
        }
    }

    fn token(&mut self, token: u32, logprobs: Option<TokenLogprobs>, delta: &mut Delta) {
        let mut piece = String::new();
        self.detokenizer
            .push(&self.text.tokenizer, token, &mut piece);
        if self.scored {
            self.waiting.push_back(Scored {
                token,
                start: self.decoded,
                logprobs,
            });
        }
        self.decoded += piece.chars().count();
        if self.generated <= self.min_tokens {
            // Stop strings do not count in text that was asked for at least.
            delta.text.push_str(&piece);
            self.emitted += piece.chars().count();
            self.release_tokens(delta);
        } else {
            self.let_through(&piece, delta);
        }
    }

    /// Passes text through the stop strings. The tokens that go with it are those that begin
    /// before its end, so that none is reported from behind a stop string.
    fn let_through(&mut self, piece: &str, delta: &mut Delta) -> Search {
        let before = delta.text.len();
        let search = self.stop.push(piece, &mut delta.text);
        self.emitted += delta.text.get(before..).map_or(0, |t| t.chars().count());
        self.release_tokens(delta);
        if search == Search::Hit {
            self.waiting.clear();
            delta.finish = Some(FinishReason::Stop);
            self.over = true;
        }
        search
    }

    fn release_tokens(&mut self, delta: &mut Delta) {
        while let Some(scored) = self.waiting.pop_front_if(|s| s.start < self.emitted) {
            delta.tokens.push(scored);
        }
    }

    /// Entry `i` scores prompt token `start + 1 + i`. The prompt is sent once all are there.
    fn score_prompt(&mut self, start: usize, entries: Vec<TokenLogprobs>, delta: &mut Delta) {
        let Some((_, tokens)) = &mut self.echo else {
            return;
        };
        let behind = tokens.iter_mut().skip(start.saturating_add(1));
        for (scored, entry) in behind.zip(entries) {
            scored.logprobs = Some(entry);
        }
        if tokens.iter().skip(1).all(|s| s.logprobs.is_some()) {
            self.release_echo(delta);
        }
    }

    fn release_echo(&mut self, delta: &mut Delta) {
        if let Some((text, tokens)) = self.echo.take() {
            self.decoded = text.chars().count();
            self.emitted = self.decoded;
            delta.text = text;
            delta.tokens = tokens;
        }
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
