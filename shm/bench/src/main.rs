//! What a hand-off costs: `realm-shm` beside iceoryx2 and Unix sockets, between two processes.
//!
//! ```text
//! cargo bench -p realm-shm                       # everything, a few minutes on two idle cores
//! cargo bench -p realm-shm -- --quick            # only to see that it runs
//! cargo bench -p realm-shm -- --cores 2,3        # pinned to these (default: the first two allowed)
//! ```
//!
//! Each measurement starts a second process, pins the two to a core each, and runs all transports
//! one after the other; this is repeated in rounds, and the table shows medians over the rounds.
//! Every transport carries the same payloads, in the same number, through a window of the same
//! depth. The receiver adds up every word, and the sums are compared.
//!
//! - *latency*: half of a round trip in which the payload goes there and another comes back.
//! - *rate*, *GB/s*: one way. The payload is written from private memory by the sender and read by
//!   the receiver, in place where the transport allows that.
//! - *in place*: one way with the payload left alone: what remains is the hand-off. It does not
//!   depend on the size exactly if nothing copies.
//!
//! iceoryx2 runs in its fastest mode: publish-subscribe, loans instead of copies, the thread-local
//! `ipc::Service`, one publisher and one subscriber that polls without pause. Messages that count
//! what was received come back every half window, so that its blocking `send`, which yields to
//! the system while a queue is full, is not entered. A slot of ours is allocated, submitted,
//! answered, checked and freed for every single message.
#![deny(unsafe_code)]

mod iceoryx;
mod lane;
mod report;
mod ring;
mod sockets;

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use lane::{Lane, Payload, Spin};
use report::Report;

/// Who carries the messages, and how its receiver waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    /// `realm-shm`, both sides polling.
    RingSpin,
    /// `realm-shm` as Realm runs it: tokio in the gateway, spin and futex in the worker.
    RingSleep,
    /// iceoryx2, both sides polling.
    IceoryxSpin,
    /// iceoryx2, both sides blocking on its events.
    IceoryxEvent,
    /// A Unix `SEQPACKET` socket; a stream where a message is longer than a packet may be.
    Socket,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// There and back, one at a time.
    Echo,
    /// One way, as fast as it goes.
    Stream,
    /// As `Stream`, with the payload left alone.
    InPlace,
}

/// One measurement of one transport.
#[derive(Debug, Clone, Copy)]
struct Work {
    pattern: Pattern,
    bytes: usize,
    /// Messages measured; a tenth as many go ahead of them.
    count: u64,
}

const TRANSPORTS: [Transport; 5] = [
    Transport::RingSpin,
    Transport::IceoryxSpin,
    Transport::RingSleep,
    Transport::IceoryxEvent,
    Transport::Socket,
];
const PATTERNS: [Pattern; 3] = [Pattern::Echo, Pattern::Stream, Pattern::InPlace];
const SMALL: usize = 64;
const LARGE: usize = 1 << 20;

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Transport::RingSpin => "realm-shm, polling",
            Transport::RingSleep => "realm-shm, sleeping",
            Transport::IceoryxSpin => "iceoryx2, polling",
            Transport::IceoryxEvent => "iceoryx2, events",
            Transport::Socket => "Unix socket",
        }
    }

    /// The transport's end in this process. `leads` in the process that measures.
    fn open(
        self,
        leads: bool,
        work: Work,
        socket: OwnedFd,
        spin: Spin,
    ) -> anyhow::Result<Box<dyn Lane>> {
        let payload = Payload::new(work.bytes, work.pattern != Pattern::InPlace);
        let window = work.window();
        let answers = work.pattern != Pattern::Echo;
        Ok(match self {
            Transport::RingSpin | Transport::RingSleep => {
                let sleeps = self == Transport::RingSleep;
                if leads {
                    Box::new(ring::Gateway::new(
                        socket, payload, window, answers, spin, sleeps,
                    )?)
                } else {
                    Box::new(ring::Worker::new(socket, payload, answers, spin, sleeps)?)
                }
            }
            Transport::IceoryxSpin | Transport::IceoryxEvent => {
                let events = self == Transport::IceoryxEvent;
                Box::new(iceoryx::Port::new(
                    socket, leads, payload, window, answers, spin, events,
                )?)
            }
            Transport::Socket => Box::new(sockets::Socket::new(socket, payload)),
        })
    }
}

impl Work {
    fn warm(self) -> u64 {
        self.count / 10 + 1
    }

    /// Messages that may be under way.
    fn window(self) -> usize {
        match (self.pattern, self.bytes) {
            // The same for both sizes, since one is divided by the other.
            (Pattern::InPlace, _) => 64,
            (_, SMALL) => 1024,
            _ => 8,
        }
    }

    fn socket(self) -> std::io::Result<(OwnedFd, OwnedFd)> {
        if self.bytes <= realm_shm::socket::MAX_MESSAGE {
            realm_shm::socket::pair()
        } else {
            let (a, b) = std::os::unix::net::UnixStream::pair()?;
            Ok((a.into(), b.into()))
        }
    }
}

/// What came out: nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Per message; for an echo the median of half a round trip.
    typical: f64,
    /// For an echo the 99th percentile of the same.
    p99: f64,
}

fn main() -> anyhow::Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "follow") {
        return follow(&args);
    }
    let quick = args.iter().position(|a| a == "--quick");
    quick.map(|at| args.remove(at));
    let cores = match args.as_slice() {
        [] => allowed_cores()?,
        [flag, list] if flag == "--cores" => list
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<usize>, _>>()
            .context("--cores takes two numbers, as in 0,1")?,
        _ => bail!("usage: [--quick] [--cores A,B]"),
    };
    let (Some(&first), Some(&second)) = (cores.first(), cores.get(1).or(cores.first())) else {
        bail!("no core to run on");
    };
    let spin = Spin {
        shared_core: first == second,
    };
    if spin.shared_core {
        println!("one core for two processes: the figures show only that everything runs");
    }
    pin(first)?;

    let rounds = if quick.is_some() { 1 } else { 7 };
    let mut report = Report::default();
    for round in 1..=rounds {
        for pattern in PATTERNS {
            for bytes in [SMALL, LARGE] {
                for transport in TRANSPORTS {
                    // A socket has no place in which a payload could be left.
                    if pattern == Pattern::InPlace && transport == Transport::Socket {
                        continue;
                    }
                    let polls = matches!(transport, Transport::RingSpin | Transport::IceoryxSpin);
                    let count = match (pattern, bytes) {
                        (Pattern::Echo, SMALL) if polls => 200_000,
                        (Pattern::Echo, SMALL) => 20_000,
                        (Pattern::Echo, _) => 2_000,
                        (Pattern::InPlace, _) => 1_000_000,
                        (Pattern::Stream, SMALL) => 1_000_000,
                        (Pattern::Stream, _) => 4_000,
                    };
                    let count = if quick.is_some() { count / 100 } else { count };
                    let work = Work {
                        pattern,
                        bytes,
                        count,
                    };
                    let outcome = measure(transport, work, second, spin).with_context(|| {
                        format!("{}, {pattern:?}, {bytes} bytes", transport.name())
                    })?;
                    report.add(transport, pattern, bytes, outcome);
                }
            }
        }
        eprintln!("round {round} of {rounds} done");
    }
    println!("processes on cores {first} and {second}; medians of {rounds} rounds\n");
    report.print();
    Ok(())
}

fn allowed_cores() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))
}

/// The process at the other end, ended with its handle.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(transport: Transport, work: Work, core: usize, spin: Spin) -> anyhow::Result<Outcome> {
    let (ours, theirs) = work.socket()?;
    let place = |known: &[_]| known.iter().position(|t| *t == transport);
    let pattern = PATTERNS.iter().position(|p| *p == work.pattern);
    let (Some(transport_index), Some(pattern)) = (place(&TRANSPORTS), pattern) else {
        bail!("not in the lists");
    };
    let child = Command::new(std::env::current_exe()?)
        .arg("follow")
        .args(
            [
                transport_index as u64,
                pattern as u64,
                work.bytes as u64,
                work.count,
                core as u64,
                spin.shared_core.into(),
            ]
            .map(|n| n.to_string()),
        )
        .stdin(Stdio::from(theirs))
        .spawn()?;
    let mut follower = Follower(child);
    let mut lane = transport.open(true, work, ours, spin)?;
    let payload = Payload::new(work.bytes, work.pattern != Pattern::InPlace);
    let outcome = match work.pattern {
        Pattern::Echo => echo(&mut *lane, work, &payload)?,
        Pattern::Stream | Pattern::InPlace => stream(&mut *lane, work, &payload)?,
    };
    // The other process stays until this end is closed.
    drop(lane);
    let status = follower.0.wait()?;
    ensure!(status.success(), "the other process ended with {status}");
    Ok(outcome)
}

fn echo(lane: &mut dyn Lane, work: Work, payload: &Payload) -> anyhow::Result<Outcome> {
    let mut halves = Vec::with_capacity(work.count as usize);
    for n in 0..work.warm() + work.count {
        let start = Instant::now();
        lane.send(n)?;
        let sum = lane.recv()?;
        let half = start.elapsed().as_nanos() as u64 / 2;
        ensure!(sum == payload.sum(!n), "message {n} came back damaged");
        if n >= work.warm() {
            halves.push(half);
        }
    }
    halves.sort_unstable();
    let at = |percent: usize| halves[(halves.len() - 1) * percent / 100] as f64;
    Ok(Outcome {
        typical: at(50),
        p99: at(99),
    })
}

fn stream(lane: &mut dyn Lane, work: Work, payload: &Payload) -> anyhow::Result<Outcome> {
    let mut sum = 0u64;
    let mut start = Instant::now();
    for n in 0..work.warm() + work.count {
        if n == work.warm() {
            start = Instant::now();
        }
        lane.send(n)?;
        sum = sum.wrapping_add(payload.sum(n));
    }
    let received = lane.recv()?;
    let typical = start.elapsed().as_nanos() as f64 / work.count as f64;
    ensure!(
        received == payload.sum(sum),
        "what arrived is not what was sent"
    );
    Ok(Outcome {
        typical,
        p99: typical,
    })
}

/// The other process.
fn follow(args: &[String]) -> anyhow::Result<()> {
    let numbers: Vec<usize> = args
        .iter()
        .skip(1)
        .map(|a| a.parse())
        .collect::<Result<_, _>>()?;
    let &[transport, pattern, bytes, count, core, shared_core] = numbers.as_slice() else {
        bail!("started by `cargo bench -p realm-shm` only");
    };
    pin(core)?;
    let work = Work {
        pattern: PATTERNS[pattern],
        bytes,
        count: count as u64,
    };
    let spin = Spin {
        shared_core: shared_core != 0,
    };
    let socket = rustix::stdio::stdin().as_fd().try_clone_to_owned()?;
    let mut lane = TRANSPORTS[transport].open(false, work, socket, spin)?;
    let total = work.warm() + work.count;
    let payload = Payload::new(bytes, work.pattern != Pattern::InPlace);
    if work.pattern == Pattern::Echo {
        for n in 0..total {
            let sum = lane.recv()?;
            ensure!(sum == payload.sum(n), "message {n} arrived damaged");
            lane.send(!n)?;
        }
    } else {
        let mut sum = 0u64;
        for _ in 0..total {
            sum = sum.wrapping_add(lane.recv()?);
        }
        lane.send(sum)?;
    }
    lane.linger()
}
