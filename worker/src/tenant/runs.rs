//! The programs that answer requests now, and how each of them ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use realm_shared::run::What;
use realm_shared::wire::Fault;

use super::outbox::Voice;
use super::seats::Seat;

/// Those of one gateway, by the numbers of their runs.
#[derive(Default)]
pub(super) struct Runs(Mutex<HashMap<u64, Running>>);

/// A program that answers a request.
struct Running {
    voice: Voice,
    /// Given back when the request is over, whenever the instance is.
    seat: Option<Seat>,
}

impl Runs {
    /// Takes one in that is about to run.
    pub(super) fn begin(self: &Arc<Self>, voice: Voice, seat: Seat) -> LastWord {
        let running = Running {
            voice: voice.clone(),
            seat: Some(seat),
        };
        let before = self.lock().insert(voice.run(), running);
        if let Some(before) = before {
            before.voice.life().end();
        }
        let message = "the worker failed to run it";
        LastWord {
            voice,
            runs: self.clone(),
            took: Vec::new(),
            what: Some(What::failed(Fault::Trap, message)),
        }
    }

    /// Tells one of them what it asked for.
    pub(super) fn tell(&self, run: u64, words: Vec<u32>) {
        if let Some(running) = self.lock().get(&run) {
            running.voice.tell(words);
        }
    }

    /// Nobody waits for this one any more.
    pub(super) fn end(&self, run: u64) {
        let running = self.lock().remove(&run);
        if let Some(running) = running {
            running.voice.life().end();
        }
    }

    /// Nobody waits for anything any more.
    pub(super) fn end_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        for running in all.values() {
            running.voice.life().end();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says the last thing of a run, also where a fault of the host itself ended it: whoever waits for
/// the answer is to hear of that.
pub(super) struct LastWord {
    voice: Voice,
    runs: Arc<Runs>,
    took: Vec<(u32, u32)>,
    what: Option<What>,
}

impl LastWord {
    /// It is said when this is dropped.
    pub(super) fn say(&mut self, (took, what): (Vec<(u32, u32)>, What)) {
        (self.took, self.what) = (took, Some(what));
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        let run = self.voice.run();
        // The place first: whoever hears the last thing may want it for another.
        if let Some(running) = self.runs.lock().get_mut(&run) {
            running.seat = None;
        }
        if let Some(what) = self.what.take() {
            self.voice.say(std::mem::take(&mut self.took), what);
        }
        self.runs.lock().remove(&run);
    }
}
