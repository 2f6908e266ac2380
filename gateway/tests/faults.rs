//! Workers that die, hang, lie and dawdle under many streams; and a request that kills its worker.

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::census::{Census, is_running};
use common::client::{End, Transcript};
use common::random::Random;
use common::requests::{Request, continuation, kinds};
use common::{Raise, Server, setting, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use serde_json::json;

/// Faults of an ordinary run.
const FAULTS: u64 = 40;
/// Requests under way at any time.
const STREAMS: u64 = 32;
/// Seconds after which a worker that does not answer counts as hung.
const STEP_TIMEOUT: &str = "2";
/// Longest rest in milliseconds between a recovery and the next fault.
const REST: u64 = 200;
/// Tokens that show that all streams go on after a fault.
const RECOVERED: u64 = 4 * STREAMS;

#[test]
fn no_fault_of_a_worker_shows_in_an_answer() {
    let count = setting("REALM_TEST_FAULTS", FAULTS);
    let seed = setting("REALM_TEST_SEED", 1);
    let server = Server::start(&["--step-timeout", STEP_TIMEOUT]);
    let pool = pool(&server);
    let before = settled(&server);
    let books_before = wait_for_books(&server);
    let first_worker = server.worker_pid();

    let tally = Mutex::new(Tally::default());
    let over = AtomicBool::new(false);
    let faults = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..STREAMS)
            .map(|number| {
                let random = Random::new(seed ^ (number + 1) << 32);
                let (server, pool, tally, over) = (&server, &pool, &tally, &over);
                scope.spawn(move || {
                    // Whatever ends one ends all, so that a failed test ends at once.
                    let _over = Raise(over);
                    client(server, pool, tally, over, random);
                })
            })
            .collect();
        let _over = Raise(&over);
        let faults = disturb(&server, Random::new(seed), count, &over);
        over.store(true, Ordering::Release);
        for client in clients {
            client.join().expect("a client ends well");
        }
        faults
    });

    let books = wait_for_books(&server);
    let mut after = before;
    wait_until("what the faults cost is given back", || {
        after = Census::of(server.pid());
        after.is_within(&before)
    });
    assert_eq!(after.children, 1, "{after:?}");
    assert!(!is_running(first_worker), "the first worker still runs");
    let tally = tally.into_inner().expect("not poisoned");
    println!("faults: seed {seed}: {faults}; {tally}; {books}; before {before:?}, after {after:?}");
    assert_eq!(faults.total(), count);
    assert!(
        tally.finished > tally.crashed,
        "most requests are to survive"
    );
    let completed = books.completed - books_before.completed;
    let spare = tally.unfinished_choices;
    assert!((tally.finished_choices..=tally.finished_choices + spare).contains(&completed));
    assert!((tally.crashed..=spare).contains(&books.failed));
    let admitted = books.admitted - books_before.admitted;
    assert!((tally.finished_choices..=tally.finished_choices + spare).contains(&admitted));
    for request in [&pool[0].0, &pool[1].0] {
        server.ask(request);
    }
}

/// Requests of all kinds and what each is answered when nothing disturbs it.
fn pool(server: &Server) -> Vec<(Request, Transcript)> {
    let mut requests = Vec::new();
    for seed in 1..=5 {
        requests.extend(kinds(seed, 8 * seed as usize));
        let all = requests.len();
        let [chat, scored] = [all - 7, all - 4].map(|at| requests[at].clone());
        let text = server.ask(&scored).choices[&0].text.clone();
        requests.push(scored.clone().stopping_in(&text));
        requests.extend([chat.whole(), scored.whole()]);
    }
    let answered = requests.into_iter().map(|request| {
        let answer = server.ask(&request);
        (request, answer)
    });
    answered.collect()
}

/// One request after the other until it is over. Some are left half-way.
fn client(
    server: &Server,
    pool: &[(Request, Transcript)],
    tally: &Mutex<Tally>,
    over: &AtomicBool,
    mut random: Random,
) {
    while !over.load(Ordering::Acquire) {
        let (request, undisturbed) = random.pick(pool);
        let leaves_at = match random.below(8) {
            0 => random.below(20) as usize,
            _ => usize::MAX,
        };
        let end = server.try_ask(request, |chunks| {
            if chunks == leaves_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let mut tally = tally.lock().expect("not poisoned");
        match end.expect("the server listens") {
            End::Finished(answer) => {
                assert_eq!(&answer, undisturbed, "{}", request.name);
                tally.finished += 1;
                tally.finished_choices += request.choices() as u64;
            }
            End::Failed(failure) => {
                assert_eq!(failure.code, "worker_crashed", "{failure:?}");
                tally.crashed += 1;
                tally.unfinished_choices += request.choices() as u64;
            }
            End::Left => {
                tally.left += 1;
                tally.unfinished_choices += request.choices() as u64;
            }
            End::Cut => panic!("{}: the server ended", request.name),
        }
    }
}

/// How requests ended.
#[derive(Debug, Default)]
struct Tally {
    finished: u64,
    finished_choices: u64,
    /// Of requests that failed or were left: what became of each is for the server to say.
    unfinished_choices: u64,
    crashed: u64,
    left: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            finished,
            crashed,
            left,
            ..
        } = self;
        let all = finished + crashed + left;
        write!(
            f,
            "{all} requests: {finished} finished as undisturbed, {crashed} failed with \
             worker_crashed, {left} left by their client"
        )
    }
}

/// What the server says became of all sequences.
#[derive(Debug, PartialEq)]
struct Books {
    admitted: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl Books {
    fn of(server: &Server) -> Self {
        let count = |name| server.metric(name) as u64;
        Books {
            admitted: count("realm_sequences_admitted_total"),
            completed: count("vllm:request_success_total"),
            failed: count("realm_sequences_failed_total"),
            cancelled: count("realm_sequences_cancelled_total"),
        }
    }

    fn balance(&self) -> bool {
        self.admitted == self.completed + self.failed + self.cancelled
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Books {
            admitted,
            completed,
            failed,
            cancelled,
        } = self;
        write!(
            f,
            "sequences: {admitted} admitted = {completed} completed + {failed} failed + \
             {cancelled} cancelled"
        )
    }
}

/// Once nothing runs any more, every sequence is in the books once.
fn wait_for_books(server: &Server) -> Books {
    let mut books = Books::of(server);
    wait_until("all sequences are accounted for", || {
        books = Books::of(server);
        books.balance()
    });
    books
}

/// What the server holds with nothing to do.
fn settled(server: &Server) -> Census {
    let mut census = Census::of(server.pid());
    wait_until("the server has come to rest", || {
        let last = std::mem::replace(&mut census, Census::of(server.pid()));
        std::thread::sleep(Duration::from_millis(100));
        census == last
    });
    census
}

// === Faults ===

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGKILL, and again for its successor, wherever that is by then.
    KillTwice,
    /// SIGTERM, which makes it exit.
    Terminate,
    /// SIGSTOP: it hangs.
    Stop,
    /// SIGSTOP, and SIGCONT before anyone calls it hung.
    Slow,
    /// Wrong words in its control lines and on its ring.
    Corrupt,
}

const FAULT_KINDS: [Fault; 6] = [
    Fault::Kill,
    Fault::KillTwice,
    Fault::Terminate,
    Fault::Stop,
    Fault::Slow,
    Fault::Corrupt,
];

/// Faults by kind, and those of each kind that cost the worker its life.
#[derive(Debug, Default)]
struct Faults {
    struck: BTreeMap<Fault, (u64, u64)>,
    slowest: Duration,
}

impl Faults {
    fn total(&self) -> u64 {
        self.struck.values().map(|(struck, _)| struck).sum()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults (", self.total())?;
        for (at, (fault, (struck, deaths))) in self.struck.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{fault:?} {struck} with {deaths} deaths")?;
        }
        write!(f, "), slowest recovery {:.1?}", self.slowest)
    }
}

impl Fault {
    /// Workers that surely die of it.
    fn deaths(self) -> u64 {
        match self {
            Fault::Kill | Fault::Terminate | Fault::Stop => 1,
            Fault::KillTwice => 2,
            Fault::Slow | Fault::Corrupt => 0,
        }
    }

    fn strike(self, server: &Server, worker: Pid, random: &mut Random) -> nix::Result<()> {
        match self {
            Fault::Kill => kill(worker, Signal::SIGKILL),
            Fault::KillTwice => {
                kill(worker, Signal::SIGKILL)?;
                wait_until("there is another worker", || server.worker_pid() != worker);
                std::thread::sleep(Duration::from_millis(random.below(500)));
                kill(server.worker_pid(), Signal::SIGKILL)
            }
            Fault::Terminate => kill(worker, Signal::SIGTERM),
            Fault::Stop => kill(worker, Signal::SIGSTOP),
            Fault::Slow => {
                kill(worker, Signal::SIGSTOP)?;
                std::thread::sleep(Duration::from_millis(10 + random.below(490)));
                kill(worker, Signal::SIGCONT)
            }
            Fault::Corrupt => {
                let segment = segment(worker).ok_or(nix::Error::ESRCH)?;
                let until = Instant::now() + Duration::from_millis(10 + random.below(490));
                // Until the gateway has seen it and replaced the worker, or for a while.
                while Instant::now() < until && corrupt(worker, segment, random).is_ok() {}
                Ok(())
            }
        }
    }
}

/// Strikes again and again at random times, each time once tokens have come again.
fn disturb(server: &Server, mut random: Random, count: u64, over: &AtomicBool) -> Faults {
    let ends = || server.metric("realm_worker_ends_total") as u64;
    let tokens = || server.metric("vllm:generation_tokens_total");
    let is_over = || over.load(Ordering::Acquire);
    let mut faults = Faults::default();
    while faults.total() < count && !is_over() {
        std::thread::sleep(Duration::from_millis(random.below(REST)));
        let fault = *random.pick(&FAULT_KINDS);
        // In this order: a worker that is still loading must not be stopped, as it has all the
        // time it wants.
        let mut worker = server.worker_pid();
        wait_until("there is a worker that computes", || {
            worker = server.worker_pid();
            server.admin("/ready").status == 200
        });
        let (before, struck) = (ends(), Instant::now());
        if fault.strike(server, worker, &mut random).is_err() && ends() == before {
            // What the fault before did to it was found only now.
            continue;
        }
        wait_until("the fault is found", || {
            ends() >= before + fault.deaths() || is_over()
        });
        // Some faults come as soon as anything moves, while streams still recover.
        let recovered = if random.below(4) == 0 { 1 } else { RECOVERED };
        let recovered = tokens() + recovered as f64;
        wait_until("tokens come again", || {
            tokens() >= recovered && server.admin("/ready").status == 200 || is_over()
        });
        let (times, deaths) = faults.struck.entry(fault).or_default();
        *times += 1;
        *deaths += ends() - before;
        faults.slowest = faults.slowest.max(struck.elapsed());
        if faults.total().is_multiple_of(100) {
            println!("so far: {faults}");
        }
    }
    faults
}

/// Writes a wrong word into the segment that a worker writes, mapped there at `base`.
fn corrupt(worker: Pid, base: usize, random: &mut Random) -> nix::Result<()> {
    /// Of the control lines, in bytes; the ring follows.
    const LINES: u64 = 640;
    const ENTRY: u64 = 64;
    let offset = match random.below(4) {
        0 | 1 => *random.pick(&[0, 128, 256, 384]),
        2 => random.below(LINES / 8) * 8,
        _ => LINES + random.below(realm_shm::RING_ENTRIES * ENTRY / 8) * 8,
    };
    let place = RemoteIoVec {
        base: base + offset as usize,
        len: 8,
    };
    let mut word = [0; 8];
    process_vm_readv(worker, &mut [IoSliceMut::new(&mut word)], &[place])?;
    let old = u64::from_le_bytes(word);
    let new = match random.below(3) {
        0 => random.next(),
        1 => old ^ 1 << random.below(64),
        _ => old.wrapping_add(1),
    };
    process_vm_writev(worker, &[IoSlice::new(&new.to_le_bytes())], &[place])?;
    Ok(())
}

/// Where a worker has mapped the segment that it writes.
fn segment(worker: Pid) -> Option<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{worker}/maps")).ok()?;
    let mut mappings = maps
        .lines()
        .filter(|line| line.contains(" rw-s ") && line.contains("/memfd:realm-worker"));
    let (start, _) = mappings.next()?.split_once('-')?;
    usize::from_str_radix(start, 16).ok()
}

// === Poison ===

/// A token that no innocent request holds or may draw.
const POISON: u64 = 1777;

#[test]
fn a_request_that_kills_its_worker_fails_alone() {
    let server = Server::start_with(&[], &[("REALM_TEST_CRASH_TOKEN", &POISON.to_string())]);
    let innocents: Vec<_> = (1..STREAMS)
        .map(|seed| {
            let request =
                continuation("innocent", &[5, 6, 7 + seed], 120).with("seed", json!(seed));
            let request = request.with("logit_bias", json!({POISON.to_string(): -100}));
            let undisturbed = server.ask(&request);
            (request, undisturbed)
        })
        .collect();
    let poison = continuation("poison", &[5, POISON, 6], 8);
    for poison in [poison.clone(), poison.whole()] {
        let under_way = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for (request, undisturbed) in &innocents {
                let (server, under_way) = (&server, &under_way);
                scope.spawn(move || {
                    let end = server.ask_with(request, |chunks| {
                        if chunks == 2 {
                            under_way.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert_eq!(&end.finished(), undisturbed, "{}", request.body);
                });
            }
            wait_until("all are under way", || {
                under_way.load(Ordering::Relaxed) == innocents.len()
            });
            match server.ask_with(&poison, |_| {}) {
                End::Failed(failure) => {
                    assert_eq!(failure.code, "worker_crashed");
                    if !poison.is_streamed() {
                        assert_eq!(failure.status, 500);
                        assert_eq!(failure.should_retry.as_deref(), Some("false"));
                    }
                }
                other => panic!("{other:?}"),
            }
        });
    }
    let books = wait_for_books(&server);
    assert_eq!(books.failed, 2, "{books}");
}

/// More at once than workers may end in a row without a token: each ends another one, which has drawn none.
#[test]
fn a_model_outlives_many_requests_that_kill_its_workers() {
    let server = Server::start_with(&[], &[("REALM_TEST_CRASH_TOKEN", &POISON.to_string())]);
    let innocent = continuation("innocent", &[5, 6, 7], 400)
        .with("seed", json!(3))
        .with("logit_bias", json!({POISON.to_string(): -100}));
    let undisturbed = server.ask(&innocent);
    let poison = continuation("poison", &[5, POISON, 6], 8);
    std::thread::scope(|scope| {
        let poisonous: Vec<_> = (0..7)
            .map(|_| scope.spawn(|| server.ask_with(&poison, |_| {})))
            .collect();
        let end = server.ask_with(&innocent, |_| {});
        assert_eq!(end.finished(), undisturbed);
        for end in poisonous {
            match end.join().expect("no panic") {
                End::Failed(failure) => assert_eq!(failure.code, "worker_crashed"),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(server.ask(&innocent), undisturbed);
}
