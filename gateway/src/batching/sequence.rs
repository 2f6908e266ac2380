//! What the scheduler is asked to generate, and what it says happened.

use std::num::NonZeroU32;
use std::sync::Arc;

use realm_shared::run::Part;
use realm_shared::wire::{Allotment, Fault, Sampling};
use serde::Deserialize;

use crate::programs::{Kind, Program};

/// Names one sequence for the life of the gateway process. Ids rise in order of arrival: the
/// smaller one is the older sequence. None is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Whose a sequence is. Never 0, which is the gateway's own in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub NonZeroU32);

impl TenantId {
    /// Everybody, where there are no keys to tell tenants apart.
    pub const ANYONE: Self = Self(NonZeroU32::MIN);
}

/// How urgent a sequence is. Those of a better class go before all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before all others.
    High,
    /// Unless something else is said.
    #[default]
    Normal,
    /// What can wait.
    Low,
}

impl Priority {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

/// What a tenant may have of a model beside others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    /// Its share, in proportion to the weights of the others; more than 0.
    pub weight: f64,
    /// Most of the KV blocks that its sequences may hold, from 0 to 1. Where it is less than one
    /// sequence needs, that one may run on its own.
    pub kv_share: f64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            weight: 1.0,
            kv_share: 1.0,
        }
    }
}

/// What steers how a sequence's tokens are drawn.
#[derive(Debug, Clone)]
pub enum Steering {
    /// A processor, in an instance of its own.
    Instance(Instance),
    /// A grammar.
    Form(Form),
    /// A program that answers the request, and has this lease of the sequence.
    Lease(u64),
}

/// A tenant's processor, and what it is told of the sequence that it steers.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The program.
    pub program: Arc<Program>,
    /// Arguments of the request, as JSON.
    pub args: Arc<str>,
    /// What it may take. Whose it is, is filled in by the link.
    pub allotment: Allotment,
}

/// A grammar that a sequence is kept to.
#[derive(Debug, Clone)]
pub struct Form {
    /// JSON of a [`Grammar`](realm_shared::grammar::Grammar).
    pub grammar: Arc<str>,
    /// What following a text in it may take. Whose it is, is filled in by the link.
    pub allotment: Allotment,
}

/// One sequence to generate: a prompt and how to go on from it.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// Whose it is; what is sent for it counts against that tenant's quota.
    pub tenant: TenantId,
    /// What its tenant may have. What the sequence submitted last says goes for all of them.
    pub allowance: Allowance,
    /// How urgent it is.
    pub priority: Priority,
    /// Tokens to go on from; at least one, each below the model's vocabulary size.
    pub prompt: Arc<[u32]>,
    /// Most tokens to generate. 0 asks for the prompt's log-probabilities alone.
    pub max_tokens: u32,
    /// How tokens are drawn. `stop_ids` end the sequence once `min_tokens` are generated.
    /// `prompt_len` is filled in by the scheduler.
    pub sampling: Sampling,
    /// Tokens and what is added to their logits.
    pub bias: Arc<[(u32, f32)]>,
    /// Report log-probabilities of the prompt's tokens too.
    pub prompt_logprobs: bool,
    /// What steers how its tokens are drawn, if something does.
    pub steering: Option<Steering>,
}

/// Log-probability of one token, and of its likeliest alternatives, best first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenLogprobs {
    /// Of the token itself.
    pub logprob: f32,
    /// Token and log-probability; as many as `Sampling::top_logprobs` asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It drew one of its stop ids, or what steers it ended it.
    Stop,
    /// It reached `max_tokens` or the model's context.
    Length,
}

/// Why a sequence could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailReason {
    /// The program that steers it, or answers the request, failed.
    Program {
        /// Which of the two it is.
        kind: Kind,
        /// In which way.
        fault: Fault,
        /// In its own words, or in those of the worker.
        message: Arc<str>,
    },
    /// It cannot be kept to its grammar.
    Grammar {
        /// In which way.
        fault: Fault,
        /// In the words of the worker.
        message: Arc<str>,
    },
    /// It was in flight in two worker deaths, alone in the second, and is taken for their cause.
    WorkerCrashed,
    /// The program that steers it, or answers the request, crashed workers, and is not run any more.
    Quarantined {
        /// Which of the two it is.
        kind: Kind,
    },
    /// What the model made of it holds no number, so that there is no token to go on with.
    NotANumber,
    /// It needs more KV blocks than the worker has in all.
    TooLong,
    /// The worker is gone and will not come back.
    WorkerGone,
}

/// What happened to a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its first tokens are computed.
    Started {
        /// Tokens of its prompt that were computed before, for other sequences of the tenant.
        cached: usize,
    },
    /// Log-probabilities of prompt tokens `start + 1 ..`, in order, each given those before it.
    PromptLogprobs {
        /// Position of the token that predicts the first entry.
        start: usize,
        /// One entry per prompt token.
        entries: Vec<TokenLogprobs>,
    },
    /// A token was drawn. A stop id is reported too (it counts as generated), as the last one.
    Token {
        /// The token.
        token: u32,
        /// Present if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// A program that answers the request gave out a part of the answer, for which it drew so many tokens.
    Emitted {
        /// What follows in the answer.
        part: Part,
        /// Tokens drawn since it gave out something last.
        tokens: u32,
    },
    /// The sequence is over; nothing follows.
    Finished(FinishReason),
    /// The sequence is over; nothing follows.
    Failed(FailReason),
}

impl Event {
    /// Whether this is the sequence's last event.
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Finished(_) | Event::Failed(_))
    }
}
