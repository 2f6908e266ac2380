//! A gateway's place, taken by a test: it has a program answer, and computes its sequences.

use std::collections::{BTreeMap, VecDeque};

use realm_shared::ABI_VERSION;
use realm_shared::run::{
    Dials, Drawn, Journal, Keep, Message, Open, Part, Request, Role, Said, Tools, What,
};
use realm_shared::wire::{HEARD, LISTEN_BYTES};
use realm_shm::{AlignedBuf, GatewayEnd, Geometry, Owner, WorkerEnd, socket};

use super::*;
use crate::sampler::{Scored, mix};

/// Key of the random numbers of the requests here.
pub(super) const KEY: u64 = 7;
/// Numbers of a hidden state.
const HIDDEN: usize = 3;

/// A gateway and its worker, without an engine.
pub(super) struct Rig {
    pub(super) programs: Programs,
    pub(super) outbox: Arc<Outbox>,
    pub(super) ring: GatewayEnd,
}

impl Rig {
    /// One that has sent these programs, and lent slots to listen.
    pub(super) fn new(names: &[&str]) -> Rig {
        let mut rig = Rig::deaf(names);
        rig.lend(3);
        rig
    }

    /// The same with a pool of instances of its own.
    pub(super) fn with_pool(pool: Pool, names: &[&str]) -> Rig {
        let mut rig = Rig {
            programs: programs_of(Arc::new(Host::new(pool)), names),
            ..Rig::deaf(&[])
        };
        rig.lend(3);
        rig
    }

    /// One that has lent no slot yet.
    pub(super) fn deaf(names: &[&str]) -> Rig {
        let (ours, theirs) = socket::pair().expect("sockets");
        let accept = move || WorkerEnd::accept(theirs.as_fd(), ABI_VERSION, LONG);
        let worker = std::thread::spawn(accept);
        let ring = GatewayEnd::create(7, &Geometry::default(), ABI_VERSION).expect("memory");
        ring.offer(ours.as_fd(), LONG).expect("answered");
        let worker = worker.join().expect("no panic").expect("accepted");
        Rig {
            programs: programs(names),
            outbox: Arc::new(Outbox::new(worker.split().1)),
            ring,
        }
    }

    pub(super) fn lend(&mut self, count: usize) {
        for _ in 0..count {
            let slot = self.ring.alloc_output(LISTEN_BYTES, Owner::GATEWAY);
            self.outbox.lend(slot.expect("room")).expect("sound");
        }
    }

    /// What programs have said since. The slots are lent again.
    pub(super) fn heard(&mut self) -> Vec<Said> {
        let mut all = Vec::new();
        while let Some(message) = self.ring.poll().expect("a sound worker") {
            assert_eq!(message.kind, HEARD);
            let (mut copy, len) = (AlignedBuf::new(), message.args[0] as usize);
            let copied = self.ring.copy_output(message.output, len, &mut copy);
            copied.expect("ours");
            let said: Vec<Said> = serde_json::from_slice(&copy).expect("JSON");
            assert!(!said.is_empty());
            all.extend(said);
            self.outbox.lend(message.output).expect("sound");
        }
        all
    }

    pub(super) fn answer(&self, answer: Answer) {
        self.programs.answer(answer, &self.outbox);
    }

    /// Has a script answered to its end.
    pub(super) fn play(&mut self, answer: Answer) -> Play {
        let mut play = Play::begin(self, answer);
        play.finish(self);
        play
    }

    /// How an answer fails.
    pub(super) fn failure(&mut self, answer: Answer) -> Failure {
        match self.play(answer).last {
            Some(What::Failed(fault, message)) => {
                Failure::new(Fault::from_number(fault).expect("known"), message)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An answer to a request with these arguments.
pub(super) fn answer(args: &str) -> Answer {
    Answer {
        run: 1,
        program: 1,
        allotment: Allotment {
            tenant: 1,
            ..Allotment::default()
        },
        request: Request {
            messages: vec![Message {
                role: Role::User,
                content: "Hi".into(),
                tool_calls: Vec::new(),
                tool_call_id: None,
            }],
            prompt: vec![5, 6, 7],
            args: args.to_owned(),
            dials: Dials {
                temperature: 1.0,
                top_p: 1.0,
                top_k: 0,
                min_p: 0.0,
            },
            max_tokens: 100,
            budget: 1000,
            key: KEY,
            end_tokens: vec![2],
            context: 1000,
            tools: Tools::default(),
        },
        journal: Journal::default(),
        vocabulary: VOCABULARY,
        context: 1 << 20,
        hidden_size: HIDDEN,
    }
}

/// A sequence in a slot.
pub(super) struct Computed {
    pub(super) open: Open,
    pub(super) steering: Steering,
    /// Tokens that followed its prompt.
    pub(super) drawn: Vec<u32>,
}

/// An answer, and what came of it so far.
#[derive(Default)]
pub(super) struct Play {
    pub(super) run: u64,
    /// By lease.
    pub(super) live: BTreeMap<u64, Computed>,
    /// All that were opened.
    pub(super) opened: Vec<Open>,
    pieces: Vec<u32>,
    pub(super) text: String,
    /// Tools that it called, and with what.
    pub(super) calls: Vec<(String, String)>,
    /// In the order in which they were drawn, with their sequences.
    pub(super) drawn: Vec<(u32, Drawn)>,
    pub(super) last: Option<What>,
    /// How often logits were shown.
    pub(super) shown: usize,
    /// What the model draws where any token may follow, until there is no more.
    pub(super) script: VecDeque<u32>,
    /// Sequences that are not computed for now.
    pub(super) held: Vec<u32>,
    /// Tokens taken, by sequence, and those of them that were drawn in an earlier life.
    took: BTreeMap<u32, usize>,
    before: Vec<usize>,
    /// What it saw, and how many tokens were drawn by then.
    pub(super) seen: Vec<(usize, Vec<u32>)>,
    /// What is kept under which name.
    pub(super) kept: BTreeMap<String, Keep>,
}

impl Play {
    pub(super) fn begin(rig: &Rig, answer: Answer) -> Play {
        let run = answer.run;
        let before = answer.journal.drawn.iter().map(Vec::len).collect();
        rig.answer(answer);
        Play {
            run,
            before,
            ..Play::default()
        }
    }

    pub(super) fn finish(&mut self, rig: &mut Rig) {
        self.until(rig, |play| play.last.is_some());
        for (sequence, took) in &self.took {
            let drawn = self.drawn.iter().filter(|(of, _)| of == sequence);
            let before = self.before.get(*sequence as usize).copied();
            let all = before.unwrap_or(0) + drawn.count();
            assert!(*took <= all, "it took {took} of {all} of {sequence}");
        }
    }

    pub(super) fn until(&mut self, rig: &mut Rig, over: impl Fn(&Play) -> bool) {
        let begun = Instant::now();
        while !over(self) {
            assert!(begun.elapsed() < LONG, "no end; so far {:?}", self.text);
            self.turn(rig);
        }
    }

    /// Hears what was said, and draws a token for each sequence that wants one.
    pub(super) fn turn(&mut self, rig: &mut Rig) {
        self.hear(rig);
        let mut over = Vec::new();
        let mut idle = true;
        for (lease, sequence) in &mut self.live {
            if self.held.contains(&sequence.open.sequence) {
                continue;
            }
            match sequence.steering.verdict() {
                Verdict::Late => {}
                Verdict::Draw(draw) => {
                    idle = false;
                    let scripted = match &draw.allowed {
                        Allowed::All => self.script.pop_front(),
                        _ => None,
                    };
                    let drawn = match scripted {
                        Some(token) => sequence.give(token),
                        None => sequence.draw(&draw),
                    };
                    self.drawn.push((sequence.open.sequence, drawn));
                }
                Verdict::DrawFrom(_, logits) => {
                    idle = false;
                    let token = likeliest(&logits);
                    let drawn = sequence.give(token);
                    self.drawn.push((sequence.open.sequence, drawn));
                }
                Verdict::Show => {
                    idle = false;
                    self.shown += 1;
                    let tokens = [&sequence.open.prompt[..], &sequence.drawn].concat();
                    let hidden = hidden(&tokens);
                    sequence.steering.show(&logits(&tokens), &hidden);
                }
                Verdict::Stop => over.push(*lease),
                other => panic!("{other:?}"),
            }
        }
        for lease in over {
            self.live.remove(&lease);
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(super) fn hear(&mut self, rig: &mut Rig) {
        for said in rig.heard() {
            assert_eq!(said.run, self.run);
            assert_eq!(self.last, None, "something was said after the last thing");
            for (sequence, count) in said.took {
                *self.took.entry(sequence).or_default() += count as usize;
            }
            let mut what = said.what;
            if !matches!(what, What::More(_)) {
                what.prepend(std::mem::take(&mut self.pieces));
            }
            match what {
                What::More(words) => self.pieces.extend(words),
                What::Open(open) => {
                    self.opened.push(open.clone());
                    let steering = rig.programs.join(open.lease);
                    let computed = Computed {
                        steering,
                        drawn: Vec::new(),
                        open,
                    };
                    self.live.insert(computed.open.lease, computed);
                }
                What::Saw(words) => self.seen.push((self.drawn.len(), words)),
                What::Reopen(name) => {
                    let kept = self.kept.get(&name).map(|keep| keep.tokens.clone());
                    let tokens = kept.unwrap_or_default();
                    self.seen.push((self.drawn.len(), tokens.clone()));
                    rig.programs.tell(self.run, tokens);
                }
                What::Keep(keep) => drop(self.kept.insert(keep.name.clone(), keep)),
                What::Redraw(kept) => {
                    for (sequence, kept) in kept {
                        self.before[sequence as usize] = kept as usize;
                    }
                }
                What::Emit(Part::Text(text)) => self.text.push_str(&text),
                What::Emit(Part::Call(name)) => self.calls.push((name, String::new())),
                What::Emit(Part::Arguments(more)) => {
                    let (_, arguments) = self.calls.last_mut().expect("a call began");
                    arguments.push_str(&more);
                }
                what => self.last = Some(what),
            }
        }
    }

    /// What a gateway would have written down when so many tokens were drawn.
    pub(super) fn journal(&self, count: usize) -> Journal {
        let seen = self.seen.iter().filter(|(drawn, _)| *drawn <= count);
        self.journal_of(count, seen.count())
    }

    /// The same, where it has heard of so many things only that were seen.
    pub(super) fn journal_of(&self, count: usize, sights: usize) -> Journal {
        let mut journal = Journal::default();
        for (sequence, token) in &self.drawn[..count] {
            let sequence = *sequence as usize;
            if journal.drawn.len() <= sequence {
                journal.drawn.resize(sequence + 1, Vec::new());
            }
            journal.drawn[sequence].push(token.clone());
        }
        for (_, words) in &self.seen[..sights] {
            journal.seen.push(words.len() as u32);
            journal.seen.extend(words);
        }
        journal
    }
}

impl Computed {
    /// Draws a token as the engine would, but for the model.
    fn draw(&mut self, draw: &Draw) -> Drawn {
        let number = self.steering.drawn_before() + self.drawn.len() as u32;
        let tokens = [&self.open.prompt[..], &self.drawn].concat();
        self.give(model(&tokens, self.open.key, number, draw))
    }

    fn give(&mut self, token: u32) -> Drawn {
        let alternatives: Vec<_> = (0..self.open.alternatives.unwrap_or(0))
            .map(|n| (n + 1, -1.5 - n as f32))
            .collect();
        let logprob = self.open.alternatives.map_or(0.0, |_| -0.5);
        let scored = alternatives.iter().map(|(token, logprob)| Scored {
            token: *token,
            logprob: *logprob,
        });
        let scored: Vec<_> = scored.collect();
        self.drawn.push(token);
        self.steering.accept_scored(token, logprob, &scored);
        Drawn {
            token,
            logprob,
            alternatives,
        }
    }
}

/// Depends on all that a model's draws may depend on.
pub(super) fn model(tokens: &[u32], key: u64, number: u32, draw: &Draw) -> u32 {
    let hash = tokens.iter().fold(mix(key), |h, t| mix(h ^ u64::from(*t)));
    let hash = mix(hash.wrapping_add(number.into()));
    let of = |tokens: &[u32]| tokens[hash as usize % tokens.len()];
    match &draw.allowed {
        Allowed::All => hash as u32 % VOCABULARY as u32,
        Allowed::Tokens(tokens) => of(tokens),
        Allowed::Mask(words) => of(&set(words)),
    }
}

/// Tokens whose bits are set.
fn set(words: &[u32]) -> Vec<u32> {
    let is_set = |token: &u32| words[*token as usize / 32] >> (token % 32) & 1 == 1;
    (0..words.len() as u32 * 32).filter(is_set).collect()
}

/// What the model thinks of each token that may follow these.
pub(super) fn logits(tokens: &[u32]) -> Vec<f32> {
    let hash = tokens.iter().fold(KEY, |h, t| mix(h ^ u64::from(*t)));
    let number = |token: u64| mix(hash.wrapping_add(token)) as u32 as f32 / u32::MAX as f32;
    (0..VOCABULARY as u64).map(number).collect()
}

/// What the model knows at the last of these.
pub(super) fn hidden(tokens: &[u32]) -> Vec<f32> {
    let (length, last) = (tokens.len() as f32, tokens.last());
    vec![length, last.map_or(0.0, |token| *token as f32), 0.5]
}

/// Where the largest stands.
pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let largest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.map_or(0, |(token, _)| token as u32)
}
