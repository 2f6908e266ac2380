//! Plans into tensors, tensors into results: what goes through the rings of one worker.
//!
//! A step's tensors are written straight into a slot of the input slab; its results are copied
//! once out of an output slot into private memory and checked there. Both slots are assigned and
//! freed here, so a worker that dies takes nothing with it.

mod runs;

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytemuck::bytes_of;
use nix::sys::stat::fstat;
use realm_shared::control::Order;
use realm_shared::run::Said;
use realm_shared::wire::{self, Allotment, open, result, step};
use realm_shm::tensor::{DType, TensorReader, TensorWriter, required};
use realm_shm::{AlignedBuf, GatewayEnd, Message, Owner, SlabError, SlotRef, socket};

pub(super) use self::runs::Room;
use self::runs::Runs;
use crate::batching::{SequenceView, Steering, StepPlan, StepResult, TenantId};
use crate::programs::Program;

/// Most entries of a step's block table, which leave a mebibyte of the largest slot for the rest
/// of the step. 256 rows of 8,192 blocks each fit.
pub(super) const MAX_TABLE: usize = (8 << 20) / size_of::<i32>();

/// Messages in the ring up to which such may be added as can wait. So that there is always room for
/// those that cannot: the steps, and what they open.
const CAN_WAIT: u64 = 256;
/// Programs that a worker holds, and bytes of their code, beyond which those that were not used for
/// longest are forgotten.
const MAX_PROGRAMS: usize = 256;
const MAX_PROGRAM_BYTES: u64 = 1 << 30;

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

/// What the worker answered.
pub(super) enum Answer<'a> {
    /// The results of the oldest step in flight, and how long the device worked on it.
    Step(StepResult<'a>, Duration),
    /// What programs said.
    Heard(Vec<Said>),
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
    /// Where programs are sent.
    orders: OwnedFd,
    /// Whose they are is part of the name: nobody is to tell by the time what another has used.
    programs: HashMap<(TenantId, [u8; 32]), Sent>,
    last_program: u64,
    steps: VecDeque<InFlight>,
    /// Slots for the opens before the next step, in their order.
    reserved: VecDeque<SlotRef>,
    results: AlignedBuf,
    runs: Runs,
}

/// A program that the worker has.
#[derive(Debug)]
struct Sent {
    number: u64,
    bytes: u64,
    /// Number of the last sequence that was opened with it.
    used: u64,
}

impl Link {
    /// The rings of a worker, and the socket that programs go through.
    pub(super) fn new(gate: GatewayEnd, orders: OwnedFd) -> Self {
        Link {
            gate,
            orders,
            programs: HashMap::new(),
            last_program: 0,
            steps: VecDeque::new(),
            reserved: VecDeque::new(),
            results: AlignedBuf::default(),
            runs: Runs::default(),
        }
    }

    pub(super) fn gate(&mut self) -> &mut GatewayEnd {
        &mut self.gate
    }

    /// Takes the slot for a sequence that is to open before the next step, on its tenant's
    /// account. False: there is none now, but there will be when steps in flight are answered.
    pub(super) fn reserve(&mut self, sequence: &SequenceView<'_>) -> bool {
        if let Some(Steering::Instance(instance)) = sequence.steering
            && let Ok(None) = self.program(sequence.tenant, &instance.program)
        {
            return false;
        }
        let bytes = required(&open_sizes(sequence));
        let owner = Owner(sequence.tenant.0.get());
        match self.gate.alloc_input(bytes, owner) {
            Ok(slot) => self.reserved.push_back(slot),
            Err(SlabError::Quota { .. } | SlabError::Exhausted { .. }) => return false,
            // Would never pass; the bounds on what a worker reports are there to prevent it.
            Err(error) => {
                debug_assert!(false, "{error}");
                return false;
            }
        }
        true
    }

    /// Hands a step to the worker, preceded by the opens of sequences that are new to it: those
    /// that room was [reserved](Self::reserve) for, in that order.
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
            .alloc_output(
                required(&[
                    (DType::I32, rows),
                    (DType::F32, rows),
                    (DType::I32, rows * top),
                    (DType::F32, rows * top),
                    (DType::F32, targets),
                    (DType::I32, targets * top),
                    (DType::F32, targets * top),
                    (DType::U8, note_bytes(plan)),
                ]),
                Owner::GATEWAY,
            )
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

    /// Tells the worker that what steered the sequence in a slot is over. False if there is no room
    /// for that now; there will be when steps in flight are answered.
    pub(super) fn close(&mut self, slot: u32) -> bool {
        self.send_if_room(wire::CLOSE, slot.into())
    }

    /// Whether there is room for a message that can wait.
    fn has_room(&mut self) -> bool {
        self.gate.submitted().1 < CAN_WAIT
    }

    /// Sends a message that can wait, if it need not.
    fn send_if_room(&mut self, kind: u16, argument: u64) -> bool {
        let message = Message {
            kind,
            input: SlotRef::NONE,
            output: SlotRef::NONE,
            args: [argument, 0],
        };
        self.has_room() && self.gate.submit(&message).is_ok()
    }

    /// The number that the worker knows a program by, which is sent if it is new there. None if the worker has not read
    /// those yet that were sent before.
    fn program(&mut self, tenant: TenantId, program: &Program) -> Result<Option<u64>, LinkError> {
        self.last_program += 1;
        let used = self.last_program;
        let name = (tenant, program.digest);
        if let Some(sent) = self.programs.get_mut(&name) {
            sent.used = used;
            return Ok(Some(sent.number));
        }
        let bytes = fstat(&program.compiled).map_err(submit_error)?.st_size;
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.forget_programs(bytes);
        let order = Order::Program {
            number: used,
            name: program.name.clone(),
        };
        let order = serde_json::to_vec(&order).map_err(submit_error)?;
        match socket::send_with(self.orders.as_fd(), &order, program.compiled.as_fd()) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            sent => sent.map_err(|e| submit_error(format!("a program: {e}")))?,
        }
        let sent = Sent {
            number: used,
            bytes,
            used,
        };
        self.programs.insert(name, sent);
        Ok(Some(used))
    }

    /// Makes room for a program of so many bytes, as far as the ring has room for that.
    fn forget_programs(&mut self, bytes: u64) {
        loop {
            let held: u64 = self.programs.values().map(|sent| sent.bytes).sum();
            let fits = self.programs.len() < MAX_PROGRAMS && held + bytes <= MAX_PROGRAM_BYTES;
            let oldest = self.programs.iter().min_by_key(|(_, sent)| sent.used);
            let Some((&name, number)) = oldest.map(|(name, sent)| (name, sent.number)) else {
                return;
            };
            if fits || !self.send_if_room(wire::FORGET, number) {
                return;
            }
            self.programs.remove(&name);
        }
    }

    fn open(&mut self, slot: u32, sequence: &SequenceView<'_>) -> Result<SlotRef, LinkError> {
        let (kind, name) = match sequence.steering {
            Some(Steering::Instance(instance)) => {
                // Sent when room was reserved, unless it had to go for another since.
                let program = self.program(sequence.tenant, &instance.program)?;
                let program = program.ok_or_else(|| submit_error("a program is not read"))?;
                (wire::OPEN, program)
            }
            Some(Steering::Form(_)) => (wire::GUIDE, 0),
            Some(Steering::Lease(lease)) => (wire::JOIN, *lease),
            None => (wire::OPEN, 0),
        };
        let history = history(sequence);
        let history_len = history.iter().map(|tokens| tokens.len()).sum();
        let bias = sequence.bias;
        let sampling = bytes_of(sequence.sampling);
        let input = self.reserved.pop_front();
        let input = input.ok_or_else(|| submit_error("no room was reserved for a sequence"))?;
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
        let (allotment, args) = guide(sequence).unzip();
        let allotment = allotment.map(|allotment| Allotment {
            tenant: sequence.tenant.0.get(),
            ..*allotment
        });
        let allotment = allotment.as_ref().map_or(&[][..], bytes_of);
        for bytes in [allotment, args.unwrap_or_default()] {
            w.tensor::<u8>(&[bytes.len()])
                .map_err(submit_error)?
                .copy_from_slice(bytes);
        }
        w.finish();
        self.gate
            .submit(&Message {
                kind,
                input,
                output: SlotRef::NONE,
                args: [slot.into(), name],
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
        let input = self
            .gate
            .alloc_input(bytes, Owner::GATEWAY)
            .map_err(submit_error)?;
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

    /// The next answer; those to steps come in the order of submission.
    pub(super) fn poll(&mut self) -> Result<Option<Answer<'_>>, LinkError> {
        let Some(m) = self.gate.poll()? else {
            return Ok(None);
        };
        if m.kind == wire::HEARD {
            return self.heard(&m).map(|said| Some(Answer::Heard(said)));
        }
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
        Ok(Some(Answer::Step(
            read_result(sent.number, &self.results)?,
            Duration::from_nanos(m.args[1]),
        )))
    }
}

/// Bytes of the notes on a step's rows.
fn note_bytes(plan: &StepPlan) -> usize {
    match plan.flags.iter().any(|flags| flags & step::STEERED != 0) {
        true => plan.slots.len() * result::NOTE_BYTES,
        false => 0,
    }
}

/// The tokens that penalties look at, or what steers the sequence, if there are any.
fn history<'a>(sequence: &SequenceView<'a>) -> [&'a [u32]; 2] {
    match sequence.sampling.has_penalties() || sequence.steering.is_some() {
        true => [sequence.prompt, sequence.generated],
        false => [&[], &[]],
    }
}

/// Types and sizes of the tensors of an `OPEN`, in the order of [`open`].
fn open_sizes(sequence: &SequenceView<'_>) -> [(DType, usize); open::COUNT] {
    let history = history(sequence).iter().map(|tokens| tokens.len()).sum();
    let (allotment, args) = guide(sequence).unzip();
    [
        (DType::U8, size_of_val(sequence.sampling)),
        (DType::I32, sequence.bias.len()),
        (DType::F32, sequence.bias.len()),
        (DType::I32, history),
        (DType::U8, allotment.map_or(0, size_of_val)),
        (DType::U8, args.map_or(0, <[u8]>::len)),
    ]
}

/// What steers it alone, if something does: what that may take, and what it is told.
fn guide<'a>(sequence: &SequenceView<'a>) -> Option<(&'a Allotment, &'a [u8])> {
    match sequence.steering {
        Some(Steering::Instance(i)) => Some((&i.allotment, i.args.as_bytes())),
        Some(Steering::Form(form)) => Some((&form.allotment, form.grammar.as_bytes())),
        Some(Steering::Lease(_)) | None => None,
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
        notes: reader
            .tensor::<u8>(result::NOTES)
            .map(|(values, _)| values)
            .map_err(answer_error)?,
    })
}

#[cfg(test)]
mod tests {
    use realm_shared::wire::Sampling;

    use super::super::process::{MAX_CONTEXT, MAX_SEQUENCES, MAX_STEP_TOKENS, geometry};
    use super::*;

    /// The largest that a request can have.
    const BIASES: usize = 1024;

    pub(super) fn link() -> Link {
        let gate = GatewayEnd::create(1, &geometry(), realm_shared::ABI_VERSION);
        let (orders, _) = socket::pair().expect("two sockets");
        Link::new(gate.expect("two segments"), orders)
    }

    fn reserve(link: &mut Link, tenant: u32, biases: usize, history: usize) -> bool {
        link.reserve(&SequenceView {
            tenant: TenantId(tenant.try_into().expect("not 0")),
            prompt: &vec![0; history],
            generated: &[],
            sampling: &Sampling {
                presence_penalty: 1.0,
                ..Sampling::default()
            },
            bias: &vec![(0, 0.0); biases],
            steering: None,
        })
    }

    #[test]
    fn a_tenant_cannot_take_the_room_of_another() {
        let mut link = link();
        let most = (0..)
            .take_while(|_| reserve(&mut link, 1, BIASES, 0))
            .count();
        assert_eq!(most, 256, "as many as can run at once");
        assert!(!reserve(&mut link, 1, 0, 0), "not even a small one");
        assert!((0..most).all(|_| reserve(&mut link, 2, BIASES, 0)));
    }

    #[test]
    fn steps_find_room_however_many_sequences_start() {
        let mut link = link();
        for tenant in 1..1000 {
            for history in [0, 3000, 20_000, 500_000] {
                while reserve(&mut link, tenant, 0, history) {}
            }
        }
        assert!(!reserve(&mut link, 1000, 0, 0), "all are taken");
        let rows = MAX_SEQUENCES as usize;
        for number in [1, 2] {
            let plan = StepPlan {
                number,
                slots: vec![0; rows],
                starts: vec![0; rows + 1],
                context: vec![0; rows],
                flags: vec![0; rows],
                index: vec![0; rows],
                tokens: vec![0; MAX_STEP_TOKENS as usize],
                blocks: vec![0; MAX_TABLE / rows * rows],
                width: MAX_TABLE / rows,
                targets: vec![0; MAX_STEP_TOKENS as usize],
                top: 20,
                ..StepPlan::default()
            };
            link.submit(&plan, std::iter::empty()).expect("room");
        }
    }

    #[test]
    fn what_a_sequence_needs_at_most_fits_in_time() {
        let history = MAX_CONTEXT as usize;
        assert!(reserve(&mut link(), 1, BIASES, history));
    }
}
