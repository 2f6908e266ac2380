//! Sequences in the hands of a program, and what it can do with them.
//!
//! A sequence is a list of tokens. Only while a token is to be drawn, and a little longer, does it have
//! a [lease](super::lease), by which the gateway computes it; what was computed of its tokens is in the
//! gateway's prefix cache, which is how sequences that begin alike share it.

use std::sync::Arc;

use realm_shared::run::{self, Dials, Open};
use realm_shared::wire::{Fault, MAX_TOP_LOGPROBS};
use wasmtime::component::{Resource, ResourceTableError};

use super::Failure;
use super::answering::Run;
use super::contract::program::realm::program::sequences::{
    Drawn, Exhausted, Host, HostSequence, Sampling,
};
use super::guest::OVER;
use super::lanes::take_turns;
use super::lease::Held;
use super::plan::{drawable, known, temperature};
use super::steering::Draw;
use crate::sampler::mix;

/// Sequences that a program may make, one after the other: the gateway keeps what was drawn for each.
const MAX_MADE: u32 = 1 << 16;

/// A sequence.
#[expect(
    unreachable_pub,
    reason = "what is generated names it as if it were public"
)]
pub struct Sequence {
    /// How many its program made before.
    number: u32,
    tokens: Vec<u32>,
    dials: Dials,
    alternatives: Option<u32>,
    /// Draws so far, replayed ones among them: the number of the next one's random numbers.
    draws: u32,
    /// What it drew in an earlier life and has not drawn again yet.
    journal: std::vec::IntoIter<run::Drawn>,
    asked: Asked,
    /// By which it is computed, from these very tokens. It may be over.
    lease: Option<Held>,
}

/// What was asked for and not taken yet.
enum Asked {
    Nothing,
    /// A token that was drawn in an earlier life.
    Before(run::Drawn),
    /// A token of the lease.
    Lease,
}

impl Sequence {
    /// Refuses a change while a token is asked for.
    fn at_rest(&self, what: &str) -> Result<(), Failure> {
        match self.asked {
            Asked::Nothing => Ok(()),
            _ => Err(plan(format!(
                "`{what}` while a token is asked for and not taken"
            ))),
        }
    }
}

fn plan(message: impl Into<String>) -> Failure {
    Failure::new(Fault::Plan, message)
}

impl Run {
    fn sequence(&mut self, handle: &Resource<Sequence>) -> wasmtime::Result<&mut Sequence> {
        Ok(self.table.get_mut(handle)?)
    }

    /// Takes in a new sequence.
    fn add(
        &mut self,
        tokens: Vec<u32>,
        dials: Dials,
        alternatives: Option<u32>,
    ) -> wasmtime::Result<Resource<Sequence>> {
        let number = self.made;
        if number >= MAX_MADE {
            let message = format!("it made more than {MAX_MADE} sequences");
            return Err(Failure::new(Fault::Output, message).into());
        }
        let sequence = Sequence {
            number,
            tokens,
            dials,
            alternatives,
            draws: 0,
            journal: self.journal(number).into_iter(),
            asked: Asked::Nothing,
            lease: None,
        };
        let handle = self.table.push(sequence).map_err(|e| match e {
            ResourceTableError::Full => {
                let most = self.table.max_capacity();
                let message = format!("it has more than {most} sequences at once");
                wasmtime::Error::new(Failure::new(Fault::Output, message))
            }
            e => e.into(),
        })?;
        self.made += 1;
        Ok(handle)
    }

    /// Tokens that there are.
    pub(super) fn known(&self, what: &str, tokens: &[u32]) -> Result<(), Failure> {
        let vocabulary = self.limits.vocabulary;
        let mut tokens = tokens.iter();
        tokens
            .try_for_each(|token| known(what, *token, vocabulary))
            .map_err(plan)
    }

    /// Key of the random numbers of a sequence. The first one draws what a request without a program
    /// does.
    fn key(&self, sequence: u32) -> u64 {
        match sequence {
            0 => self.guest.key,
            more => mix(mix(self.guest.key).wrapping_add(more.into())),
        }
    }
}

/// Dials that can be drawn with.
fn dials(sampling: Sampling) -> Result<Dials, Failure> {
    let Sampling {
        temperature: t,
        top_p,
        top_k,
        min_p,
    } = sampling;
    temperature(t).map_err(plan)?;
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(plan(format!("`top-p` is {top_p}")));
    }
    if !(0.0..=1.0).contains(&min_p) {
        return Err(plan(format!("`min-p` is {min_p}")));
    }
    Ok(Dials {
        temperature: t,
        top_p,
        top_k,
        min_p,
    })
}

impl Host for Run {}

impl HostSequence for Run {
    fn new(
        &mut self,
        prompt: Vec<u32>,
        sampling: Sampling,
        alternatives: Option<u32>,
    ) -> wasmtime::Result<Resource<Sequence>> {
        let context = self.limits.context;
        if prompt.is_empty() {
            return Err(plan("a sequence begins with no tokens").into());
        }
        if prompt.len() as u64 >= u64::from(context) {
            let length = prompt.len();
            let message =
                format!("a sequence begins with {length} tokens of a context of {context}");
            return Err(plan(message).into());
        }
        self.known("a sequence", &prompt)?;
        if let Some(n) = alternatives
            && n as usize > MAX_TOP_LOGPROBS
        {
            let message = format!("{n} alternatives are more than {MAX_TOP_LOGPROBS}");
            return Err(plan(message).into());
        }
        self.add(prompt, dials(sampling)?, alternatives)
    }

    fn fork(&mut self, this: Resource<Sequence>) -> wasmtime::Result<Resource<Sequence>> {
        let sequence = self.sequence(&this)?;
        sequence.at_rest("fork")?;
        let (dials, alternatives) = (sequence.dials, sequence.alternatives);
        let tokens = sequence.tokens.clone();
        self.add(tokens, dials, alternatives)
    }

    fn length(&mut self, this: Resource<Sequence>) -> wasmtime::Result<u32> {
        let length = self.sequence(&this)?.tokens.len();
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }

    fn append(&mut self, this: Resource<Sequence>, tokens: Vec<u32>) -> wasmtime::Result<()> {
        self.known("`append`", &tokens)?;
        let context = self.limits.context;
        let sequence = self.sequence(&this)?;
        sequence.at_rest("append")?;
        let length = sequence.tokens.len() + tokens.len();
        if length as u64 > u64::from(context) {
            let message = format!("`append` makes {length} tokens of a context of {context}");
            return Err(plan(message).into());
        }
        if !tokens.is_empty() {
            sequence.tokens.extend(tokens);
            sequence.lease = None;
        }
        Ok(())
    }

    fn truncate(&mut self, this: Resource<Sequence>, length: u32) -> wasmtime::Result<()> {
        let sequence = self.sequence(&this)?;
        sequence.at_rest("truncate")?;
        let before = sequence.tokens.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length == 0 || length > before {
            let message = format!("`truncate` to {length} of {before} tokens");
            return Err(plan(message).into());
        }
        if length < before {
            sequence.tokens.truncate(length);
            sequence.lease = None;
        }
        Ok(())
    }

    fn ask(
        &mut self,
        this: Resource<Sequence>,
        how: Draw,
    ) -> wasmtime::Result<Result<(), Exhausted>> {
        let context = u64::from(self.limits.context);
        let exhausted = self.asked >= self.limits.budget;
        let vocabulary = self.limits.vocabulary;
        let sequence = self.sequence(&this)?;
        sequence.at_rest("ask")?;
        drawable(&how, vocabulary).map_err(plan)?;
        if sequence.tokens.len() as u64 >= context {
            return Ok(Err(Exhausted::Context));
        }
        if exhausted {
            return Ok(Err(Exhausted::Tokens));
        }
        let before = sequence.draws;
        sequence.draws = before.wrapping_add(1);
        if let Some(drawn) = sequence.journal.next() {
            sequence.asked = Asked::Before(drawn);
            self.asked += 1;
            return Ok(Ok(()));
        }
        sequence.asked = Asked::Lease;
        let how = Arc::new(how);
        let open = match &sequence.lease {
            Some(lease) if lease.ask(&how) => None,
            _ => Some((
                sequence.number,
                sequence.tokens.clone(),
                sequence.dials,
                sequence.alternatives,
            )),
        };
        self.asked += 1;
        if let Some((number, prompt, dials, alternatives)) = open {
            let lease = self.leases.make(self.voice.clone(), how, before);
            let open = Open {
                lease: lease.name(),
                sequence: number,
                prompt,
                dials,
                key: self.key(number),
                alternatives,
            };
            self.sequence(&this)?.lease = Some(lease);
            self.say_text();
            self.voice.open(open);
        }
        Ok(Ok(()))
    }

    async fn take(&mut self, this: Resource<Sequence>) -> wasmtime::Result<Drawn> {
        self.say_text();
        let sequence = self.sequence(&this)?;
        let asked = std::mem::replace(&mut sequence.asked, Asked::Nothing);
        let drawn = match (asked, &sequence.lease) {
            (Asked::Before(drawn), _) => {
                // They may be thousands of calls, each of them short.
                take_turns().await;
                drawn
            }
            (Asked::Lease, Some(lease)) => match lease.drawn().await {
                Some(drawn) => drawn?,
                None => return Err(Failure::new(Fault::Trap, OVER).into()),
            },
            (Asked::Nothing | Asked::Lease, _) => {
                return Err(plan("`take` of a token that was not asked for").into());
            }
        };
        let sequence = self.sequence(&this)?;
        sequence.tokens.push(drawn.token);
        let number = sequence.number;
        self.has_taken(number);
        self.guest.meter.begin_stretch();
        Ok(Drawn {
            token: drawn.token,
            logprob: drawn.logprob,
            alternatives: drawn.alternatives,
        })
    }

    fn drop(&mut self, this: Resource<Sequence>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}
