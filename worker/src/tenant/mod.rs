//! The code of tenants: WebAssembly components that steer how tokens are chosen.
//!
//! ```text
//!   engine thread                               lanes (threads for tenants)
//!   OPEN ─► Programs::start ──────────────────► instance: start, advance([])     ┐ while the
//!   step: forward pass                                                           │ model
//!         steering.verdict() ◄── mail ◄──────── plan                             ┘ computes
//!         draw a token
//!         steering.accept(token) ── mail ─────► advance([token])
//! ```
//!
//! The engine never waits for a tenant: a row whose plan is late keeps its logits and asks again in
//! the next step. An instance is made for one sequence and thrown away with it. It has no clock, no
//! entropy and no system; what it may take is bounded in [`guest`], and what goes beyond that ends
//! its sequence with a [`Failure`] and nothing else.

mod answering;
mod code;
mod guest;
mod lanes;
mod outbox;
mod plan;
mod programs;
mod sequences;
mod steering;
mod vocabulary;

use std::fmt::{self, Display, Formatter};

use realm_shared::wire::Fault;

pub use code::{CompileError, Kind, compile, fingerprint};
pub use guest::{Allowed, Draw};
pub use outbox::Outbox;
pub use programs::{Programs, Run, Start};
pub use steering::{Steering, Verdict};
pub use vocabulary::Vocabulary;

/// Why a tenant's code cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub fault: Fault,
    /// What was wrong, in words for the tenant.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(fault: Fault, message: impl Into<String>) -> Failure {
        let message = message.into();
        Failure { fault, message }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests;
