//! What programs say, on its way to the gateway.
//!
//! Whoever has something to say puts it into the outbox, and whoever does that, or brings a slot that
//! the gateway lends, sends what there is. It waits only where the gateway lends no slot.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{anyhow, bail};
use realm_shared::run::{Open, Said, What};
use realm_shared::wire::{HEARD, LISTEN_BYTES};
use realm_shm::{Message, Outlet, SlotRef};

use super::life::Life;

/// Most bytes of a piece of text: as JSON, each may become six.
pub(super) const PIECE: usize = 8 << 10;

/// A worker's answers to its gateway, with what its programs have not said yet.
pub struct Outbox(Mutex<State>);

struct State {
    outlet: Outlet,
    lent: VecDeque<SlotRef>,
    unsaid: VecDeque<Unsaid>,
    /// Why nothing more can be said. The session ends with it.
    broken: Option<String>,
}

struct Unsaid {
    run: u64,
    /// The lease that it tells of, and whether it is the first to do so.
    lease: Option<(u64, bool)>,
    /// A [`Said`].
    json: Vec<u8>,
}

impl Outbox {
    /// One for what goes through this outlet.
    pub fn new(outlet: Outlet) -> Outbox {
        Outbox(Mutex::new(State {
            outlet,
            lent: VecDeque::new(),
            unsaid: VecDeque::new(),
            broken: None,
        }))
    }

    /// Takes a slot that the gateway lends.
    ///
    /// # Errors
    /// If it is too short, or nothing can be said any more.
    pub fn lend(&self, slot: SlotRef) -> anyhow::Result<()> {
        if (slot.len as usize) < LISTEN_BYTES {
            let len = slot.len;
            bail!("LISTEN: a slot of {len} bytes, fewer than {LISTEN_BYTES}");
        }
        let mut state = self.lock();
        state.lent.push_back(slot);
        state.send();
        state.check()
    }

    /// Writes into the output slot of a message, and answers it.
    ///
    /// # Errors
    /// If it cannot be answered, or nothing can be said any more.
    pub fn answer(
        &self,
        message: &Message,
        write: impl FnOnce(&mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut state = self.lock();
        state.check()?;
        write(state.outlet.output_mut(message.output)?)?;
        let sent = state.outlet.complete(message);
        sent.map_err(|_| anyhow!("the completion ring is full"))
    }

    /// Drops what a run has not said yet.
    pub fn forget(&self, run: u64) {
        self.lock().unsaid.retain(|unsaid| unsaid.run != run);
    }

    /// Whether everything could be said that there was a slot for.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self) -> anyhow::Result<()> {
        self.lock().check()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> anyhow::Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(why) => bail!("what programs say cannot be sent: {why}"),
        }
    }

    /// Sends as much as there are slots for.
    fn send(&mut self) {
        while self.broken.is_none() && !self.unsaid.is_empty() {
            let Some(slot) = self.lent.pop_front() else {
                return;
            };
            if let Err(error) = self.fill(slot) {
                self.broken = Some(error.to_string());
            }
        }
    }

    /// Sends as much as one slot holds.
    fn fill(&mut self, slot: SlotRef) -> anyhow::Result<()> {
        let into = self.outlet.output_mut(slot)?;
        let mut at = 0;
        while let Some(next) = self.unsaid.front() {
            // Before it a bracket or a comma, and a bracket at the end.
            let end = at + 1 + next.json.len();
            let Some(room) = into.get_mut(at..=end) else {
                break;
            };
            room[0] = if at == 0 { b'[' } else { b',' };
            room[1..=next.json.len()].copy_from_slice(&next.json);
            room[1 + next.json.len()] = b']';
            at = end;
            self.unsaid.pop_front();
        }
        if at == 0 {
            bail!("it is longer than a slot");
        }
        let heard = Message {
            kind: HEARD,
            input: SlotRef::NONE,
            output: slot,
            args: [at as u64 + 1, 0],
        };
        let sent = self.outlet.complete(&heard);
        sent.map_err(|_| anyhow!("the completion ring is full"))
    }
}

/// What a run speaks with, and hears answers, until nobody listens any more.
#[derive(Clone)]
pub(super) struct Voice {
    run: u64,
    life: Arc<Life>,
    outbox: Arc<Outbox>,
    /// What it is told, in answer to what it asked: it asks for one thing at a time.
    told: Arc<Mutex<Option<Vec<u32>>>>,
}

impl Voice {
    /// That of a run with this number.
    pub(super) fn new(run: u64, outbox: Arc<Outbox>) -> Voice {
        Voice {
            run,
            life: Arc::default(),
            outbox,
            told: Arc::default(),
        }
    }

    pub(super) fn run(&self) -> u64 {
        self.run
    }

    /// Lasts as long as somebody listens.
    pub(super) fn life(&self) -> Arc<Life> {
        self.life.clone()
    }

    /// Says something, having taken so many tokens of these sequences.
    pub(super) fn say(&self, took: Vec<(u32, u32)>, what: What) {
        self.say_of(None, took, what);
    }

    /// Says that a sequence is to be computed.
    pub(super) fn open(&self, open: Open) {
        self.say_of(Some(open.lease), Vec::new(), What::Open(open));
    }

    /// Says something in pieces that fit.
    fn say_of(&self, lease: Option<u64>, mut took: Vec<(u32, u32)>, what: What) {
        let run = self.run;
        let mut broken = None;
        let mut unsaid = Vec::new();
        for (at, what) in what.pieces().into_iter().enumerate() {
            let took = std::mem::take(&mut took);
            let lease = lease.map(|lease| (lease, at == 0));
            match serde_json::to_vec(&Said { run, took, what }) {
                Ok(json) => unsaid.push(Unsaid { run, lease, json }),
                Err(error) => broken = Some(error.to_string()),
            }
        }
        let mut state = self.outbox.lock();
        // Looked at here, so that nothing comes after `forget`.
        if !self.life.is_over() {
            state.broken = state.broken.take().or(broken);
            state.unsaid.extend(unsaid);
            state.send();
        }
    }

    /// It is told something that it asked for.
    pub(super) fn tell(&self, words: Vec<u32>) {
        *self.lock_told() = Some(words);
        self.life.wake();
    }

    /// Waits until it is. None when the program is to end instead.
    pub(super) async fn told(&self) -> Option<Vec<u32>> {
        self.life.wait_for(|| self.lock_told().take()).await
    }

    fn lock_told(&self) -> MutexGuard<'_, Option<Vec<u32>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back that a sequence is to be computed, if nothing of that was said yet: so that what
    /// waits here is bounded by what the sequences hold.
    pub(super) fn withdraw(&self, lease: u64) {
        let mut state = self.outbox.lock();
        if state.unsaid.iter().any(|u| u.lease == Some((lease, true))) {
            let tells = |u: &Unsaid| u.lease.is_some_and(|(of, _)| of == lease);
            state.unsaid.retain(|unsaid| !tells(unsaid));
        }
    }
}
