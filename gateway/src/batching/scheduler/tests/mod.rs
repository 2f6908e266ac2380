//! One test per rule of the scheduler. `simulation` proves them together.

mod blocks;
mod ends;
mod holds;
mod prefixes;
mod refusals;
mod room;
mod shares;
mod steps;
mod workers;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use realm_shared::wire::Allotment;
use realm_shared::wire::result::NOTE_BYTES;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE, STEERED};

use super::simulation::VOCAB;
use super::*;
use crate::batching::plan::{Expected, ResultError, StepResult};
use crate::batching::sequence::{Allowance, FinishReason, Form, Instance, Priority, TokenLogprobs};
use crate::programs::{Kind, Program, Quarantine};

const TIMEOUT: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    block_size: 4,
    block_count: 16,
    max_sequences: 4,
    max_step_tokens: 16,
    max_context: 64,
    vocab_size: VOCAB,
};

/// A scheduler whose worker draws the token it is told to.
struct Rig {
    scheduler: Scheduler,
    now: Instant,
    submitted: u64,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let mut scheduler = Scheduler::new(Config {
            max_waiting: 8,
            step_timeout: TIMEOUT,
            max_table: 1 << 20,
            surplus: 0.2,
        });
        scheduler.worker_ready(limits).expect("valid limits");
        Self {
            scheduler,
            now: Instant::now(),
            submitted: 0,
        }
    }

    fn limit_table(&mut self, max_table: usize) {
        self.scheduler.config.max_table = max_table;
    }

    /// A sequence of a tenant of its own, so that it shares nothing.
    fn sequence(&mut self, prompt: u32, max_tokens: u32) -> Sequence {
        self.submitted += 1;
        let tenant = NonZeroU32::new(self.submitted as u32).expect("counted from 1");
        Sequence {
            id: SequenceId(self.submitted),
            tenant: TenantId(tenant),
            prompt: (0..prompt).map(|token| token % VOCAB).collect(),
            ..blank(max_tokens)
        }
    }

    fn submit(&mut self, prompt: u32, max_tokens: u32) -> SequenceId {
        let sequence = self.sequence(prompt, max_tokens);
        let id = sequence.id;
        self.scheduler.submit(sequence).expect("accepted");
        id
    }

    fn plan(&mut self) -> StepPlan {
        self.scheduler
            .plan(self.now, |_| true)
            .expect("something to do")
    }

    fn complete(&mut self, plan: &StepPlan, token: u32) {
        let result = Answer::to(plan, token);
        let done = self
            .scheduler
            .complete(self.now, Duration::ZERO, result.view());
        done.expect("a right answer");
    }

    /// Submits a sequence of three tokens and five more that something steers.
    fn submit_steered(&mut self, by: Steering) -> SequenceId {
        let sequence = Sequence {
            steering: Some(by),
            ..self.sequence(3, 5)
        };
        let id = sequence.id;
        self.scheduler.submit(sequence).expect("accepted");
        id
    }

    /// Plans a step and answers it.
    fn step(&mut self, token: u32) -> StepPlan {
        let plan = self.plan();
        self.complete(&plan, token);
        plan
    }

    /// What happened, but for starts.
    fn events(&mut self) -> Vec<(SequenceId, Event)> {
        let events = std::iter::from_fn(|| self.scheduler.poll_event());
        events
            .filter(|(_, event)| !matches!(event, Event::Started { .. }))
            .collect()
    }
}

/// A sequence of nobody, and of no prompt.
fn blank(max_tokens: u32) -> Sequence {
    Sequence {
        id: SequenceId(0),
        tenant: TenantId::ANYONE,
        allowance: Allowance::default(),
        priority: Priority::default(),
        prompt: [].into(),
        max_tokens,
        sampling: Sampling::default(),
        bias: [].into(),
        prompt_logprobs: false,
        steering: None,
    }
}

/// A result with every log-probability -1 and every alternative token 0.
struct Answer {
    number: u64,
    tokens: Vec<i32>,
    logprobs: Vec<f32>,
    top_ids: Vec<i32>,
    top_logprobs: Vec<f32>,
    prompt_logprobs: Vec<f32>,
    prompt_top_ids: Vec<i32>,
    prompt_top_logprobs: Vec<f32>,
    notes: Vec<u8>,
}

impl Answer {
    fn to(plan: &StepPlan, token: u32) -> Self {
        let (rows, targets) = (plan.ids.len(), plan.targets.len());
        let draws = plan.flags.iter().map(|flags| flags & SAMPLE != 0);
        Self {
            number: plan.number,
            tokens: draws
                .map(|draws| if draws { token as i32 } else { -1 })
                .collect(),
            logprobs: vec![-1.0; rows],
            top_ids: vec![0; rows * plan.top],
            top_logprobs: vec![-1.0; rows * plan.top],
            prompt_logprobs: vec![-1.0; targets],
            prompt_top_ids: vec![0; targets * plan.top],
            prompt_top_logprobs: vec![-1.0; targets * plan.top],
            notes: vec![0; notes(plan)],
        }
    }

    fn view(&self) -> StepResult<'_> {
        StepResult {
            number: self.number,
            tokens: &self.tokens,
            logprobs: &self.logprobs,
            top_ids: &self.top_ids,
            top_logprobs: &self.top_logprobs,
            prompt_logprobs: &self.prompt_logprobs,
            prompt_top_ids: &self.prompt_top_ids,
            prompt_top_logprobs: &self.prompt_top_logprobs,
            notes: &self.notes,
        }
    }
}

/// Bytes of the notes on a step's rows.
fn notes(plan: &StepPlan) -> usize {
    let steered = plan.flags.iter().any(|flags| flags & STEERED != 0);
    if steered {
        plan.ids.len() * NOTE_BYTES
    } else {
        0
    }
}

/// A processor that steers a sequence; nothing in the scheduler looks at it.
pub(super) fn steering() -> Steering {
    let nothing = std::fs::File::open("/dev/null").expect("is there");
    let program = Program {
        name: "test".into(),
        kind: Kind::Processor,
        base: None,
        digest: [0; 32],
        compiled: nothing.into(),
        tenant: "nobody".into(),
        quarantine: Quarantine::default(),
    };
    Steering::Instance(Instance {
        program: Arc::new(program),
        args: "null".into(),
        allotment: Allotment::default(),
    })
}

/// A program whose sequence it is.
pub(super) fn lease() -> Steering {
    Steering::Lease(1)
}

/// A grammar in its place.
pub(super) fn form() -> Steering {
    Steering::Form(Form {
        grammar: "null".into(),
        allotment: Allotment::default(),
    })
}

fn token(token: u32) -> Event {
    Event::Token {
        token,
        logprobs: None,
    }
}

/// Tokens per row.
fn counts(plan: &StepPlan) -> Vec<i32> {
    plan.starts
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect()
}
