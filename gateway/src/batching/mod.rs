//! Continuous batching as a pure state machine: no clock, no I/O, no threads.
//!
//! A [`Scheduler`] decides, step by step, which [`Sequence`]s a worker computes. Its driver calls
//! it and carries what it says: a [`StepPlan`] to the worker, a [`StepResult`] back, [`Event`]s to
//! whoever asked.
//!
//! ```text
//!  submit ──▶ waiting ──admit──▶ running ──last token──▶ Finished
//!                ▲                  │
//!                └──preempt, loss───┘      cancel: from either, without an event
//! ```
//!
//! * **Age** orders everything. The waiting sequence that is admitted is the oldest, the running
//!   one that is preempted is the youngest, so the oldest sequence of all always gets what it
//!   needs, and nothing waits for ever.
//! * **Tokens are kept here.** Preemption and the loss of a worker cost a sequence its KV blocks
//!   and nothing else: it is prefilled again with its prompt and what it had generated.
//! * **What begins alike is computed once.** Full blocks are named by what they hold and shared by
//!   all sequences of a tenant that begin with it, also when the first one has long ended. The
//!   last tokens of a prompt, which fill no block, are computed by each.
//! * **The way to the worker is shared.** What is sent for a sequence when it starts is on its
//!   tenant's account; one above its quota, or without room, starts with a later step.
//! * **Two steps are in flight**, so that the worker never waits for the gateway. A step may be
//!   planned before the tokens of the one before it are known; a row then takes the token just
//!   drawn as its input, on the device. A sequence that turns out to have ended wastes one row.
//! * **Blocks and slots are free at once** when a sequence ends, even if a step in flight still
//!   writes them: the worker executes in order, so the next owner writes later.
//! * **The worker is not trusted.** A result is checked whole before any of it is used.
//!
//! Terms: a *step* is one forward pass over a batch; a *row* is one sequence's part in it; a row
//! of one token is a *decode*, a longer one a chunk of *prefill*; a *block* is a fixed number of
//! positions in the worker's KV arena; a *slot* holds a running sequence's sampling state there.

mod blocks;
mod limits;
mod plan;
mod prefix;
mod scheduler;
pub mod sequence;

pub use limits::{Config, InvalidLimits, Limits};
pub use plan::{Expected, ResultError, StepPlan, StepResult};
pub use scheduler::{Convicted, Loss, Refused, Scheduler, SequenceView, Stats};
pub use sequence::{
    Allowance, Event, FailReason, FinishReason, Form, Instance, Priority, Sequence, SequenceId,
    Steering, TenantId, TokenLogprobs,
};
