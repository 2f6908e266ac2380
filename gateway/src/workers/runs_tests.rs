use std::fs::File;
use std::time::Duration;

use realm_shared::run::{Dials, Journal, MOST_SEEN, Tool, ToolChoice, Tools};
use tokio::sync::mpsc;

use super::*;
use crate::batching::{Config, Limits};
use crate::programs::Quarantine;
use crate::workers::generation::Backlog;

/// A driver's parts, without a worker.
struct Desk {
    runs: Runs,
    scheduler: Scheduler,
    metrics: ModelMetrics,
    last_id: u64,
}

impl Desk {
    fn new() -> Self {
        let mut scheduler = Scheduler::new(Config {
            max_waiting: 100,
            step_timeout: Duration::from_secs(60),
            max_table: 1 << 16,
            surplus: 0.1,
        });
        scheduler
            .worker_ready(Limits {
                vocab_size: 100,
                max_context: 64,
                block_size: 16,
                block_count: 64,
                max_sequences: 16,
                max_step_tokens: 64,
            })
            .expect("of use");
        Desk {
            runs: Runs::default(),
            scheduler,
            metrics: ModelMetrics::new("test", &[]),
            last_id: 0,
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Runs, &mut Hands<'_>) -> T) -> T {
        let mut hands = Hands {
            scheduler: &mut self.scheduler,
            metrics: &self.metrics,
            last_id: &mut self.last_id,
            vocabulary: 100,
            kept: 0,
        };
        act(&mut self.runs, &mut hands)
    }

    /// Starts run 1, and has it sent.
    fn start(&mut self) -> mpsc::UnboundedReceiver<(usize, Event)> {
        let heard = self.start_another(1);
        self.send();
        heard
    }

    /// Starts a run with this number.
    fn start_another(&mut self, request: u64) -> mpsc::UnboundedReceiver<(usize, Event)> {
        let (events, heard) = mpsc::unbounded_channel();
        let live = Live {
            request,
            index: 0,
            events,
            backlog: Arc::new(Backlog::default()),
            submitted: Instant::now(),
            last_token: None,
            interrupted: None,
            prompt_tokens: 3,
            shares_prompt: false,
            reservation: None,
            place: None,
        };
        self.runs.start(task(), live);
        heard
    }

    fn send(&mut self) -> Vec<(u64, Journal)> {
        let mut sent = Vec::new();
        let send = |number, run: &Run| {
            sent.push((number, run.hearing.journal().clone()));
            Ok::<_, ()>(Room::Taken)
        };
        self.runs
            .send(Instant::now(), true, send)
            .expect("no error");
        sent
    }

    fn say(&mut self, took: u32, what: What) -> Result<bool, String> {
        let said = Said {
            run: 1,
            took: (took > 0).then_some((0, took)).into_iter().collect(),
            what,
        };
        self.with(|runs, hands| {
            runs.hear(vec![said], hands);
            runs.advance(hands)
        })
    }

    /// A token was drawn for the sequence opened last.
    fn draw(&mut self, token: u32) {
        let id = SequenceId(self.last_id);
        let event = Event::Token {
            token,
            logprobs: None,
        };
        assert_eq!(
            self.with(|runs, hands| runs.event(id, event, hands)),
            None,
            "it is one of a run"
        );
        self.with(|runs, hands| runs.advance(hands)).expect("right");
    }

    fn lose_worker(&mut self) {
        self.scheduler.worker_lost(true);
        self.runs.detach(&mut self.scheduler, Instant::now());
    }
}

pub(in crate::workers) fn task() -> Task {
    let nothing = File::open("/dev/null").expect("is there");
    Task {
        tenant: TenantId::ANYONE,
        allowance: Allowance::default(),
        priority: Priority::default(),
        program: Arc::new(Program {
            name: "test".into(),
            kind: Kind::Program,
            base: None,
            digest: [0; 32],
            compiled: nothing.into(),
            tenant: "nobody".into(),
            quarantine: Quarantine::default(),
        }),
        allotment: Allotment::default(),
        saved: 8,
        wall: Duration::from_secs(100),
        request: Request {
            messages: Vec::new(),
            prompt: vec![1, 2, 3],
            args: "null".into(),
            dials: DIALS,
            max_tokens: 8,
            budget: 64,
            key: 7,
            end_tokens: vec![2],
            context: 64,
            tools: Tools {
                offered: vec![Tool {
                    name: "look".into(),
                    description: None,
                    parameters: "{}".into(),
                    strict: false,
                }],
                choice: ToolChoice::Auto,
                parallel: true,
            },
        },
    }
}

const DIALS: Dials = Dials {
    temperature: 1.0,
    top_p: 1.0,
    top_k: 0,
    min_p: 0.0,
};

fn open(lease: u64, prompt: &[u32]) -> What {
    What::Open(Open {
        lease,
        sequence: 0,
        prompt: prompt.into(),
        dials: DIALS,
        key: 7,
        alternatives: None,
    })
}

fn emit(text: &str) -> What {
    What::Emit(Part::Text(text.to_owned()))
}

fn call(name: &str) -> What {
    What::Emit(Part::Call(name.to_owned()))
}

fn arguments(fragment: &str) -> What {
    What::Emit(Part::Arguments(fragment.to_owned()))
}

fn heard(events: &mut mpsc::UnboundedReceiver<(usize, Event)>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok())
        .map(|(_, event)| event)
        .collect()
}

fn text(text: &str, tokens: u32) -> Event {
    let part = Part::Text(text.to_owned());
    Event::Emitted { part, tokens }
}

#[test]
fn what_is_said_waits_for_the_tokens_it_follows_from() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, open(1, &[1, 2, 3])).expect("right");
    desk.say(1, emit("a")).expect("right");
    desk.say(0, What::Finished(Finish::Length)).expect("right");
    assert_eq!(heard(&mut events), []);
    desk.draw(5);
    let over = Event::Finished(FinishReason::Length);
    assert_eq!(heard(&mut events), [text("a", 1), over]);
    assert!(desk.runs.is_empty());
    assert_eq!(desk.scheduler.stats().cancelled, 1);
    desk.runs
        .end(|_| panic!("the worker said itself that it is over"));
}

#[test]
fn tokens_of_another_sequence_do_not_count_for_those_that_were_taken() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, open(1, &[1, 2, 3])).expect("right");
    desk.say(1, emit("a")).expect("right");
    let What::Open(second) = open(2, &[1, 2, 3]) else {
        panic!("it is one");
    };
    let sequence = 1;
    desk.say(0, What::Open(Open { sequence, ..second }))
        .expect("right");
    // What is behind a text waits with it.
    assert_eq!(desk.last_id, 1);
    desk.draw(5);
    assert_eq!(heard(&mut events), [text("a", 1)]);
    assert_eq!(desk.last_id, 2);
    desk.say(1, emit("b")).expect("right");
    desk.draw(6);
    assert_eq!(heard(&mut events), [], "it was drawn for sequence 1");
}

#[test]
fn another_worker_goes_on_from_the_journal_and_repeats_no_text() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, emit("ab")).expect("right");
    desk.say(0, open(1, &[1, 2, 3])).expect("right");
    desk.draw(5);
    desk.say(1, emit("c")).expect("right");
    // Of a token that nobody will hear of.
    desk.say(1, emit("lost")).expect("right");
    assert_eq!(heard(&mut events), [text("ab", 0), text("c", 1)]);
    desk.lose_worker();
    assert_eq!(desk.scheduler.stats().waiting, 0, "its sequences are gone");
    let drawn = Drawn {
        token: 5,
        logprob: 0.0,
        alternatives: Vec::new(),
    };
    let journal = Journal {
        drawn: vec![vec![drawn]],
        ..Journal::default()
    };
    assert_eq!(desk.send(), [(1, journal)]);
    desk.say(0, emit("a")).expect("right");
    desk.say(0, emit("bcd")).expect("right");
    assert_eq!(heard(&mut events), [text("d", 0)]);
    desk.say(0, open(1, &[1, 2, 3, 5])).expect("right");
    desk.draw(6);
    desk.say(2, emit("e")).expect("right");
    assert_eq!(heard(&mut events), [text("e", 1)]);
}

/// A call is said once, and so are its arguments, wherever they are cut.
#[test]
fn a_call_goes_on_where_it_was() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    let whole = [
        emit("so "),
        call("look"),
        arguments("{\"at\": "),
        arguments("1}"),
        call("look"),
        arguments("{}"),
        emit("done"),
    ];
    let parts = |events: Vec<Event>| {
        let parts = events.into_iter().map(|event| match event {
            Event::Emitted { part, tokens: 0 } => What::Emit(part),
            other => panic!("{other:?}"),
        });
        parts.collect::<Vec<_>>()
    };
    let mut told = Vec::new();
    for known in 0..=whole.len() {
        for what in &whole[..known] {
            desk.say(0, what.clone()).expect("right");
        }
        told.extend(parts(heard(&mut events)));
        assert_eq!(told, whole[..known]);
        desk.lose_worker();
        desk.send();
    }
    // Cut otherwise: what is new of an argument alone.
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, call("look")).expect("right");
    desk.say(0, arguments("{\"a")).expect("right");
    desk.lose_worker();
    desk.send();
    desk.say(0, call("look")).expect("right");
    desk.say(0, arguments("{\"")).expect("right");
    desk.say(0, arguments("at\"")).expect("right");
    desk.say(0, call("look")).expect("right");
    assert_eq!(
        parts(heard(&mut events)),
        [
            call("look"),
            arguments("{\"a"),
            arguments("t\""),
            call("look")
        ]
    );
}

fn saw(words: &[u32], more: bool) -> What {
    match more {
        true => What::More(words.into()),
        false => What::Saw(words.into()),
    }
}

/// What another worker would be given.
fn journal(desk: &mut Desk) -> Journal {
    desk.lose_worker();
    let (_, journal) = desk.send().pop().expect("it runs");
    journal
}

fn tokens(journal: &Journal) -> Vec<u32> {
    let drawn = journal.drawn.iter().flatten();
    drawn.map(|drawn| drawn.token).collect()
}

#[test]
fn what_was_seen_is_written_down_when_it_is_whole_and_what_came_before_it() {
    let mut desk = Desk::new();
    let _events = desk.start();
    desk.say(0, open(1, &[1])).expect("right");
    desk.draw(5);
    desk.say(1, saw(&[7, 8], true)).expect("right");
    desk.say(0, saw(&[9], false)).expect("right");
    desk.say(0, saw(&[], false)).expect("right");
    desk.say(0, saw(&[6], true)).expect("right");
    let known = journal(&mut desk);
    assert_eq!(known.seen, [3, 7, 8, 9, 0]);
    // What follows from a token that was not drawn is lost with it.
    desk.say(0, open(1, &[1])).expect("right");
    desk.say(2, saw(&[4], false)).expect("right");
    assert_eq!(journal(&mut desk), known);
    // Another life goes on from there.
    desk.say(1, saw(&[4], false)).expect("right");
    assert_eq!(journal(&mut desk).seen, [3, 7, 8, 9, 0, 1, 4]);
}

#[test]
fn tokens_that_followed_from_something_else_are_forgotten() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, open(1, &[1])).expect("right");
    desk.draw(5);
    desk.draw(6);
    desk.draw(7);
    // The program took the first one, saw something and asked for the next: nobody heard of that.
    assert_eq!(tokens(&journal(&mut desk)), [5, 6, 7]);
    desk.say(1, What::Redraw(vec![(0, 1)])).expect("right");
    desk.say(0, saw(&[3], false)).expect("right");
    desk.say(0, open(2, &[1, 5])).expect("right");
    desk.say(1, emit("a")).expect("right");
    assert_eq!(heard(&mut events), [], "it follows from a new token");
    desk.draw(8);
    assert_eq!(heard(&mut events), [text("a", 4)], "four were computed");
    let known = journal(&mut desk);
    assert_eq!((tokens(&known), known.seen), (vec![5, 8], vec![1, 3]));
}

fn keep(name: &str, tokens: &[u32]) -> What {
    What::Keep(Keep {
        name: name.into(),
        seconds: 60,
        tokens: tokens.into(),
    })
}

/// What is on the way to the worker.
fn answers(desk: &mut Desk) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    let answer = |run, _: TenantId, tokens: &[u32]| {
        assert_eq!(run, 1);
        all.push(tokens.to_vec());
        Ok::<_, ()>(Room::Taken)
    };
    desk.runs.answer(answer).expect("no error");
    all
}

#[test]
fn what_is_saved_outlives_workers_and_is_saved_once() {
    let mut desk = Desk::new();
    let _events = desk.start();
    desk.say(0, What::More(vec![1, 2])).expect("right");
    desk.say(0, keep("a", &[3])).expect("right");
    desk.say(0, What::Reopen("a".into())).expect("right");
    assert_eq!(answers(&mut desk), [[1, 2, 3]]);
    desk.say(0, What::Reopen("b".into())).expect("right");
    assert!(
        desk.say(0, What::Reopen("c".into())).is_err(),
        "it waits for an answer"
    );
    assert_eq!(desk.runs.saved_tokens(), 3);
    let journal = journal(&mut desk);
    assert_eq!(journal.seen, [3, 1, 2, 3, 0]);
    assert_eq!(answers(&mut desk), [[0; 0]; 0], "that worker is gone");
    // Meanwhile another request has saved something else.
    let other = Keep {
        name: "a".into(),
        seconds: 60,
        tokens: vec![9],
    };
    let now = Instant::now();
    desk.runs.saved.keep(TenantId::ANYONE, 8, other, now);
    desk.say(0, keep("a", &[1, 2, 3])).expect("right");
    desk.say(0, What::Reopen("a".into())).expect("right");
    assert_eq!(answers(&mut desk), [[9]]);
    desk.say(0, keep("a", &[])).expect("right");
    assert_eq!(desk.runs.saved_tokens(), 0);
}

#[test]
fn a_request_that_is_gone_ends_its_run_on_the_worker() {
    let mut desk = Desk::new();
    let _events = desk.start();
    desk.say(0, open(1, &[1])).expect("right");
    assert!(desk.with(|runs, hands| runs.cancel(1, Outcome::Cancelled, hands)));
    assert!(!desk.with(|runs, hands| runs.cancel(1, Outcome::Cancelled, hands)));
    let mut told = Vec::new();
    desk.runs.end(|run| {
        told.push(run);
        true
    });
    assert_eq!(told, [1]);
    assert_eq!(desk.scheduler.stats().cancelled, 1);
    // What it says meanwhile is of no interest.
    desk.say(0, open(2, &[1])).expect("right");
    assert_eq!(desk.last_id, 1);
}

#[test]
fn a_run_ends_when_it_has_taken_as_long_as_it_may() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, open(1, &[1])).expect("right");
    let end = desk.runs.deadline().expect("it runs");
    let just = end.checked_sub(Duration::from_millis(1)).expect("later");
    desk.with(|runs, hands| runs.expire(just, hands));
    assert_eq!(heard(&mut events), []);
    desk.with(|runs, hands| runs.expire(end, hands));
    let [Event::Failed(FailReason::Program { fault, message, .. })] = &heard(&mut events)[..]
    else {
        panic!("it is over");
    };
    assert_eq!(
        (*fault, &message[..]),
        (Fault::Wall, "it is not done after 100 s")
    );
    assert_eq!(desk.scheduler.stats().cancelled, 1);
    assert_eq!(desk.runs.deadline(), None);
}

#[test]
fn a_failure_of_a_sequence_is_one_of_the_run() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, open(1, &[1])).expect("right");
    let failed = Event::Failed(FailReason::NotANumber);
    let id = SequenceId(desk.last_id);
    desk.with(|runs, hands| runs.event(id, failed.clone(), hands));
    assert_eq!(heard(&mut events), [failed]);
    assert!(desk.runs.is_empty());
}

#[test]
fn a_worker_may_say_only_what_a_program_can() {
    let long = [1; 65];
    let unlike = Open {
        dials: Dials {
            temperature: f32::NAN,
            ..DIALS
        },
        ..Open {
            lease: 1,
            sequence: 0,
            prompt: vec![1],
            dials: DIALS,
            key: 0,
            alternatives: None,
        }
    };
    for what in [
        open(1, &[]),
        open(1, &[100]),
        open(1, &long),
        What::Open(unlike),
        What::Failed(0, String::new()),
        What::Redraw(vec![(0, 1)]),
        call("nothing"),
        keep("", &[1]),
        keep(&"x".repeat(257), &[1]),
        keep("a", &[100]),
        keep("a", &long),
        saw(&vec![0; MOST_SEEN], false),
        saw(&vec![0; MOST_SEEN + 1], true),
    ] {
        let mut desk = Desk::new();
        let _events = desk.start();
        let wrong = desk.say(0, what.clone());
        assert!(
            wrong.is_err_and(|wrong| wrong.contains("run 1")),
            "{what:?}"
        );
    }
}

#[test]
fn a_program_that_opens_many_sequences_waits_for_their_ends() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    for lease in 1..=100 {
        desk.say(0, open(lease, &[1])).expect("right");
    }
    desk.say(0, emit("all")).expect("right");
    let most = Allotment::default().sequences as usize * SLACK;
    for over in 0..100 - most {
        assert_eq!(desk.scheduler.stats().waiting + over, most + over);
        assert_eq!(heard(&mut events), []);
        let id = SequenceId(over as u64 + 1);
        desk.scheduler.cancel(id);
        let stopped = Event::Finished(FinishReason::Stop);
        desk.with(|runs, hands| runs.event(id, stopped, hands));
        desk.with(|runs, hands| runs.advance(hands)).expect("right");
    }
    assert_eq!(heard(&mut events), [text("all", 0)]);
}

#[test]
fn who_reads_slowly_holds_the_sequences() {
    let mut desk = Desk::new();
    let mut events = desk.start();
    desk.say(0, open(1, &[1])).expect("right");
    for _ in 0..300 {
        desk.say(0, emit("x")).expect("right");
    }
    assert_eq!(desk.scheduler.stats().held, 1);
    desk.say(0, open(2, &[1])).expect("right");
    assert_eq!(desk.scheduler.stats().held, 2);
    assert_eq!(heard(&mut events).len(), 300);
    desk.runs.resume(1, &mut desk.scheduler);
    assert_eq!(desk.scheduler.stats().held, 0);
}

fn sent(desk: &mut Desk) -> Vec<u64> {
    desk.send().into_iter().map(|(number, _)| number).collect()
}

#[test]
fn suspects_run_one_after_the_other_and_others_wait() {
    let mut desk = Desk::new();
    let _events = [desk.start(), desk.start_another(2)];
    assert_eq!(sent(&mut desk), [2]);
    desk.lose_worker();
    let _later = desk.start_another(3);
    let busy = |_, _: &Run| -> Result<Room, ()> { panic!("something else runs") };
    desk.runs.send(Instant::now(), false, busy).expect("none");
    assert_eq!(sent(&mut desk), [1]);
    assert!(desk.runs.is_on_trial(&desk.scheduler));
    assert_eq!(sent(&mut desk), [0; 0]);
    // It is cleared by a token of a sequence that is.
    desk.say(0, open(1, &[1])).expect("right");
    desk.draw(5);
    assert_eq!(sent(&mut desk), [0; 0]);
    desk.scheduler.cancel(SequenceId(desk.last_id));
    desk.draw(6);
    assert_eq!(sent(&mut desk), [2]);
    // Or when others have waited long enough.
    let (_, until) = desk.runs.trial.expect("another one");
    assert_eq!(desk.runs.deadline(), Some(until));
    assert!(desk.with(|runs, hands| runs.expire(until, hands)));
    assert_eq!(sent(&mut desk), [3]);
    assert!(!desk.runs.is_on_trial(&desk.scheduler));
}

#[test]
fn who_is_alone_in_the_second_death_is_convicted() {
    let mut desk = Desk::new();
    let _events = [desk.start(), desk.start_another(2)];
    sent(&mut desk);
    let convicted = |desk: &mut Desk, in_flight: &[SequenceId]| {
        let loss = Loss {
            in_flight: in_flight.to_vec(),
            on_trial: false,
            convicted: None,
        };
        desk.runs.convicted(&loss, true).map(|(number, _)| number)
    };
    assert_eq!(convicted(&mut desk, &[]), None, "there are two");
    desk.lose_worker();
    assert_eq!(sent(&mut desk), [1]);
    assert_eq!(
        convicted(&mut desk, &[SequenceId(99)]),
        None,
        "nor is it alone"
    );
    assert_eq!(convicted(&mut desk, &[]), Some(1));
    desk.lose_worker();
    desk.with(|runs, hands| runs.cancel(1, Outcome::Cancelled, hands));
    assert_eq!(sent(&mut desk), [2]);
    assert_eq!(convicted(&mut desk, &[]), Some(2));
}

#[test]
fn who_was_on_trial_goes_first_the_next_time() {
    let mut desk = Desk::new();
    let _events = [desk.start(), desk.start_another(2)];
    sent(&mut desk);
    desk.lose_worker();
    assert_eq!(sent(&mut desk), [1]);
    let (_, until) = desk.runs.trial.expect("on trial");
    desk.with(|runs, hands| runs.expire(until, hands));
    let begun = Instant::now();
    assert_eq!(sent(&mut desk), [2]);
    desk.lose_worker();
    assert_eq!(sent(&mut desk), [2], "it is alone now");
    let (_, until) = desk.runs.trial.expect("on trial");
    assert!(until - begun >= 2 * QUIET, "others wait longer for it");
}

#[test]
fn what_is_in_quarantine_fails() {
    let mut desk = Desk::new();
    let (mut events, mut other) = (desk.start(), desk.start_another(2));
    desk.runs.runs[&1].task.program.put_in_quarantine();
    desk.with(|runs, hands| runs.fail_quarantined(hands));
    let kind = Kind::Program;
    let failed = Event::Failed(FailReason::Quarantined { kind });
    assert_eq!(heard(&mut events), [failed]);
    assert_eq!(
        heard(&mut other),
        [],
        "it is another handle of nobody's registry"
    );
}
