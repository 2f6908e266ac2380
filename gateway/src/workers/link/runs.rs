//! Runs of programs: begun, ended, and heard.

use std::collections::VecDeque;

use bytemuck::bytes_of;
use realm_shared::run::{Journal, Said};
use realm_shared::wire::{self, Allotment};
use realm_shm::tensor::{DType, TensorWriter, required};
use realm_shm::{Message, Owner, SlabError, SlotRef};

use super::{Link, LinkError, answer_error, submit_error};
use crate::batching::TenantId;
use crate::workers::runs::Task;

/// Slots that are lent to the worker: while one is read, its programs can go on.
const LENT: usize = 2;

/// Whether there is room for something on the way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::workers) enum Room {
    /// There was.
    Taken,
    /// There will be.
    None,
    /// There will be when its tenant has less on the way.
    Quota,
    /// There never will be.
    Never,
}

/// What the worker has of runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// What begins them, and may not be read yet: number of the message, the run, and the slot.
    begun: VecDeque<(u64, u64, SlotRef)>,
    /// Slots lent to the worker, to say in what its programs say.
    lent: Vec<SlotRef>,
}

impl Link {
    /// Begins a run: has the worker start its program.
    pub(in crate::workers) fn run(
        &mut self,
        number: u64,
        task: &Task,
        journal: &Journal,
    ) -> Result<Room, LinkError> {
        self.free_begun(0)?;
        if !self.has_room() {
            return Ok(Room::None);
        }
        let allotment = Allotment {
            tenant: task.tenant.0.get(),
            ..task.allotment
        };
        let request = serde_json::to_vec(&task.request).map_err(submit_error)?;
        let drawn = serde_json::to_vec(&journal.drawn).map_err(submit_error)?;
        let tensors = [bytes_of(&allotment), &request, &drawn];
        let [first, second, third] = tensors.map(|tensor| (DType::U8, tensor.len()));
        let bytes = required(&[first, second, third, (DType::U32, journal.seen.len())]);
        let Some(program) = self.program(task.tenant, &task.program)? else {
            return Ok(Room::None);
        };
        let input = match self.gate.alloc_input(bytes, Owner(allotment.tenant)) {
            Ok(slot) => slot,
            Err(error) => return Ok(room(&error)),
        };
        let slot = self.gate.input_mut(input).map_err(submit_error)?;
        let mut w = TensorWriter::new(slot, wire::run::COUNT).map_err(submit_error)?;
        // In the order of `wire::run`.
        for tensor in tensors {
            w.tensor::<u8>(&[tensor.len()])
                .map_err(submit_error)?
                .copy_from_slice(tensor);
        }
        w.tensor::<u32>(&[journal.seen.len()])
            .map_err(submit_error)?
            .copy_from_slice(&journal.seen);
        w.finish();
        self.send_run(wire::RUN, input, [number, program])?;
        Ok(Room::Taken)
    }

    /// Sends a run the tokens that it asked for by their name.
    pub(in crate::workers) fn kept(
        &mut self,
        run: u64,
        tenant: TenantId,
        tokens: &[u32],
    ) -> Result<Room, LinkError> {
        self.free_begun(0)?;
        if !self.has_room() {
            return Ok(Room::None);
        }
        let bytes = required(&[(DType::U32, tokens.len())]);
        let input = match self.gate.alloc_input(bytes, Owner(tenant.0.get())) {
            Ok(slot) => slot,
            Err(error) => return Ok(room(&error)),
        };
        let slot = self.gate.input_mut(input).map_err(submit_error)?;
        let mut w = TensorWriter::new(slot, 1).map_err(submit_error)?;
        w.tensor::<u32>(&[tokens.len()])
            .map_err(submit_error)?
            .copy_from_slice(tokens);
        w.finish();
        self.send_run(wire::KEPT, input, [run, 0])?;
        Ok(Room::Taken)
    }

    /// Sends something of a run in a slot that is freed when it was read.
    fn send_run(&mut self, kind: u16, input: SlotRef, args: [u64; 2]) -> Result<(), LinkError> {
        self.gate
            .submit(&Message {
                kind,
                input,
                output: SlotRef::NONE,
                args,
            })
            .map_err(submit_error)?;
        let (message, _) = self.gate.submitted();
        self.runs.begun.push_back((message, args[0], input));
        Ok(())
    }

    /// Tells the worker that nobody waits for a run. False if there is no room for that now.
    pub(in crate::workers) fn end(&mut self, run: u64) -> bool {
        self.send_if_room(wire::END, run)
    }

    /// Lends the worker slots to say in what its programs say, if it has too few.
    pub(in crate::workers) fn listen(&mut self) -> Result<(), LinkError> {
        while self.runs.lent.len() < LENT && self.has_room() {
            let lent = self.gate.alloc_output(wire::LISTEN_BYTES, Owner::GATEWAY);
            let output = lent.map_err(submit_error)?;
            self.gate
                .submit(&Message {
                    kind: wire::LISTEN,
                    input: SlotRef::NONE,
                    output,
                    args: [0, 0],
                })
                .map_err(submit_error)?;
            self.runs.lent.push(output);
        }
        Ok(())
    }

    /// What programs said in a slot that was lent.
    pub(super) fn heard(&mut self, m: &Message) -> Result<Vec<Said>, LinkError> {
        let lent = self.runs.lent.iter().position(|slot| *slot == m.output);
        let lent = lent.ok_or_else(|| LinkError::Answer("words in a slot of its own".into()))?;
        let slot = self.runs.lent.swap_remove(lent);
        let bytes = usize::try_from(m.args[0]).unwrap_or(usize::MAX);
        if bytes > slot.len as usize {
            return Err(LinkError::Answer(format!("{bytes} bytes of words")));
        }
        self.gate
            .copy_output(slot, bytes, &mut self.results)
            .map_err(answer_error)?;
        self.gate.free_output(slot).map_err(answer_error)?;
        let said: Vec<Said> = serde_json::from_slice(&self.results)
            .map_err(|e| LinkError::Answer(format!("words that are none: {e}")))?;
        // Who says something has begun.
        let begun = self.runs.begun.iter();
        let heard = begun.filter(|(_, run, _)| said.iter().any(|said| said.run == *run));
        let last = heard.map(|(message, ..)| *message).max();
        self.free_begun(last.unwrap_or(0))?;
        Ok(said)
    }

    /// Frees what begins runs as far as it was read: up to the message with this number, and all that
    /// came before the one that the worker has taken last.
    fn free_begun(&mut self, read: u64) -> Result<(), LinkError> {
        let (submitted, unread) = self.gate.submitted();
        let read = read.max((submitted - unread).saturating_sub(1));
        while let Some((_, _, slot)) = self
            .runs
            .begun
            .pop_front_if(|(message, ..)| *message <= read)
        {
            self.gate.free_input(slot).map_err(answer_error)?;
        }
        Ok(())
    }
}

fn room(error: &SlabError) -> Room {
    match error {
        SlabError::Quota { .. } => Room::Quota,
        SlabError::Exhausted { .. } => Room::None,
        _ => Room::Never,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    use realm_shared::ABI_VERSION;
    use realm_shared::run::{Part, What};
    use realm_shm::{WorkerEnd, socket};

    use super::super::Answer;
    use super::super::tests::link;
    use super::*;
    use crate::workers::runs::tests::task;

    const SOON: Duration = Duration::from_secs(60);

    /// A link, the worker's end of it, and where programs come out.
    fn pair() -> (Link, WorkerEnd, OwnedFd) {
        let mut link = link();
        let (ours, theirs) = socket::pair().expect("two sockets");
        let accept = move || (WorkerEnd::accept(theirs.as_fd(), ABI_VERSION, SOON), theirs);
        let worker = std::thread::spawn(accept);
        link.gate.offer(ours.as_fd(), SOON).expect("agreed");
        let (worker, theirs) = worker.join().expect("no panic");
        link.orders = ours;
        (link, worker.expect("agreed"), theirs)
    }

    fn run(link: &mut Link, number: u64) -> Room {
        let room = link.run(number, &task(), &Journal::default());
        room.expect("no error")
    }

    /// Takes the worker's messages, and returns what the last one was.
    fn take_all(worker: &mut WorkerEnd) -> Option<Message> {
        std::iter::from_fn(|| worker.try_recv().expect("right")).last()
    }

    fn say(worker: &mut WorkerEnd, output: SlotRef, said: &[u8]) {
        let slot = worker.output_mut(output).expect("lent");
        slot[..said.len()].copy_from_slice(said);
        worker
            .complete(&Message {
                kind: wire::HEARD,
                input: SlotRef::NONE,
                output,
                args: [said.len() as u64, 0],
            })
            .expect("room");
    }

    #[test]
    fn what_begins_runs_is_freed_without_any_step() {
        let (mut link, mut worker, _orders) = pair();
        for number in 0..2000 {
            assert_eq!(run(&mut link, number), Room::Taken, "run {number}");
            link.end(number);
            take_all(&mut worker);
        }
        assert!(link.runs.begun.len() <= 1);
        let beyond = (2000..4000).find(|&number| run(&mut link, number) == Room::None);
        assert!(beyond.is_some(), "there is an end to what is not read");
    }

    #[test]
    fn what_is_said_comes_through_slots_that_were_lent() {
        let (mut link, mut worker, _orders) = pair();
        assert_eq!(run(&mut link, 1), Room::Taken);
        link.listen().expect("room");
        link.listen().expect("room");
        let lent = take_all(&mut worker).expect("lent").output;
        let said = [Said {
            run: 1,
            took: Vec::new(),
            what: What::Emit(Part::Text("ä".into())),
        }];
        say(&mut worker, lent, &serde_json::to_vec(&said).expect("JSON"));
        match link.poll().expect("right") {
            Some(Answer::Heard(heard)) => assert_eq!(heard, said),
            _ => panic!("nothing was heard"),
        }
        assert!(link.runs.begun.is_empty());
        // The worker has one still, and gets another.
        assert!(worker.try_recv().expect("right").is_none());
        link.listen().expect("room");
        let lent = take_all(&mut worker).expect("lent").output;
        say(&mut worker, lent, b"[{}]");
        assert!(link.poll().is_err(), "these are no words");
    }
}
