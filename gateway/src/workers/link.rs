//! Plans into tensors, tensors into results: what goes through the rings of one worker.
//!
//! A step's tensors are written straight into a slot of the input slab; its results are copied
//! once out of an output slot into private memory and checked there. Both slots are assigned and
//! freed here, so a worker that dies takes nothing with it.

use std::collections::VecDeque;
use std::time::Duration;

use bytemuck::bytes_of;
use realm_shared::wire::{self, open, result, step};
use realm_shm::tensor::{DType, TensorReader, TensorWriter, required};
use realm_shm::{AlignedBuf, GatewayEnd, Message, SlotRef};

use crate::batching::{SequenceView, StepPlan, StepResult};

/// What went wrong between gateway and worker. The worker cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It wrote something into its memory that cannot be.
    #[error("{0}")]
    Ring(#[from] realm_shm::Violation),
    /// It answered something that was not asked.
    #[error("{0}")]
    Answer(String),
    /// The step is larger than the slots, or the ring is full: a fault of the gateway.
    #[error("cannot hand over a step: {0}")]
    Submit(String),
}

fn submit_error(e: impl std::fmt::Display) -> LinkError {
    LinkError::Submit(e.to_string())
}

fn answer_error(e: impl std::fmt::Display) -> LinkError {
    LinkError::Answer(e.to_string())
}

/// A step in flight and the slots it holds.
#[derive(Debug)]
struct InFlight {
    number: u64,
    /// Slots of the opens before it and of the step itself: read by the worker until it answers.
    inputs: Vec<SlotRef>,
    output: SlotRef,
}

/// The gateway's end of one worker incarnation.
#[derive(Debug)]
pub(super) struct Link {
    gate: GatewayEnd,
    steps: VecDeque<InFlight>,
    results: AlignedBuf,
}

impl Link {
    pub(super) fn new(gate: GatewayEnd) -> Self {
        Link {
            gate,
            steps: VecDeque::new(),
            results: AlignedBuf::default(),
        }
    }

    pub(super) fn gate(&mut self) -> &mut GatewayEnd {
        &mut self.gate
    }

    /// Hands a step to the worker, preceded by the opens of sequences that are new to it.
    pub(super) fn submit<'a>(
        &mut self,
        plan: &StepPlan,
        opens: impl Iterator<Item = (u32, SequenceView<'a>)>,
    ) -> Result<(), LinkError> {
        let mut inputs = Vec::new();
        for (slot, sequence) in opens {
            inputs.push(self.open(slot, &sequence)?);
        }
        let input = self.write_step(plan)?;
        inputs.push(input);
        let (rows, targets, top) = (plan.slots.len(), plan.targets.len(), plan.top);
        let output = self
            .gate
            .alloc_output(required(&[
                (DType::I32, rows),
                (DType::F32, rows),
                (DType::I32, rows * top),
                (DType::F32, rows * top),
                (DType::F32, targets),
                (DType::I32, targets * top),
                (DType::F32, targets * top),
            ]))
            .map_err(submit_error)?;
        let args = [plan.number, plan.top as u64];
        self.gate
            .submit(&Message {
                kind: wire::STEP,
                input,
                output,
                args,
            })
            .map_err(submit_error)?;
        self.steps.push_back(InFlight {
            number: plan.number,
            inputs,
            output,
        });
        Ok(())
    }

    fn open(&mut self, slot: u32, sequence: &SequenceView<'_>) -> Result<SlotRef, LinkError> {
        let history = if sequence.sampling.has_penalties() {
            [sequence.prompt, sequence.generated]
        } else {
            [&[][..], &[][..]]
        };
        let history_len = history[0].len() + history[1].len();
        let bias = sequence.bias;
        let sampling = bytes_of(sequence.sampling);
        let bytes = required(&[
            (DType::U8, sampling.len()),
            (DType::I32, bias.len()),
            (DType::F32, bias.len()),
            (DType::I32, history_len),
        ]);
        let input = self.gate.alloc_input(bytes).map_err(submit_error)?;
        let mut w = TensorWriter::new(
            self.gate.input_mut(input).map_err(submit_error)?,
            open::COUNT,
        )
        .map_err(submit_error)?;
        w.tensor::<u8>(&[sampling.len()])
            .map_err(submit_error)?
            .copy_from_slice(sampling);
        let ids = w.tensor::<i32>(&[bias.len()]).map_err(submit_error)?;
        for (to, &(id, _)) in ids.iter_mut().zip(bias) {
            *to = id as i32;
        }
        let values = w.tensor::<f32>(&[bias.len()]).map_err(submit_error)?;
        for (to, &(_, value)) in values.iter_mut().zip(bias) {
            *to = value;
        }
        let tokens = w.tensor::<i32>(&[history_len]).map_err(submit_error)?;
        for (to, &token) in tokens.iter_mut().zip(history.into_iter().flatten()) {
            *to = token as i32;
        }
        w.finish();
        self.gate
            .submit(&Message {
                kind: wire::OPEN,
                input,
                output: SlotRef::NONE,
                args: [slot.into(), 0],
            })
            .map_err(submit_error)?;
        Ok(input)
    }

    fn write_step(&mut self, plan: &StepPlan) -> Result<SlotRef, LinkError> {
        let rows = plan.slots.len();
        let bytes = required(&[
            (DType::I32, rows),
            (DType::I32, rows + 1),
            (DType::I32, rows),
            (DType::I32, rows),
            (DType::I32, rows),
            (DType::I32, plan.tokens.len()),
            (DType::I32, plan.blocks.len()),
            (DType::I32, plan.targets.len()),
        ]);
        let input = self.gate.alloc_input(bytes).map_err(submit_error)?;
        let mut w = TensorWriter::new(
            self.gate.input_mut(input).map_err(submit_error)?,
            step::COUNT,
        )
        .map_err(submit_error)?;
        let mut put = |values: &[i32], shape: &[usize]| -> Result<(), LinkError> {
            w.tensor::<i32>(shape)
                .map_err(submit_error)?
                .copy_from_slice(values);
            Ok(())
        };
        // In the order of `wire::step`.
        put(&plan.slots, &[rows])?;
        put(&plan.starts, &[rows + 1])?;
        put(&plan.context, &[rows])?;
        put(&plan.flags, &[rows])?;
        put(&plan.index, &[rows])?;
        put(&plan.tokens, &[plan.tokens.len()])?;
        put(&plan.blocks, &[rows, plan.width])?;
        put(&plan.targets, &[plan.targets.len()])?;
        w.finish();
        Ok(input)
    }

    /// The next result, in the order of submission, and how long the device worked on it.
    pub(super) fn poll(&mut self) -> Result<Option<(StepResult<'_>, Duration)>, LinkError> {
        let Some(m) = self.gate.poll()? else {
            return Ok(None);
        };
        if m.kind != wire::STEP_DONE {
            return Err(LinkError::Answer(format!(
                "message of unknown kind {}",
                m.kind
            )));
        }
        let Some(sent) = self.steps.pop_front() else {
            return Err(LinkError::Answer(
                "a result although no step is in flight".into(),
            ));
        };
        if m.args[0] != sent.number || m.output != sent.output {
            let (got, due) = (m.args[0], sent.number);
            return Err(LinkError::Answer(format!(
                "result of step {got} where {due} was due"
            )));
        }
        self.gate
            .copy_output(sent.output, sent.output.len as usize, &mut self.results)
            .map_err(answer_error)?;
        for slot in sent.inputs {
            self.gate.free_input(slot).map_err(answer_error)?;
        }
        self.gate.free_output(sent.output).map_err(answer_error)?;
        Ok(Some((
            read_result(sent.number, &self.results)?,
            Duration::from_nanos(m.args[1]),
        )))
    }
}

/// Names the tensors of a result. Their sizes and contents are checked by the scheduler.
fn read_result(number: u64, bytes: &[u8]) -> Result<StepResult<'_>, LinkError> {
    let reader = TensorReader::new(bytes).map_err(answer_error)?;
    let ints = |i| {
        reader
            .tensor::<i32>(i)
            .map(|(values, _)| values)
            .map_err(answer_error)
    };
    let floats = |i| {
        reader
            .tensor::<f32>(i)
            .map(|(values, _)| values)
            .map_err(answer_error)
    };
    Ok(StepResult {
        number,
        tokens: ints(result::TOKENS)?,
        logprobs: floats(result::LOGPROBS)?,
        top_ids: ints(result::TOP_IDS)?,
        top_logprobs: floats(result::TOP_LOGPROBS)?,
        prompt_logprobs: floats(result::PROMPT_LOGPROBS)?,
        prompt_top_ids: ints(result::PROMPT_TOP_IDS)?,
        prompt_top_logprobs: floats(result::PROMPT_TOP_LOGPROBS)?,
    })
}
