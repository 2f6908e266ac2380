//! What programs say, on its way to the gateway.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use realm_shared::run::{Said, What};
use realm_shared::wire::HEARD;
use realm_shm::{Message, Outlet, SlotRef};

/// Longest text of a message in bytes. JSON may take six times as many, and a slot must hold it.
const PORTION: usize = 8 << 10;

/// Messages that wait for a slot which the gateway lends, and the way to the gateway.
#[derive(Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    /// None in tests and benchmarks.
    outlet: Option<Arc<Mutex<Outlet>>>,
}

#[derive(Default)]
struct Waiting {
    /// Their JSON, with whose they are.
    said: VecDeque<(u64, Vec<u8>)>,
    lent: VecDeque<SlotRef>,
}

impl Outbox {
    /// One whose messages go out here.
    pub fn new(outlet: Arc<Mutex<Outlet>>) -> Outbox {
        Outbox {
            waiting: Mutex::default(),
            outlet: Some(outlet),
        }
    }

    /// Sends something that a program says, now or as soon as there is a slot.
    pub(super) fn say(&self, run: u64, taken: u64, what: What) {
        let mut waiting = self.lock();
        let mut add = |what| {
            let said = Said { run, taken, what };
            // These types always are JSON.
            let json = serde_json::to_vec(&said).unwrap_or_default();
            waiting.said.push_back((run, json));
        };
        match what {
            What::Emit(text) => {
                let mut rest = text.as_str();
                while !rest.is_empty() {
                    let (portion, after) = rest.split_at(rest.floor_char_boundary(PORTION));
                    add(What::Emit(portion.to_owned()));
                    rest = after;
                }
            }
            what => add(what),
        }
        // What cannot be sent is tried again, and its error returned, with the next slot.
        let _ = self.send(&mut waiting);
    }

    /// The gateway lends a slot.
    ///
    /// # Errors
    /// If the gateway lent what there is not, or its ring is full.
    pub fn lend(&self, slot: SlotRef) -> anyhow::Result<()> {
        let mut waiting = self.lock();
        waiting.lent.push_back(slot);
        self.send(&mut waiting)
    }

    /// Nobody waits for a run: what it said is dropped.
    pub(super) fn forget(&self, run: u64) {
        self.lock().said.retain(|(of, _)| *of != run);
    }

    /// Takes what was said.
    #[cfg(test)]
    pub(super) fn take(&self) -> Vec<Said> {
        let said = std::mem::take(&mut self.lock().said).into_iter();
        said.map(|(_, json)| serde_json::from_slice(&json).expect("JSON"))
            .collect()
    }

    /// Sends as much as there are slots for, each with as many messages as fit.
    fn send(&self, waiting: &mut Waiting) -> anyhow::Result<()> {
        let Some(outlet) = &self.outlet else {
            return Ok(());
        };
        let mut outlet = outlet.lock().unwrap_or_else(PoisonError::into_inner);
        while let (Some((_, first)), Some(&slot)) = (waiting.said.front(), waiting.lent.front()) {
            let room = slot.len as usize;
            anyhow::ensure!(
                first.len() + 2 <= room,
                "a slot of {room} bytes was lent for a message of {}",
                first.len()
            );
            let mut json = vec![b'['];
            while let Some((_, said)) = waiting.said.front()
                && json.len() + said.len() < room
            {
                if json.len() > 1 {
                    json.push(b',');
                }
                json.extend_from_slice(said);
                waiting.said.pop_front();
            }
            json.push(b']');
            outlet.output_mut(slot)?[..json.len()].copy_from_slice(&json);
            let heard = Message {
                kind: HEARD,
                input: SlotRef::NONE,
                output: slot,
                args: [json.len() as u64, 0],
            };
            outlet
                .complete(&heard)
                .map_err(|_| anyhow::anyhow!("the completion ring is full"))?;
            waiting.lent.pop_front();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
