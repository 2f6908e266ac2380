//! The simulated worker: executes its messages in order, when it is asked for the next result.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use realm_shared::wire::result::{FAULT, LATE, NO_NUMBER, NOTE_BYTES, STOPPED};
use realm_shared::wire::{Fault, Sampling, step};

use super::model::{Plan, best, cell, draw, mix, overflows, plan_of, score};
use crate::batching::limits::Limits;
use crate::batching::plan::{StepPlan, StepResult};
use crate::batching::sequence::SequenceId;

#[derive(Debug)]
pub(super) enum Message {
    Open { slot: u32, state: SlotState },
    Close { slot: u32 },
    Step(StepPlan),
}

#[derive(Debug)]
pub(super) struct SlotState {
    pub(super) sampling: Sampling,
    pub(super) bias: Vec<(u32, f32)>,
    /// Empty unless there are penalties.
    pub(super) history: Vec<u32>,
    pub(super) drawn: Option<u32>,
    pub(super) steered: bool,
    /// What the model came to where its program was late, and the number of the token.
    pub(super) parked: Option<(u64, u32)>,
}

/// A worker: executes its messages in order, when it is asked for the next result.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) limits: Limits,
    cells: Vec<u64>,
    slots: Vec<Option<SlotState>>,
    pub(super) ring: VecDeque<Message>,
}

/// The tensors of a result, owned.
#[derive(Debug, Clone, Default)]
pub(super) struct Output {
    pub(super) number: u64,
    pub(super) tokens: Vec<i32>,
    pub(super) logprobs: Vec<f32>,
    pub(super) top_ids: Vec<i32>,
    pub(super) top_logprobs: Vec<f32>,
    pub(super) prompt_logprobs: Vec<f32>,
    pub(super) prompt_top_ids: Vec<i32>,
    pub(super) prompt_top_logprobs: Vec<f32>,
    pub(super) notes: Vec<u8>,
}

impl Output {
    pub(super) fn view(&self) -> StepResult<'_> {
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

fn push_best(ids: &mut Vec<i32>, logprobs: &mut Vec<f32>, best: &[(u32, f32)], width: usize) {
    for at in 0..width {
        let (id, logprob) = best.get(at).map_or((-1, 0.0), |&(id, lp)| (id as i32, lp));
        ids.push(id);
        logprobs.push(logprob);
    }
}

impl Device {
    pub(super) fn new(limits: Limits, rubbish: u64) -> Self {
        let cells = limits.block_count * limits.block_size;
        Self {
            limits,
            cells: (0..cells).map(|i| mix(rubbish, u64::from(i))).collect(),
            slots: (0..limits.max_sequences).map(|_| None).collect(),
            ring: VecDeque::new(),
        }
    }

    /// Steps not yet answered.
    pub(super) fn steps(&self) -> impl Iterator<Item = &StepPlan> {
        self.ring.iter().filter_map(|message| match message {
            Message::Step(plan) => Some(plan),
            Message::Open { .. } | Message::Close { .. } => None,
        })
    }

    /// Opens not yet executed.
    pub(super) fn opens(&self) -> usize {
        let opens = |message: &&Message| matches!(message, Message::Open { .. });
        self.ring.iter().filter(opens).count()
    }

    /// Sequences in them, and how many tokens they draw there.
    pub(super) fn in_flight(&self) -> BTreeMap<SequenceId, usize> {
        let mut draws = BTreeMap::new();
        for plan in self.steps() {
            for (&id, flags) in plan.ids.iter().zip(&plan.flags) {
                *draws.entry(id).or_default() += usize::from(flags & step::SAMPLE != 0);
            }
        }
        draws
    }

    /// Executes up to and including the next step.
    pub(super) fn answer(&mut self) -> Option<Output> {
        loop {
            match self.ring.pop_front()? {
                Message::Open { slot, state } => self.slots[slot as usize] = Some(state),
                Message::Close { slot } => {
                    let slot = self.slots[slot as usize].take();
                    assert!(slot.is_some_and(|state| state.steered), "closed in vain");
                }
                Message::Step(plan) => return Some(self.execute(&plan)),
            }
        }
    }

    fn execute(&mut self, plan: &StepPlan) -> Output {
        let (rows, tokens) = (plan.slots.len(), plan.tokens.len());
        assert!(rows > 0 && rows <= self.limits.max_sequences as usize);
        assert!(tokens <= self.limits.max_step_tokens as usize);
        assert_eq!(plan.starts.len(), rows + 1);
        assert_eq!((plan.starts[0], plan.starts[rows]), (0, tokens as i32));
        assert_eq!(plan.blocks.len(), rows * plan.width);
        assert!(plan.targets.is_empty() || plan.targets.len() == tokens);
        let distinct: BTreeSet<_> = plan.slots.iter().collect();
        assert_eq!(distinct.len(), rows, "a slot appears twice");

        let mut out = Output {
            number: plan.number,
            ..Output::default()
        };
        self.check_blocks(plan);
        for row in 0..rows {
            self.execute_row(plan, row, &mut out);
        }
        out
    }

    /// The rows of a step are computed at once: what one writes is nothing to the others.
    fn check_blocks(&self, plan: &StepPlan) {
        let size = self.limits.block_size as usize;
        let (mut read, mut written) = (BTreeMap::new(), BTreeSet::new());
        for row in 0..plan.slots.len() {
            let context = plan.context[row] as usize;
            let end = context + (plan.starts[row + 1] - plan.starts[row]) as usize;
            let table = &plan.blocks[row * plan.width..][..end.div_ceil(size)];
            for &block in table {
                *read.entry(block).or_insert(0) += 1;
            }
            if end > context {
                written.extend(&table[context / size..]);
            }
        }
        for block in written {
            assert_eq!(
                read[block], 1,
                "block {block} is written in one row of several"
            );
        }
    }

    fn execute_row(&mut self, plan: &StepPlan, row: usize, out: &mut Output) {
        let size = self.limits.block_size as usize;
        let span = plan.starts[row] as usize..plan.starts[row + 1] as usize;
        let context = plan.context[row] as usize;
        let end = context + span.len();
        let is_parked = plan.flags[row] & step::PARKED != 0;
        assert!(span.is_empty() == is_parked && end <= self.limits.max_context as usize);
        let table = &plan.blocks[row * plan.width..(row + 1) * plan.width];
        let at = |position: usize| table[position / size] as usize * size + position % size;
        let slot = self.slots[plan.slots[row] as usize].as_mut();
        let slot = slot.expect("the slot is open");
        assert_eq!(slot.steered, plan.flags[row] & step::STEERED != 0);
        assert!(!is_parked || slot.parked.is_some());

        let mut state = (0..context).fold(0, |state, p| mix(state, self.cells[at(p)]));
        for (t, position) in span.zip(context..) {
            let mut token = plan.tokens[t] as u32;
            if plan.flags[row] & step::INPUT_SAMPLED != 0 {
                assert_eq!(end - context, 1, "INPUT_SAMPLED means one token");
                token = slot.drawn.expect("something was drawn in this slot");
            }
            self.cells[at(position)] = cell(state, token, position);
            state = mix(state, self.cells[at(position)]);
            if let Some(&target) = plan.targets.get(t) {
                let wanted = target >= 0;
                let (logprob, best) = match wanted {
                    false => (0.0, Vec::new()),
                    true if overflows(state) => (f32::NAN, Vec::new()),
                    true => (score(state, target as u32), best(state, plan.top)),
                };
                out.prompt_logprobs.push(logprob);
                let (ids, logprobs) = (&mut out.prompt_top_ids, &mut out.prompt_top_logprobs);
                push_best(ids, logprobs, &best, plan.top);
            }
        }
        let (mut token, mut logprob, mut tops) = (-1, 0.0, Vec::new());
        let draws = plan.flags[row] & step::SAMPLE != 0;
        let mut index = plan.index[row] as u32;
        if draws && let Some(parked) = slot.parked.take() {
            (state, index) = parked;
        }
        let planned = match slot.steered {
            // Late or not, the same comes of it in the end.
            true if mix(plan.number, slot.sampling.key).is_multiple_of(4) => None,
            true => Some(plan_of(&slot.sampling, index)),
            false => Some(Plan::Draw),
        };
        let mut note = [0; NOTE_BYTES];
        if draws && (overflows(state) || planned != Some(Plan::Draw)) {
            slot.drawn = Some(0);
            token = match planned {
                _ if overflows(state) => NO_NUMBER,
                None => {
                    slot.parked = Some((state, index));
                    LATE
                }
                Some(Plan::Stop) => STOPPED,
                _ => {
                    note[..4].copy_from_slice(&[Fault::Trap as u8, b'o', b'h', 0]);
                    FAULT
                }
            };
        } else if draws {
            let drawn = draw(state, &slot.sampling, &slot.bias, &slot.history, index);
            slot.drawn = Some(drawn);
            if slot.sampling.has_penalties() {
                slot.history.push(drawn);
            }
            token = drawn as i32;
            if slot.sampling.top_logprobs >= 0 {
                logprob = score(state, drawn);
                tops = best(state, slot.sampling.top_logprobs as usize);
            }
        }
        if plan.flags.iter().any(|flags| flags & step::STEERED != 0) {
            out.notes.extend(note);
        }
        out.tokens.push(token);
        out.logprobs.push(logprob);
        push_best(&mut out.top_ids, &mut out.top_logprobs, &tops, plan.top);
    }
}
