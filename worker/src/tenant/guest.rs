//! One instance of a tenant's code: what it may call, and what it may take.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use realm_shared::control::PROGRAM_LOG;
use realm_shared::wire::{Allotment, Fault};
use rustix::time::{ClockId, clock_gettime};
use wasmtime::component::ResourceTable;
use wasmtime::{
    PoolConcurrencyLimitError, ResourceLimiter, Store, StoreContextMut, Trap, UpdateDeadline,
};

use super::code::{MEMORY, TABLE_ENTRIES};
use super::contract::processor::realm::program::{control, text, types};
use super::grammar_cache::GrammarCache;
use super::{Failure, Vocabulary};
use crate::sampler::mix;

/// Longest text that is encoded, in bytes.
const MAX_TEXT: usize = 64 << 10;
/// Most tokens that are decoded at once, and most bytes that they may spell. What the host does for a
/// call takes no turns, so it has to be short.
pub(super) const MAX_TOKENS: usize = 64 << 10;
const MAX_SPELLED: usize = 1 << 20;
/// By these words of Wasmtime's an error is known that says there were more; it has no other mark.
const HANDED: &str = "fuel allocated for hostcalls";
/// Longest line that is logged, in bytes. With what stands before it, it must be one line for the
/// gateway, which takes those beyond 4 KiB for two.
const MAX_LINE: usize = 3 << 10;

/// What ends an instance that nobody waits for any more. It reaches nobody.
pub(super) const OVER: &str = "its sequence or request is over";

/// Ticks of the engine's epoch, a millisecond each, that a call has before it makes way for others.
/// One more than later ones, as the next tick may come at once.
const FIRST_SLICE: u64 = 2;
const SLICE: u64 = 1;

/// Processor time that code has at least before it makes way. One that slept meets a tick at once when
/// it goes on, however late that tick is.
pub(super) const LEAST: Duration = Duration::from_millis(1);

thread_local! {
    /// Processor time of this thread when it began, or went on, with a guest's code.
    static BEGUN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The same when it was looked last.
    static SINCE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Whether the guest made way for others since then.
    static MADE_WAY: Cell<bool> = const { Cell::new(false) };
}

/// This thread goes on with a guest's code.
pub(super) fn begin_slice() {
    begin_clock();
    MADE_WAY.set(false);
}

fn begin_clock() {
    let now = processor_time();
    BEGUN.set(now);
    SINCE.set(now);
}

/// Whether the code ran for longer than calls should.
pub(super) fn made_way() -> bool {
    MADE_WAY.get()
}

/// What comes now takes longer than calls should.
pub(super) fn make_way() {
    MADE_WAY.set(true);
}

/// Processor time that this thread has had: what others do on a busy machine costs a tenant nothing.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

/// What an instance has of its own beside its memory.
pub(super) struct Guest {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) grammars: Arc<GrammarCache>,
    /// Whose it is.
    pub(super) tenant: u32,
    /// Tokens that end an answer.
    pub(super) end_tokens: Vec<u32>,
    /// Key of the sequence's random numbers.
    pub(super) key: u64,
    /// Random numbers taken.
    pub(super) taken: u64,
    /// The program's name, for the log.
    pub(super) name: Arc<str>,
    pub(super) meter: Meter,
    /// Places in texts of some grammars.
    pub(super) matchers: ResourceTable,
}

/// What it took, and may take.
pub(super) struct Meter {
    /// Bytes of linear memory, and of what the host keeps for it.
    pub(super) memory: usize,
    pub(super) most_memory: usize,
    pub(super) table_entries: usize,
    /// Bytes that may still be logged.
    pub(super) log: usize,
    /// Bytes that a call may hand to the host, all lists and strings together.
    pub(super) handed: usize,
    /// Processor time of the current call, or of the part of it since it waited last.
    pub(super) used: Duration,
    /// Processor time that a call may take.
    pub(super) most: Duration,
    /// Nobody waits for it any more: whatever runs is to end.
    pub(super) closed: Arc<AtomicBool>,
}

impl AsMut<Guest> for Guest {
    fn as_mut(&mut self) -> &mut Guest {
        self
    }
}

impl Meter {
    /// That of an instance which may take so much, until `closed`.
    pub(super) fn new(allotment: &Allotment, closed: Arc<AtomicBool>) -> Meter {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Meter {
            memory: 0,
            most_memory: bytes(allotment.memory).min(MEMORY),
            table_entries: 0,
            log: bytes(allotment.log),
            handed: bytes(allotment.handed),
            used: Duration::ZERO,
            most: Duration::from_micros(allotment.call_micros),
            closed,
        }
    }

    /// What the host keeps for it takes `after` bytes instead of `before`.
    pub(super) fn keep(&mut self, before: usize, after: usize) -> Result<(), Failure> {
        self.memory = self.memory.saturating_sub(before).saturating_add(after);
        match after > before && self.memory > self.most_memory {
            true => Err(self.full()),
            false => Ok(()),
        }
    }

    fn full(&self) -> Failure {
        let message = format!("it needs more than {} bytes of memory", self.most_memory);
        Failure::new(Fault::Memory, message)
    }

    /// From now on the code has its full time: what it waited for is there.
    pub(super) fn begin_stretch(&mut self) {
        self.used = Duration::ZERO;
        SINCE.set(processor_time());
    }

    /// At a tick of the epoch: whether the code may go on, which it does when others had their turn.
    pub(super) fn tick(&mut self) -> Result<UpdateDeadline, Failure> {
        let now = processor_time();
        self.used += now.saturating_sub(SINCE.replace(now));
        if self.closed.load(Ordering::Relaxed) {
            return Err(Failure::new(Fault::Trap, OVER));
        }
        if self.used > self.most {
            let [used, most] = [self.used, self.most].map(|time| time.as_micros());
            let message = format!("a call took {used} µs of processor time, more than {most} µs");
            return Err(Failure::new(Fault::Time, message));
        }
        if now.saturating_sub(BEGUN.get()) < LEAST {
            return Ok(UpdateDeadline::Continue(SLICE));
        }
        make_way();
        Ok(UpdateDeadline::Yield(SLICE))
    }
}

/// Makes a store for one instance, with its limits.
pub(super) fn store<T: AsMut<Guest> + Send + 'static>(
    engine: &wasmtime::Engine,
    data: T,
) -> Store<T> {
    let mut store = Store::new(engine, data);
    let handed = store.data_mut().as_mut().meter.handed;
    store.limiter(|data| &mut data.as_mut().meter as &mut dyn ResourceLimiter);
    store.set_hostcall_fuel(handed);
    store.epoch_deadline_callback(|mut store: StoreContextMut<'_, T>| {
        let tick = store.data_mut().as_mut().meter.tick();
        tick.map_err(wasmtime::Error::new)
    });
    begin_call(&mut store);
    store
}

/// The next call has its full time.
pub(super) fn begin_call<T: AsMut<Guest>>(store: &mut Store<T>) {
    store.data_mut().as_mut().meter.used = Duration::ZERO;
    begin_clock();
    store.set_epoch_deadline(FIRST_SLICE);
}

/// What became of a call that did not return, in words for the tenant.
pub(super) fn failure<T: AsMut<Guest>>(store: &mut Store<T>, error: &wasmtime::Error) -> Failure {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.clone();
    }
    if error.is::<PoolConcurrencyLimitError>() {
        let message = "all places for instances in this worker are taken; try again later";
        return Failure::new(Fault::Instances, message);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => Failure::new(Fault::Stack, "its stack is full"),
        Some(trap) => Failure::new(Fault::Trap, trap.to_string()),
        None => match error.root_cause().to_string() {
            cause if cause.contains(HANDED) => {
                let most = store.data_mut().as_mut().meter.handed;
                too_long(format!("a call hands at most {most} bytes to the host"))
            }
            cause => Failure::new(Fault::Trap, cause),
        },
    }
}

/// More is handed to a call than it takes.
pub(super) fn too_long(message: String) -> Failure {
    Failure::new(Fault::HostCall, message)
}

/// What a tenant's code says of itself.
pub(super) fn error(message: String) -> Failure {
    Failure::new(Fault::Error, message)
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory.saturating_add(desired.saturating_sub(current));
        if total > self.most_memory {
            return Err(wasmtime::Error::new(self.full()));
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        self.table_entries = self.table_entries.saturating_add(more);
        if self.table_entries > TABLE_ENTRIES {
            let message = format!("its tables need more than {TABLE_ENTRIES} entries");
            return Err(wasmtime::Error::new(Failure::new(Fault::Memory, message)));
        }
        Ok(true)
    }
}

impl types::Host for Guest {}

impl text::Host for Guest {
    fn encode(&mut self, text: String) -> wasmtime::Result<Vec<u32>> {
        if text.len() > MAX_TEXT {
            return Err(too_long(format!("`encode` takes at most {MAX_TEXT} bytes")).into());
        }
        let tokens = self.vocabulary.tokenizer()?.encode(&text, false);
        tokens.map_err(|e| wasmtime::Error::new(Failure::new(Fault::Trap, e.to_string())))
    }

    fn decode(&mut self, tokens: Vec<u32>) -> wasmtime::Result<Vec<u8>> {
        if tokens.len() > MAX_TOKENS {
            return Err(too_long(format!("`decode` takes at most {MAX_TOKENS} tokens")).into());
        }
        let tokenizer = self.vocabulary.tokenizer()?;
        let mut bytes = Vec::new();
        for id in tokens {
            bytes.extend(tokenizer.token_bytes(id));
            if bytes.len() > MAX_SPELLED {
                return Err(
                    too_long(format!("`decode` spells at most {MAX_SPELLED} bytes")).into(),
                );
            }
        }
        Ok(bytes)
    }

    fn end_tokens(&mut self) -> wasmtime::Result<Vec<u32>> {
        Ok(self.end_tokens.clone())
    }
}

impl control::Host for Guest {
    fn random(&mut self) -> wasmtime::Result<u64> {
        self.taken += 1;
        // Another stream than that of the tokens, which is of the same key.
        Ok(mix(mix(!self.key).wrapping_add(self.taken)))
    }

    fn log(&mut self, line: String) -> wasmtime::Result<()> {
        #[cfg(debug_assertions)]
        crate::crash::if_logged(&line);
        // What is not logged is not looked at: it may be long.
        let start = line.chars().take(MAX_LINE);
        let line: String = start.filter(|c| !c.is_control()).collect();
        let line = &line[..line.floor_char_boundary(MAX_LINE)];
        let left = &mut self.meter.log;
        // What stands before it in the log counts, so that a thousand empty lines are not for nothing.
        let bytes = PROGRAM_LOG.len() + self.name.len() + line.len() + 3;
        if *left >= bytes {
            *left -= bytes;
            // Whoever reads it may be gone.
            let _ = writeln!(io::stderr(), "{PROGRAM_LOG}{}: {line}", self.name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    fn meter(memory: u64) -> Meter {
        let allotment = Allotment {
            memory,
            ..Allotment::default()
        };
        Meter::new(&allotment, Arc::default())
    }

    fn fault(grown: wasmtime::Result<bool>) -> Option<Fault> {
        let error = grown.err()?;
        Some(error.downcast_ref::<Failure>().expect("a failure").fault)
    }

    #[test]
    fn memories_grow_to_what_they_may_all_together() {
        for (allotted, most) in [(1 << 20, 1 << 20), (64 << 20, MEMORY), (u64::MAX, MEMORY)] {
            let mut meter = meter(allotted);
            // What the host keeps for it counts, too.
            assert!(meter.keep(0, PAGE).is_ok());
            assert!(meter.memory_growing(0, PAGE, None).is_ok_and(|grows| grows));
            let rest = most - 2 * PAGE;
            assert!(meter.memory_growing(0, rest, None).is_ok_and(|grows| grows));
            let beyond = meter.memory_growing(rest, rest + 1, None);
            assert_eq!(fault(beyond), Some(Fault::Memory));
            assert_eq!(
                meter.keep(PAGE, PAGE + 1).map_err(|f| f.fault),
                Err(Fault::Memory)
            );
        }
    }

    #[test]
    fn tables_grow_to_what_they_may_all_together() {
        let mut meter = meter(1 << 20);
        assert!(meter.table_growing(0, 1, None).is_ok_and(|grows| grows));
        let rest = TABLE_ENTRIES - 1;
        assert!(meter.table_growing(0, rest, None).is_ok_and(|grows| grows));
        let beyond = meter.table_growing(rest, rest + 1, None);
        assert_eq!(fault(beyond), Some(Fault::Memory));
    }
}
