//! The sequences of a program: lists of tokens, of which the gateway computes those that a token is
//! asked for.
//!
//! While a program goes on asking, its sequence has a *lease*: the gateway computes it as a sequence of
//! its own, which the lease steers. All that changes the list otherwise ends the lease, and the next
//! token that is asked for begins another one.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use realm_shared::detokenize::Detokenizer;
use realm_shared::run::{Dials, Drawn, Journal, Open, PORTION, Request, What};
use realm_shared::wire::{Fault, MAX_TOP_LOGPROBS};
use wasmtime::component::{Resource, ResourceTable};

use super::guest::answering::realm::program::{client, sequences};
use super::guest::{Draw, Guest};
use super::outbox::Outbox;
use super::steering::{Accepted, Bell, Mail, Steering};
use super::{Failure, plan};
use crate::sampler::mix;

/// Sequences that a program may make, one after the other: what it drew for each is kept.
const MAX_MADE: u32 = 1 << 16;
/// Bytes of text that a program may give out.
const MAX_TEXT: usize = 1 << 20;

/// The leases of one gateway.
#[derive(Default)]
pub(super) struct Leases {
    /// By number: the mail, and how many tokens of the sequence were drawn before.
    live: Mutex<HashMap<u64, (Arc<Mail>, u32)>>,
    last: AtomicU64,
}

impl Leases {
    /// What steers the sequence of a lease, which may be over by now.
    pub(super) fn join(&self, number: u64, bell: &Arc<Bell>) -> Steering {
        match self.lock().get(&number) {
            Some((mail, drawn)) => Steering::of_lease(mail.clone(), *drawn),
            None => Steering::stopped(bell.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (Arc<Mail>, u32)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sequence that the gateway computes. It ends with the value.
struct Lease {
    leases: Arc<Leases>,
    number: u64,
    mail: Arc<Mail>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.number);
        self.mail.let_go();
    }
}

/// Whether somebody waits for a run.
#[derive(Default)]
pub(super) struct Audience {
    left: Arc<AtomicBool>,
    waker: Mutex<Option<Waker>>,
}

impl Audience {
    /// Nobody does, from here on.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// True once it has left.
    pub(super) fn left(&self) -> Arc<AtomicBool> {
        self.left.clone()
    }

    /// Wakes the task that asks when it leaves, which it may have already.
    pub(super) fn has_left_or_will_wake(&self, waker: &Waker) -> bool {
        *self.waker() = Some(waker.clone());
        self.has_left()
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a program has beside what every instance has.
pub(super) struct Answerer {
    pub(super) guest: Guest,
    pub(super) table: ResourceTable,
    pub(super) desk: Desk,
    /// Spells the tokens that it gives out, from the first of them on.
    pub(super) speller: Option<Detokenizer>,
}

/// How a program is heard.
pub(super) struct Voice {
    pub(super) run: u64,
    pub(super) outbox: Arc<Outbox>,
    pub(super) audience: Arc<Audience>,
    /// Tokens that it has taken.
    pub(super) taken: AtomicU64,
}

impl Voice {
    pub(super) fn say(&self, what: What) {
        // What nobody waits for would stay in the way of others.
        if !self.audience.has_left() {
            let taken = self.taken.load(Ordering::Relaxed);
            self.outbox.say(self.run, taken, what);
        }
    }
}

/// A program's side of its run.
pub(super) struct Desk {
    pub(super) voice: Arc<Voice>,
    pub(super) leases: Arc<Leases>,
    pub(super) bell: Arc<Bell>,
    pub(super) vocabulary: u32,
    /// Sequences that it may have at once.
    pub(super) most: u32,
    context: usize,
    key: u64,
    /// Draws that are left of all it may make.
    left: u64,
    /// What it took in an earlier life, by sequence.
    journal: Vec<VecDeque<Drawn>>,
    /// Sequences made, and those of them that it has.
    made: u32,
    has: u32,
    /// Bytes of text given out.
    emitted: usize,
}

/// What a desk is furnished with.
pub(super) struct Means {
    pub(super) voice: Arc<Voice>,
    pub(super) leases: Arc<Leases>,
    pub(super) bell: Arc<Bell>,
    /// Tokens of the vocabulary.
    pub(super) vocabulary: u32,
    /// Sequences that the program may have at once.
    pub(super) most: u32,
}

impl Desk {
    /// That of a program which answers `request`, and took what is in `journal` before.
    pub(super) fn new(means: Means, request: &Request, journal: Journal) -> Desk {
        let Means {
            voice,
            leases,
            bell,
            vocabulary,
            most,
        } = means;
        Desk {
            voice,
            leases,
            bell,
            vocabulary,
            most,
            context: request.context as usize,
            key: request.key,
            left: request.budget,
            journal: journal.0.into_iter().map(VecDeque::from).collect(),
            made: 0,
            has: 0,
            emitted: 0,
        }
    }

    /// Gives out text.
    pub(super) fn emit(&mut self, text: String) -> Result<(), Failure> {
        self.emitted = self.emitted.saturating_add(text.len());
        if self.emitted > MAX_TEXT {
            let message = format!("it gave out more than {MAX_TEXT} bytes of text");
            return Err(Failure::new(Fault::Output, message));
        }
        self.voice.say(What::Emit(text));
        Ok(())
    }

    /// Counts a sequence that is made, and gives its number.
    fn make(&mut self) -> Result<u32, Failure> {
        if self.has >= self.most {
            let message = format!("it has more than {} sequences at once", self.most);
            return Err(Failure::new(Fault::Output, message));
        }
        if self.made >= MAX_MADE {
            let message = format!("it made more than {MAX_MADE} sequences");
            return Err(Failure::new(Fault::Output, message));
        }
        self.has += 1;
        self.made += 1;
        Ok(self.made - 1)
    }

    /// Has the gateway compute a sequence, from whose end this is to be drawn.
    fn lease(&self, sequence: &Sequence, draw: Arc<Draw>) -> Lease {
        let number = self.leases.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mail = Arc::new(Mail::new(self.bell.clone()));
        mail.ask(draw);
        let entry = (mail.clone(), sequence.drawn);
        self.leases.lock().insert(number, entry);
        let (parts, rest) = sequence.tokens.as_chunks::<PORTION>();
        for part in parts {
            self.voice.say(What::Prompt {
                lease: number,
                tokens: part.to_vec(),
            });
        }
        self.voice.say(What::Open(Open {
            lease: number,
            sequence: sequence.ordinal,
            prompt: rest.to_vec(),
            dials: sequence.dials,
            // The first draws what the model itself would for this request.
            key: match sequence.ordinal {
                0 => self.key,
                ordinal => mix(self.key ^ mix(ordinal.into())),
            },
            alternatives: sequence.alternatives,
        }));
        Lease {
            leases: self.leases.clone(),
            number,
            mail,
        }
    }

    /// Waits for the token of a lease. None: nobody waits for it.
    async fn accepted(&self, lease: &Lease) -> Option<Accepted> {
        poll_fn(|context| {
            if self.voice.audience.has_left_or_will_wake(context.waker()) {
                return Poll::Ready(None);
            }
            match lease.mail.take_accepted(context.waker()) {
                Some(accepted) => Poll::Ready(Some(accepted)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// A sequence, as programs have it.
#[allow(unreachable_pub, reason = "generated code names it so")]
pub struct Sequence {
    ordinal: u32,
    tokens: Vec<u32>,
    dials: Dials,
    alternatives: Option<u32>,
    /// Tokens of it that were drawn, whether they are still there or not.
    drawn: u32,
    lease: Option<Lease>,
    asked: Asked,
}

/// What a sequence was asked for and was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// A token that was drawn in an earlier life.
    Again,
    /// A token of its lease.
    Token,
}

impl Sequence {
    fn must_be_still(&self, what: &str) -> Result<(), Failure> {
        match self.asked {
            Asked::Nothing => Ok(()),
            Asked::Again | Asked::Token => Err(wrong(format!(
                "`{what}` of a sequence that was asked for a token which was not taken"
            ))),
        }
    }
}

/// A call that cannot be.
fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Fault::Plan, message)
}

fn in_range(sampling: &sequences::Sampling) -> Result<Dials, String> {
    let sequences::Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
    } = *sampling;
    let wrong = |name: &str, value: f32| Err(format!("`{name}` of a sampling is {value}"));
    match () {
        () if !(0.0..=f32::MAX).contains(&temperature) => wrong("temperature", temperature),
        () if !(f32::MIN_POSITIVE..=1.0).contains(&top_p) => wrong("top-p", top_p),
        () if !(0.0..=1.0).contains(&min_p) => wrong("min-p", min_p),
        () => Ok(Dials {
            temperature,
            top_p,
            top_k,
            min_p,
        }),
    }
}

impl Answerer {
    fn append(&mut self, sequence: &Resource<Sequence>, tokens: &[u32]) -> Result<(), Failure> {
        let context = self.desk.context;
        plan::are_known("`append`", tokens, self.desk.vocabulary).map_err(wrong)?;
        let sequence = self.get(sequence)?;
        sequence.must_be_still("append")?;
        if sequence.tokens.len() + tokens.len() > context {
            return Err(wrong(format!(
                "a sequence of {} tokens and {} more do not fit into a context of {context}",
                sequence.tokens.len(),
                tokens.len()
            )));
        }
        if !tokens.is_empty() {
            sequence.lease = None;
            sequence.tokens.extend(tokens);
        }
        Ok(())
    }

    fn get(&mut self, sequence: &Resource<Sequence>) -> Result<&mut Sequence, Failure> {
        let found = self.table.get_mut(sequence);
        found.map_err(|e| wrong(format!("a sequence that there is not: {e}")))
    }

    fn put(&mut self, sequence: Sequence) -> Result<Resource<Sequence>, Failure> {
        let put = self.table.push(sequence);
        put.map_err(|e| Failure::new(Fault::Output, format!("it has too many sequences: {e}")))
    }

    fn ask(
        &mut self,
        handle: &Resource<Sequence>,
        draw: Draw,
    ) -> Result<Result<(), sequences::Exhausted>, Failure> {
        plan::check(&draw, self.desk.vocabulary).map_err(wrong)?;
        let Answerer { table, desk, .. } = self;
        let sequence = table.get_mut(handle);
        let sequence = sequence.map_err(|e| wrong(format!("a sequence that there is not: {e}")))?;
        sequence.must_be_still("ask")?;
        if sequence.tokens.len() >= desk.context {
            return Ok(Err(sequences::Exhausted::Context));
        }
        if desk.left == 0 {
            return Ok(Err(sequences::Exhausted::Tokens));
        }
        desk.left -= 1;
        let earlier = desk.journal.get(sequence.ordinal as usize);
        if earlier.is_some_and(|earlier| !earlier.is_empty()) {
            sequence.asked = Asked::Again;
            return Ok(Ok(()));
        }
        sequence.asked = Asked::Token;
        let draw = Arc::new(draw);
        let lease = sequence.lease.as_ref();
        if !lease.is_some_and(|lease| lease.mail.ask(draw.clone())) {
            // What was before is over, or ends now.
            sequence.lease = None;
            sequence.lease = Some(desk.lease(sequence, draw));
        }
        Ok(Ok(()))
    }

    async fn take(&mut self, handle: &Resource<Sequence>) -> Result<Drawn, Failure> {
        let Answerer {
            table, desk, guest, ..
        } = self;
        let sequence = table.get_mut(handle);
        let sequence = sequence.map_err(|e| wrong(format!("a sequence that there is not: {e}")))?;
        let drawn = match (sequence.asked, &sequence.lease) {
            (Asked::Again, _) => {
                let earlier = desk.journal.get_mut(sequence.ordinal as usize);
                earlier.and_then(VecDeque::pop_front)
            }
            (Asked::Token, Some(lease)) => {
                let accepted = desk.accepted(lease).await.ok_or_else(gone)?;
                let token = accepted.tokens.last().copied();
                token.map(|token| Drawn {
                    token,
                    logprob: accepted.logprob,
                    alternatives: accepted
                        .likeliest
                        .iter()
                        .map(|scored| (scored.token, scored.logprob))
                        .collect(),
                })
            }
            (Asked::Nothing, _) | (Asked::Token, None) => None,
        };
        let drawn =
            drawn.ok_or_else(|| wrong("`take` of a sequence that was not asked for a token"))?;
        sequence.asked = Asked::Nothing;
        sequence.tokens.push(drawn.token);
        sequence.drawn = sequence.drawn.saturating_add(1);
        desk.voice.taken.fetch_add(1, Ordering::Relaxed);
        // What it does with the token has its full time again.
        guest.meter.begin();
        Ok(drawn)
    }
}

/// Nobody waits for the run.
fn gone() -> Failure {
    Failure::new(Fault::Trap, "its request is over")
}

impl sequences::Host for Answerer {}

impl sequences::HostSequence for Answerer {
    fn new(
        &mut self,
        prompt: Vec<u32>,
        sampling: sequences::Sampling,
        alternatives: Option<u32>,
    ) -> wasmtime::Result<Resource<Sequence>> {
        let context = self.desk.context;
        let dials = in_range(&sampling).map_err(wrong)?;
        if !(1..=context).contains(&prompt.len()) {
            let length = prompt.len();
            let message = format!("a sequence of {length} tokens, not 1 to {context}");
            return Err(wrong(message).into());
        }
        plan::are_known("a sequence", &prompt, self.desk.vocabulary).map_err(wrong)?;
        if alternatives.is_some_and(|n| n as usize > MAX_TOP_LOGPROBS) {
            let message = format!("a sequence reports at most {MAX_TOP_LOGPROBS} alternatives");
            return Err(wrong(message).into());
        }
        let ordinal = self.desk.make()?;
        Ok(self.put(Sequence {
            ordinal,
            tokens: prompt,
            dials,
            alternatives,
            drawn: 0,
            lease: None,
            asked: Asked::Nothing,
        })?)
    }

    fn fork(&mut self, this: Resource<Sequence>) -> wasmtime::Result<Resource<Sequence>> {
        let sequence = self.get(&this)?;
        sequence.must_be_still("fork")?;
        let fork = Sequence {
            ordinal: 0,
            tokens: sequence.tokens.clone(),
            dials: sequence.dials,
            alternatives: sequence.alternatives,
            drawn: 0,
            lease: None,
            asked: Asked::Nothing,
        };
        let ordinal = self.desk.make()?;
        Ok(self.put(Sequence { ordinal, ..fork })?)
    }

    fn length(&mut self, this: Resource<Sequence>) -> wasmtime::Result<u32> {
        let length = self.get(&this)?.tokens.len();
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }

    fn append(&mut self, this: Resource<Sequence>, tokens: Vec<u32>) -> wasmtime::Result<()> {
        Ok(Answerer::append(self, &this, &tokens)?)
    }

    fn truncate(&mut self, this: Resource<Sequence>, length: u32) -> wasmtime::Result<()> {
        let sequence = self.get(&this)?;
        sequence.must_be_still("truncate")?;
        let (length, has) = (length as usize, sequence.tokens.len());
        if !(1..=has).contains(&length) {
            let message = format!("`truncate` to {length} tokens of a sequence of {has}");
            return Err(wrong(message).into());
        }
        if length < has {
            sequence.lease = None;
            sequence.tokens.truncate(length);
        }
        Ok(())
    }

    fn ask(
        &mut self,
        this: Resource<Sequence>,
        how: Draw,
    ) -> wasmtime::Result<Result<(), sequences::Exhausted>> {
        Ok(Answerer::ask(self, &this, how)?)
    }

    async fn take(&mut self, this: Resource<Sequence>) -> wasmtime::Result<sequences::Drawn> {
        let Drawn {
            token,
            logprob,
            alternatives,
        } = Answerer::take(self, &this).await?;
        Ok(sequences::Drawn {
            token,
            logprob,
            alternatives,
        })
    }

    fn drop(&mut self, this: Resource<Sequence>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        self.desk.has -= 1;
        Ok(())
    }
}

impl client::Host for Answerer {
    fn emit(&mut self, text: String) -> wasmtime::Result<()> {
        let mut all = self.unspelled();
        all.push_str(&text);
        Ok(self.desk.emit(all)?)
    }

    fn emit_tokens(&mut self, tokens: Vec<u32>) -> wasmtime::Result<()> {
        plan::are_known("`emit-tokens`", &tokens, self.desk.vocabulary).map_err(wrong)?;
        let tokenizer = self.guest.vocabulary.tokenizer()?;
        let mut text = String::new();
        let speller = self
            .speller
            .get_or_insert_with(|| Detokenizer::at_start(tokenizer));
        for token in tokens {
            speller.push(tokenizer, token, &mut text);
        }
        Ok(self.desk.emit(text)?)
    }
}

impl Answerer {
    /// What tokens began to spell and did not end.
    pub(super) fn unspelled(&mut self) -> String {
        let mut text = String::new();
        if let Some(speller) = &mut self.speller {
            speller.finish(&mut text);
        }
        text
    }
}
