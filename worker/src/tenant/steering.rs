//! What steers a sequence, as the engine sees it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Failure;
pub use super::contract::processor::realm::program::types::{Allowed, Draw};
use super::lease::Lease;
use super::mail::Handle;
use crate::sampler::Scored;

/// What the engine is to do for a sequence.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Not known yet.
    Late,
    /// Draw a token like this.
    Draw(Arc<Draw>),
    /// The same, from these logits.
    DrawFrom(Arc<Draw>, Arc<[f32]>),
    /// Show it the logits and the hidden state, and draw later.
    Show,
    /// Take this token.
    Force(u32),
    /// The sequence is over.
    Stop,
    /// Its code cannot go on.
    Failed(Failure),
}

/// What says how a sequence goes on: a processor's instance of its own, or a grammar, which go with it,
/// or the program that it belongs to.
#[derive(Debug)]
pub struct Steering {
    by: By,
    bell: Arc<Bell>,
}

#[derive(Debug)]
enum By {
    /// Nobody: this is all there is to say.
    None(Verdict),
    /// A processor or a grammar.
    Mail(Handle),
    Program(Arc<Lease>),
}

impl Steering {
    /// That of a sequence whose code could not even be started.
    pub(super) fn failed(failure: Failure, bell: Arc<Bell>) -> Steering {
        let by = By::None(Verdict::Failed(failure));
        Steering { by, bell }
    }

    /// That of a sequence whose program let go of it meanwhile.
    pub(super) fn over(bell: Arc<Bell>) -> Steering {
        let by = By::None(Verdict::Stop);
        Steering { by, bell }
    }

    pub(super) fn by_mail(handle: Handle, bell: Arc<Bell>) -> Steering {
        let by = By::Mail(handle);
        Steering { by, bell }
    }

    /// A program's sequence may lose its slot and get another one: the lease stays.
    pub(super) fn by_program(lease: Arc<Lease>, bell: Arc<Bell>) -> Steering {
        let by = By::Program(lease);
        Steering { by, bell }
    }

    /// What to do with the sequence's next token, if that is known by now.
    pub fn verdict(&mut self) -> Verdict {
        match &mut self.by {
            By::None(verdict) => verdict.clone(),
            By::Mail(handle) => handle.verdict(),
            By::Program(lease) => lease.verdict(),
        }
    }

    /// Draws that were made for the same sequence before the engine began to count them.
    pub fn drawn_before(&self) -> u32 {
        match &self.by {
            By::None(_) | By::Mail(_) => 0,
            By::Program(lease) => lease.drawn_before(),
        }
    }

    /// The token that followed, where no log-probabilities are asked for.
    pub fn accept(&mut self, token: u32) {
        self.accept_scored(token, 0.0, &[]);
    }

    /// The token that followed, with its log-probability and the likeliest tokens.
    pub fn accept_scored(&mut self, token: u32, logprob: f32, alternatives: &[Scored]) {
        match &mut self.by {
            By::None(_) => {}
            By::Mail(handle) => handle.accept(token),
            By::Program(lease) => lease.give(token, logprob, alternatives),
        }
    }

    /// The logits and the hidden state of which it wants to see one.
    pub fn show(&self, logits: &[f32], hidden: &[f32]) {
        if let By::Program(lease) = &self.by {
            lease.show(logits, hidden);
        }
    }

    /// No token could be drawn as it was asked for. The gateway hears of it in the result.
    pub(crate) fn refuse(&mut self, failure: &Failure) {
        if let By::Program(lease) = &self.by {
            lease.fail(failure.clone());
        }
    }

    /// What rings with each answer of this gateway's instances.
    pub(crate) fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }
}

/// Tells the engine that some instance has answered.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.rung.notify_all();
    }

    /// How often it was rung.
    pub(crate) fn rings(&self) -> u64 {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it was rung more often than `rings`, at most so long.
    pub(crate) fn wait(&self, rings: u64, most: Duration) {
        let state = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.rung
                .wait_timeout_while(state, most, |now| *now == rings),
        );
    }
}
