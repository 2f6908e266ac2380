//! The threads that run the code of tenants, in turns.
//!
//! Tenants take turns, and so do the instances of each. A call that is not over within a
//! millisecond or two makes way for others and goes on in the *slow lane*, whose threads get only
//! what nobody else on the machine wants: what long calls cost is their tenant's alone.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use wasmtime::Engine;

use super::guest::{begin_slice, made_way, make_way};
use crate::kernels::cores;

/// Most threads of a lane.
const THREADS: u32 = 4;
/// How nice the slow lane is to everybody else: as nice as can be.
const NICE: i32 = 19;
/// Length of the engine's epoch.
const TICK: Duration = Duration::from_millis(1);

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The lanes of a worker. They last as long as the process.
pub(super) struct Lanes(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something was put into a lane.
    arrival: [Condvar; 2],
    /// Something runs.
    running: Condvar,
}

#[derive(Default)]
struct State {
    lanes: [Lane; 2],
    /// Threads that run a guest's code.
    running: usize,
}

/// What can go on, tenant by tenant.
#[derive(Default)]
struct Lane {
    /// Those that have something, the one whose turn it is first.
    tenants: VecDeque<u32>,
    tasks: HashMap<u32, VecDeque<Arc<Task>>>,
}

impl Lane {
    fn push(&mut self, task: Arc<Task>) {
        let tenant = task.tenant;
        let tasks = self.tasks.entry(tenant).or_default();
        tasks.push_back(task);
        if tasks.len() == 1 {
            self.tenants.push_back(tenant);
        }
    }

    fn pop(&mut self) -> Option<Arc<Task>> {
        let tenant = self.tenants.pop_front()?;
        let tasks = self.tasks.get_mut(&tenant)?;
        let task = tasks.pop_front();
        if tasks.is_empty() {
            self.tasks.remove(&tenant);
        } else {
            self.tenants.push_back(tenant);
        }
        task
    }
}

/// Which lane, as an index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Fast = 0,
    Slow = 1,
}

/// An instance's work.
struct Task {
    shared: Arc<Shared>,
    tenant: u32,
    /// Locked by the one thread that runs it.
    work: Mutex<Option<Work>>,
    place: Mutex<Place>,
}

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It waits to be woken.
    Asleep,
    /// In a lane.
    Waiting,
    /// On a thread.
    Running,
    /// On a thread, and woken meanwhile.
    Woken,
}

impl Lanes {
    /// Starts the threads, and the ticks of the engine's epoch.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(super) fn new(engine: &Engine) -> std::io::Result<Lanes> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            arrival: [Condvar::new(), Condvar::new()],
            running: Condvar::new(),
        });
        for which in [Which::Fast, Which::Slow] {
            for _ in 0..cores().min(THREADS) {
                let shared = shared.clone();
                let name = match which {
                    Which::Fast => "tenant",
                    Which::Slow => "slow tenant",
                };
                let thread = std::thread::Builder::new().name(name.into());
                thread.spawn(move || run(&shared, which))?;
            }
        }
        let (ticked, engine) = (shared.clone(), engine.clone());
        let thread = std::thread::Builder::new().name("ticks".into());
        thread.spawn(move || tick(&ticked, &engine))?;
        Ok(Lanes(shared))
    }

    /// Runs `work` for a tenant, whenever it is woken, until it is done.
    pub(super) fn spawn(&self, tenant: u32, work: impl Future<Output = ()> + Send + 'static) {
        let task = Arc::new(Task {
            shared: self.0.clone(),
            tenant,
            work: Mutex::new(Some(Box::pin(work))),
            place: Mutex::new(Place::Asleep),
        });
        task.wake();
    }
}

impl Shared {
    fn put(&self, task: Arc<Task>, which: Which) {
        lock(&self.state).lanes[which as usize].push(task);
        self.arrival[which as usize].notify_one();
    }

    fn take(&self, which: Which) -> Arc<Task> {
        let mut state = lock(&self.state);
        loop {
            if let Some(task) = state.lanes[which as usize].pop() {
                state.running += 1;
                self.running.notify_one();
                return task;
            }
            let arrival = &self.arrival[which as usize];
            state = arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let mut place = lock(&self.place);
        *place = match *place {
            Place::Asleep => Place::Waiting,
            Place::Running => Place::Woken,
            Place::Waiting | Place::Woken => return,
        };
        let waits = *place == Place::Waiting;
        drop(place);
        if waits {
            self.shared.clone().put(self, Which::Fast);
        }
    }
}

/// What the threads of a lane do.
fn run(shared: &Shared, which: Which) {
    if which == Which::Slow {
        // Of this thread alone. Where it is refused, the lane is as fast as the other.
        let _ = rustix::process::setpriority_process(None, NICE);
    }
    loop {
        let task = shared.take(which);
        *lock(&task.place) = Place::Running;
        let waker = Waker::from(task.clone());
        let mut work = lock(&task.work);
        let over = match work.as_mut() {
            None => true,
            Some(future) => {
                begin_slice();
                let poll = || future.as_mut().poll(&mut Context::from_waker(&waker));
                // A fault in the host's own code ends the sequence that met it.
                !matches!(catch_unwind(AssertUnwindSafe(poll)), Ok(Poll::Pending))
            }
        };
        if over {
            *work = None;
        }
        drop(work);
        lock(&shared.state).running -= 1;
        if over {
            continue;
        }
        let mut place = lock(&task.place);
        let woken = std::mem::replace(&mut *place, Place::Asleep) == Place::Woken;
        if woken {
            *place = Place::Waiting;
            drop(place);
            let which = match made_way() {
                true => Which::Slow,
                false => Which::Fast,
            };
            shared.put(task, which);
        }
    }
}

/// Lets others go first, once: for what is made of many calls, each of them short.
pub(super) async fn take_turns() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Goes on in the slow lane: before what the host is to do takes long in one piece.
pub(super) async fn slow_down() {
    make_way();
    take_turns().await;
}

/// Counts the engine's epoch while something runs.
fn tick(shared: &Shared, engine: &Engine) {
    loop {
        let state = lock(&shared.state);
        let idle = |state: &mut State| state.running == 0;
        drop(shared.running.wait_while(state, idle));
        std::thread::sleep(TICK);
        engine.increment_epoch();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
