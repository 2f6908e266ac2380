//! The code of tenants: WebAssembly components that steer how tokens are chosen, or answer requests;
//! and grammars, which steer without code of anybody.
//!
//! ```text
//!   engine thread                               lanes (threads for tenants)
//!   OPEN ─► Programs::start ──────────────────► instance: start, advance([])     ┐ while the
//!   step: forward pass                                                           │ model
//!         steering.verdict() ◄── mail ◄──────── plan                             ┘ computes
//!         draw a token
//!         steering.accept(token) ── mail ─────► advance([token])
//!
//!   RUN ──► Programs::answer ─────────────────► instance: run
//!                          outbox ◄── Open ──── ask: a lease is made
//!   JOIN ─► Programs::join                      ...
//!   step: steering.verdict() ◄── lease ◄─────── ask
//!         steering.accept(token) ── lease ────► take
//!                          outbox ◄── Emit ──── emit
//! ```
//!
//! A grammar is what a processor is, with [`follow`] for an instance and GUIDE for OPEN.
//!
//! The engine never waits for a tenant: a row whose plan is late keeps its logits and asks again in
//! the next step. An instance is made for one sequence or request and thrown away with it. It has no
//! clock, no entropy and no system; what it may take is bounded in [`guest`], and what goes beyond
//! that ends its sequence or request with a [`Failure`] and nothing else.

mod answering;
mod code;
mod contract;
mod follow;
mod grammar;
mod grammar_cache;
mod guest;
mod handles;
mod lanes;
mod lease;
mod life;
mod mail;
mod matchers;
mod operation;
mod outbox;
mod plan;
mod processor;
mod programs;
mod replay;
mod runs;
mod seats;
mod sequences;
mod sights;
mod steering;
mod tensors;
mod vocabulary;

use std::fmt::{self, Display, Formatter};

use realm_shared::wire::Fault;

pub use code::{CompileError, Compiled, Kind, Pool, compile, fingerprint};
pub use outbox::Outbox;
pub use programs::{Answer, Guide, Host, Programs, Start};
pub use steering::{Allowed, Draw, Steering, Verdict};
pub use vocabulary::Vocabulary;

/// Why a tenant's code cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub fault: Fault,
    /// What was wrong, in words for the tenant.
    pub message: String,
}

/// Longest message of a failure in bytes: it must fit a slot, and may repeat what a tenant handed over.
const MAX_MESSAGE: usize = 1024;

impl Failure {
    pub(crate) fn new(fault: Fault, message: impl Into<String>) -> Failure {
        let message = shortened(message.into());
        Failure { fault, message }
    }
}

/// The beginning of a message that is too long.
fn shortened(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests;
