//! What tenants get beside one another when some want more than there is: a scheduler whose worker
//! takes time, by a clock of its own, so that nothing here depends on the machine.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::*;
use crate::batching::scheduler::simulation::mix;

/// Microseconds of a step, of each row that decodes, and of each token of a prompt.
#[derive(Clone, Copy)]
struct Device(u64, u64, u64);

/// A model of 135M on two cores, about as measured: a row costs as much as a step after 20 of them.
const CPU: Device = Device(10_500, 550, 650);
/// A model of 8B on a GPU, about as they are: rows cost little.
const GPU: Device = Device(10_000, 10, 100);

/// How a tenant asks.
#[derive(Clone, Copy)]
enum Load {
    /// So many clients, each of which sends the next request when it has an answer.
    Clients(u64),
    /// So many requests in 1,000 seconds on the average, whether or not there are answers.
    Rate(u64),
}

impl Load {
    fn times(self, factor: u64) -> Self {
        match self {
            Self::Clients(clients) => Self::Clients(clients * factor),
            Self::Rate(rate) => Self::Rate(rate * factor),
        }
    }
}

const PROMPT: u64 = 128;
const OUTPUT: u32 = 64;
const SECOND: u64 = 1_000_000;

/// Longest time that a client takes for its next request.
const THINKS: u64 = SECOND / 5;

/// What a tenant had.
#[derive(Default, Clone)]
struct Had {
    tokens: u64,
    /// Microseconds to the first token of each request.
    first: Vec<u64>,
}

/// A request that runs or waits.
struct Asked {
    tenant: usize,
    at: u64,
    started: bool,
}

struct Service {
    scheduler: Scheduler,
    device: Device,
    start: Instant,
    /// Microseconds since the start.
    now: u64,
    loads: Vec<Load>,
    /// Requests that each tenant sent.
    sent: Vec<u64>,
    /// When requests arrive, and whose.
    arrivals: BinaryHeap<Reverse<(u64, usize, u64)>>,
    live: BTreeMap<SequenceId, Asked>,
    last: u64,
    had: Vec<Had>,
    /// Microseconds of the longest step that was planned when only the first tenant had had anything to do for
    /// some plans.
    longest: u64,
}

impl Service {
    fn new(device: Device, loads: Vec<Load>) -> Self {
        let mut scheduler = Scheduler::new(Config {
            max_waiting: usize::MAX,
            step_timeout: TIMEOUT,
            max_table: 1 << 20,
            surplus: 0.1,
        });
        let limits = Limits {
            block_size: 16,
            block_count: 8192,
            max_sequences: 256,
            max_step_tokens: 512,
            max_context: 4096,
            vocab_size: VOCAB,
        };
        scheduler.worker_ready(limits).expect("valid limits");
        let mut service = Self {
            scheduler,
            device,
            start: Instant::now(),
            now: 0,
            sent: vec![0; loads.len()],
            arrivals: BinaryHeap::new(),
            live: BTreeMap::new(),
            longest: 0,
            last: 0,
            had: vec![Had::default(); loads.len()],
            loads,
        };
        for tenant in 0..service.loads.len() {
            match service.loads[tenant] {
                Load::Clients(clients) => (0..clients).for_each(|_| service.send(tenant)),
                Load::Rate(_) => service.send(tenant),
            }
        }
        service
    }

    /// Sends a tenant's next request, some time from now.
    fn send(&mut self, tenant: usize) {
        self.sent[tenant] += 1;
        let random = mix(self.sent[tenant], tenant as u64) % SECOND + 1;
        let after = match self.loads[tenant] {
            Load::Clients(_) => random * THINKS / SECOND,
            Load::Rate(rate) => {
                let mean = 1000 * SECOND / rate;
                (-(random as f64 / SECOND as f64).ln() * mean as f64) as u64
            }
        };
        let request = self.sent[tenant];
        self.arrivals
            .push(Reverse((self.now + after, tenant, request)));
    }

    fn arrive(&mut self, at: u64, tenant: usize) {
        self.last += 1;
        let id = SequenceId(self.last);
        let number = NonZeroU32::new(tenant as u32 + 2).expect("not 0");
        // All differ, so that nothing is found.
        let token = |position| (mix(id.0, position) % u64::from(VOCAB)) as u32;
        let sequence = Sequence {
            id,
            tenant: TenantId(number),
            prompt: (0..PROMPT).map(token).collect(),
            ..blank(OUTPUT)
        };
        let started = false;
        self.live.insert(
            id,
            Asked {
                tenant,
                at,
                started,
            },
        );
        self.scheduler.submit(sequence).expect("accepted");
        if let Load::Rate(_) = self.loads[tenant] {
            self.send(tenant);
        }
    }

    fn time(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    /// Runs for so long, and tells what each tenant had then.
    fn run(&mut self, time: u64) -> Vec<Had> {
        let end = self.now + time;
        self.had.fill(Had::default());
        self.longest = 0;
        let mut steps = VecDeque::new();
        let mut plans = 0;
        while self.now < end || !steps.is_empty() {
            while let Some(&Reverse((at, tenant, _))) = self.arrivals.peek()
                && at <= self.now
            {
                self.arrivals.pop();
                self.arrive(at, tenant);
            }
            while self.now < end
                && let Some(plan) = self.scheduler.plan(self.time(), |_| true)
            {
                let alone = self.live.values().all(|asked| asked.tenant == 0);
                plans = if alone { plans + 1 } else { 0 };
                steps.push_back((plan, plans > 20));
            }
            match steps.pop_front() {
                Some((plan, alone)) => {
                    let before = self.now;
                    self.compute(&plan);
                    if alone {
                        self.longest = self.longest.max(self.now - before);
                    }
                }
                None => self.now = self.arrivals.peek().map_or(end, |next| next.0.0),
            }
        }
        self.had.clone()
    }

    fn compute(&mut self, plan: &StepPlan) {
        let Device(step, row, token) = self.device;
        let rows = counts(plan);
        let decodes = rows.iter().filter(|&&count| count == 1).count() as u64;
        let prefill = plan.tokens.len() as u64 - decodes;
        let busy = step + row * decodes + token * prefill;
        self.now += busy;
        let busy = Duration::from_micros(busy);
        let answer = Answer::to(plan, 1);
        let done = self.scheduler.complete(self.time(), busy, answer.view());
        done.expect("a right answer");
        while let Some((id, event)) = self.scheduler.poll_event() {
            let asked = self.live.get_mut(&id).expect("live");
            let had = &mut self.had[asked.tenant];
            if let Event::Token { .. } = event {
                had.tokens += 1;
                if !std::mem::replace(&mut asked.started, true) {
                    had.first.push(self.now - asked.at);
                }
            }
            if event.is_last()
                && let Some(asked) = self.live.remove(&id)
                && let Load::Clients(_) = self.loads[asked.tenant]
            {
                self.send(asked.tenant);
            }
        }
    }
}

/// Jain's index of fairness: 1 where all have the same.
fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    sum * sum / (values.len() as f64 * squares)
}

fn p99(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() * 99 / 100] as f64
}

/// What is left of what the steady tenants have.
#[derive(Debug)]
struct Left {
    /// Of their throughput.
    tokens: f64,
    /// Jain's index of the parts that each is left with.
    jain: f64,
    /// How many times as long 99 of 100 requests wait for their first token at most.
    first: f64,
}

impl Left {
    fn check(&self) {
        let kept = self.tokens >= 0.95 && self.jain >= 0.97 && self.first <= 1.5;
        assert!(kept, "{self:?}");
    }
}

/// `steady` tenants and `floods` more: what the steady ones have when the others ask for `factor`
/// times as much as they do, beside what they have when all ask for the same, for so many seconds.
fn flooded(
    device: Device,
    steady: usize,
    floods: usize,
    load: Load,
    factor: u64,
    seconds: u64,
) -> Left {
    let measure = |factor| {
        let mut loads = vec![load; steady];
        loads.extend(vec![load.times(factor); floods]);
        let mut service = Service::new(device, loads);
        service.run(60 * SECOND);
        let mut had = service.run(seconds * SECOND);
        had.truncate(steady);
        let tokens: Vec<f64> = had.iter().map(|had| had.tokens as f64).collect();
        let first = had.into_iter().flat_map(|had| had.first).collect();
        (tokens, p99(first))
    };
    let (equal, first) = measure(1);
    let (beside, first_beside) = measure(factor);
    let sum = |tokens: &[f64]| tokens.iter().sum::<f64>();
    // Of those that asked at all.
    let both = beside.iter().zip(&equal).filter(|(_, equal)| **equal > 0.0);
    let parts: Vec<f64> = both.map(|(beside, equal)| beside / equal).collect();
    Left {
        tokens: sum(&beside) / sum(&equal),
        jain: jain(&parts),
        first: first_beside / first,
    }
}

#[test]
fn nine_tenants_keep_what_is_theirs_beside_a_flood() {
    for (device, load) in [
        (CPU, Load::Clients(1)),
        (CPU, Load::Clients(3)),
        (CPU, Load::Rate(100)),
        (CPU, Load::Rate(500)),
        (GPU, Load::Clients(1)),
        (GPU, Load::Clients(3)),
        (GPU, Load::Clients(10)),
    ] {
        let left = flooded(device, 9, 1, load, 20, 600);
        left.check();
    }
}

/// Whoever comes next waits for two steps: they are not long where somebody may come.
#[test]
fn a_flood_that_is_not_always_alone_has_no_long_steps() {
    let longest = |others: u64| {
        let loads = vec![Load::Rate(1500), Load::Rate(others)];
        let mut service = Service::new(CPU, loads);
        service.run(100 * SECOND);
        service.run(500 * SECOND);
        service.longest
    };
    // A request of somebody else every ten seconds, and hardly any.
    let (company, alone) = (longest(100), longest(1));
    assert!(2 * company < alone, "{company} us, alone {alone} us");
}

#[test]
fn a_thousand_tenants_keep_what_is_theirs_beside_floods() {
    for (device, load, floods, factor) in [
        (CPU, Load::Clients(1), 1, 20),
        (CPU, Load::Rate(4), 1, 2000),
        (GPU, Load::Rate(25), 1, 20),
        (GPU, Load::Rate(25), 100, 20),
    ] {
        let left = flooded(device, 1000 - floods, floods, load, factor, 400);
        left.check();
    }
}
