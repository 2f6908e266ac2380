//! Sequences in the hands of a program, and what it can do with them.
//!
//! A sequence is a list of tokens. Only while a token is to be drawn, and a little longer, does it have
//! a [lease](super::lease), by which the gateway computes it; what was computed of its tokens is in the
//! gateway's prefix cache, which is how sequences that begin alike share it.

use std::sync::Arc;

use realm_shared::run::{self, Dials, Keep, MOST_KEPT, MOST_NAME, MOST_SECONDS, Open, What};
use realm_shared::wire::{Fault, MAX_TOP_LOGPROBS};
use wasmtime::component::Resource;

use super::Failure;
use super::answering::Run;
use super::contract::program::realm::program::sequences::{
    Drawn, Exhausted, Host, HostSequence, Sampling,
};
use super::guest::OVER;
use super::handles::hold;
use super::lanes::take_turns;
use super::lease::{Answer, Held, Lease, Question, Sight};
use super::plan::{drawable, known, temperature};
use super::steering::Draw;
use super::tensors::Tensor;
use crate::sampler::{clean, mix};

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
    pub(super) asked: Asked,
    /// By which it is computed, from these very tokens. It may be over.
    pub(super) lease: Option<Held>,
}

/// What was asked for and not taken yet.
pub(super) enum Asked {
    Nothing,
    /// A token that was drawn in an earlier life.
    Before(run::Drawn),
    /// A token of the lease.
    Lease,
    /// What the model computed for the lease.
    Sight(Sight),
    /// The same of an earlier life, which is hardly needed now.
    SightBefore(Sight),
}

/// What a sequence is computed from.
#[derive(Clone)]
pub(super) struct Wanted {
    number: u32,
    tokens: Vec<u32>,
    dials: Dials,
    alternatives: Option<u32>,
    /// Draws before.
    draws: u32,
}

impl Wanted {
    /// Bytes of its tokens.
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.tokens) as u64
    }
}

impl Sequence {
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            number: self.number,
            tokens: self.tokens.clone(),
            dials: self.dials,
            alternatives: self.alternatives,
            draws: self.draws,
        }
    }

    /// The lease by which what was asked for comes; None if it is there.
    fn awaited(&self) -> Option<Arc<Lease>> {
        match (&self.asked, &self.lease) {
            (Asked::Lease | Asked::Sight(_), Some(held)) => Some(held.lease()),
            _ => None,
        }
    }

    /// Refuses a change while a token is asked for.
    fn at_rest(&self, what: &str) -> Result<(), Failure> {
        match self.asked {
            Asked::Nothing => Ok(()),
            _ => Err(plan(format!(
                "`{what}` while something is asked for and not taken"
            ))),
        }
    }
}

pub(super) fn plan(message: impl Into<String>) -> Failure {
    Failure::new(Fault::Plan, message)
}

/// Nobody waits for the program any more.
pub(super) fn over() -> wasmtime::Error {
    Failure::new(Fault::Trap, OVER).into()
}

impl Run {
    pub(super) fn sequence(
        &mut self,
        handle: &Resource<Sequence>,
    ) -> wasmtime::Result<&mut Sequence> {
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
            asked: Asked::Nothing,
            lease: None,
        };
        let handle = hold(&mut self.table, sequence, Fault::Handles, "sequences")?;
        self.made += 1;
        Ok(handle)
    }

    /// Whether a token may be asked for.
    pub(super) fn may_draw(
        &mut self,
        this: &Resource<Sequence>,
        what: &str,
    ) -> wasmtime::Result<Result<(), Exhausted>> {
        let context = u64::from(self.limits.context);
        let exhausted = self.asked >= self.limits.budget;
        let sequence = self.sequence(this)?;
        sequence.at_rest(what)?;
        if sequence.tokens.len() as u64 >= context {
            return Ok(Err(Exhausted::Context));
        }
        Ok(match exhausted {
            true => Err(Exhausted::Tokens),
            false => Ok(()),
        })
    }

    /// Asks for a token that was drawn in an earlier life, if there is one.
    fn ask_journal(&mut self, this: &Resource<Sequence>) -> wasmtime::Result<bool> {
        let number = self.sequence(this)?.number;
        let Some(drawn) = self.replay.draw(number) else {
            return Ok(false);
        };
        let sequence = self.sequence(this)?;
        sequence.draws = sequence.draws.wrapping_add(1);
        sequence.asked = Asked::Before(drawn);
        self.asked += 1;
        Ok(true)
    }

    /// Asks the engine, by a new lease where the sequence has none that goes on.
    pub(super) fn ask_lease(
        &mut self,
        this: &Resource<Sequence>,
        question: Question,
    ) -> wasmtime::Result<()> {
        let sequence = self.sequence(this)?;
        let (asked, draws) = match question {
            Question::Show(sight) => (Asked::Sight(sight), false),
            Question::Draw(_) | Question::DrawFrom(..) => (Asked::Lease, true),
        };
        sequence.asked = asked;
        let goes_on = |lease: &Held| lease.ask(&question);
        if !sequence.lease.as_ref().is_some_and(goes_on) {
            let wanted = sequence.wanted();
            let lease = self.open(wanted, question);
            self.sequence(this)?.lease = Some(lease);
        }
        let sequence = self.sequence(this)?;
        sequence.draws = sequence.draws.wrapping_add(draws.into());
        self.asked += 1;
        Ok(())
    }

    /// Has a sequence computed.
    pub(super) fn open(&mut self, wanted: Wanted, question: Question) -> Held {
        let lease = self.leases.make(self.voice.clone(), question, wanted.draws);
        let open = Open {
            lease: lease.name(),
            sequence: wanted.number,
            prompt: wanted.tokens,
            dials: wanted.dials,
            key: self.key(wanted.number),
            alternatives: wanted.alternatives,
        };
        self.say_given();
        self.voice.open(open);
        lease
    }

    /// Has tokens kept under a name.
    fn keep(&mut self, name: String, seconds: u32, tokens: Vec<u32>) -> Result<(), Failure> {
        let Some(room) = self.keep_room.checked_sub(1 + tokens.len()) else {
            let message = format!("it saves more than {MOST_KEPT} tokens");
            return Err(Failure::new(Fault::Output, message));
        };
        self.keep_room = room;
        self.say_given();
        self.say(What::Keep(Keep {
            name,
            seconds,
            tokens,
        }));
        Ok(())
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

/// Alternatives that a draw can report.
fn scored(alternatives: Option<u32>) -> Result<(), Failure> {
    match alternatives {
        Some(n) if n as usize > MAX_TOP_LOGPROBS => Err(plan(format!(
            "{n} alternatives are more than {MAX_TOP_LOGPROBS}"
        ))),
        _ => Ok(()),
    }
}

/// A name that tokens can be kept under.
fn named(what: &str, name: String) -> Result<String, Failure> {
    match name.len() {
        1..=MOST_NAME => Ok(name),
        bytes => Err(plan(format!(
            "`{what}` with a name of {bytes} bytes, not 1 to {MOST_NAME}"
        ))),
    }
}

impl Host for Run {
    /// Which is first hangs on the time, and so is something that a program sees. Whether it is there
    /// when another worker shows it again is no matter: taking it waits for it.
    async fn wait_any(&mut self, handles: Vec<Resource<Sequence>>) -> wasmtime::Result<u32> {
        if handles.is_empty() {
            return Err(plan("`wait-any` of no sequences").into());
        }
        let (given, most) = (handles.len(), self.limits.sequences);
        if given as u64 > u64::from(most) {
            let message = format!("`wait-any` of {given} sequences, of which it may have {most}");
            return Err(plan(message).into());
        }
        let mut awaited = Vec::new();
        for handle in &handles {
            let sequence = self.sequence(handle)?;
            if let Asked::Nothing = sequence.asked {
                return Err(plan("`wait-any` of what was not asked for").into());
            }
            awaited.push(sequence.awaited());
        }
        self.say_given();
        if let Some(seen) = self.saw() {
            take_turns().await;
            let first = seen.first().copied();
            let first = first.filter(|first| (*first as usize) < handles.len());
            return first.ok_or_else(|| plan("`wait-any` of other sequences than before").into());
        }
        let is_there = |lease: &Option<Arc<Lease>>| lease.as_ref().is_none_or(|l| l.is_answered());
        let life = self.voice.life();
        let first = life.wait_for(|| awaited.iter().position(is_there)).await;
        let first = first.ok_or_else(over)?;
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        self.sees(&[first])?;
        Ok(first)
    }
}

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
        scored(alternatives)?;
        self.add(prompt, dials(sampling)?, alternatives)
    }

    async fn reopen(
        &mut self,
        name: String,
        sampling: Sampling,
        alternatives: Option<u32>,
    ) -> wasmtime::Result<Option<Resource<Sequence>>> {
        let (name, dials) = (named("reopen", name)?, dials(sampling)?);
        scored(alternatives)?;
        let tokens = match self.saw() {
            Some(tokens) => {
                take_turns().await;
                tokens
            }
            None => {
                self.say_look(What::Reopen(name));
                let tokens = self.voice.clone().told().await.ok_or_else(over)?;
                self.guest.meter.begin_stretch();
                self.has_seen(tokens.len())?;
                tokens
            }
        };
        match tokens.is_empty() {
            true => Ok(None),
            false => self.add(tokens, dials, alternatives).map(Some),
        }
    }

    fn forget(&mut self, name: String) -> wasmtime::Result<()> {
        let name = named("forget", name)?;
        Ok(self.keep(name, 0, Vec::new())?)
    }

    fn save(
        &mut self,
        this: Resource<Sequence>,
        name: String,
        seconds: u32,
    ) -> wasmtime::Result<()> {
        let name = named("save", name)?;
        if !(1..=MOST_SECONDS).contains(&seconds) {
            let message = format!("`save` for {seconds} seconds, not 1 to {MOST_SECONDS}");
            return Err(plan(message).into());
        }
        let sequence = self.sequence(&this)?;
        sequence.at_rest("save")?;
        let tokens = sequence.tokens.clone();
        Ok(self.keep(name, seconds, tokens)?)
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
        drawable(&how, self.limits.vocabulary).map_err(plan)?;
        if let Err(exhausted) = self.may_draw(&this, "ask")? {
            return Ok(Err(exhausted));
        }
        if !self.ask_journal(&this)? {
            self.ask_lease(&this, Question::Draw(Arc::new(how)))?;
        }
        Ok(Ok(()))
    }

    async fn ask_from(
        &mut self,
        this: Resource<Sequence>,
        logits: Resource<Tensor>,
        how: Draw,
    ) -> wasmtime::Result<Result<(), Exhausted>> {
        let vocabulary = self.limits.vocabulary;
        drawable(&how, vocabulary).map_err(plan)?;
        let logits = self.tensors.get(&logits)?.value();
        if logits.shape() != [i64::from(vocabulary)].as_slice() {
            let shape = logits.shape();
            let message = format!("`ask-from` logits of shape {shape:?}, not [{vocabulary}]");
            return Err(plan(message).into());
        }
        if let Err(exhausted) = self.may_draw(&this, "ask-from")? {
            return Ok(Err(exhausted));
        }
        if !self.ask_journal(&this)? {
            let mut logits = self.numbers(&logits).await?;
            if !clean(&mut logits) {
                return Err(plan("`ask-from` logits of which none is a number").into());
            }
            let question = Question::DrawFrom(Arc::new(how), logits.into());
            self.ask_lease(&this, question)?;
        }
        Ok(Ok(()))
    }

    async fn take(&mut self, this: Resource<Sequence>) -> wasmtime::Result<Drawn> {
        self.say_given();
        let sequence = self.sequence(&this)?;
        let asked = std::mem::replace(&mut sequence.asked, Asked::Nothing);
        let drawn = match (asked, &sequence.lease) {
            (Asked::Before(drawn), _) => {
                // They may be thousands of calls, each of them short.
                take_turns().await;
                drawn
            }
            (Asked::Lease, Some(lease)) => match lease.answered().await {
                Some(Ok(Answer::Drawn(drawn))) => drawn,
                Some(Err(failure)) => return Err(failure.into()),
                Some(Ok(Answer::Shown(_))) | None => return Err(over()),
            },
            (_, _) => {
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

    fn ask_logits(&mut self, this: Resource<Sequence>) -> wasmtime::Result<Result<(), Exhausted>> {
        self.ask_sight(&this, Sight::Logits)
    }

    async fn take_logits(
        &mut self,
        this: Resource<Sequence>,
    ) -> wasmtime::Result<Resource<Tensor>> {
        self.take_sight(&this, Sight::Logits).await
    }

    fn ask_hidden(&mut self, this: Resource<Sequence>) -> wasmtime::Result<Result<(), Exhausted>> {
        self.ask_sight(&this, Sight::Hidden)
    }

    async fn take_hidden(
        &mut self,
        this: Resource<Sequence>,
    ) -> wasmtime::Result<Resource<Tensor>> {
        self.take_sight(&this, Sight::Hidden).await
    }

    fn drop(&mut self, this: Resource<Sequence>) -> wasmtime::Result<()> {
        let sequence = self.table.delete(this)?;
        self.replay.close(sequence.number);
        Ok(())
    }
}
