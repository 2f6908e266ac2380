//! Programs made from `programs/`, run as the engine runs them, without a model.
//!
//! `cargo xtask programs` makes them; `REALM_PROGRAMS` says where they are.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use realm_shared::wire::{Allotment, Fault};
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::engine::ModelSource;

mod answering;
mod calls;
mod forms;
mod grammars;
mod limits;
mod model;
mod rig;
mod tensors;
mod waits;

/// Far beyond what anything here takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(120);
/// Tokens of the embedded model.
const VOCABULARY: usize = 2048;
const PROMPT: &[i32] = &[5, 6, 7];

/// All places of this process are taken by whoever holds it for writing.
static PLACES: RwLock<()> = RwLock::new(());

/// The compiled code of a program, compiled once.
fn compiled(name: &str) -> OwnedFd {
    static ALL: OnceLock<Mutex<HashMap<String, Arc<Vec<u8>>>>> = OnceLock::new();
    let all = ALL.get_or_init(Mutex::default);
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let code = all.entry(name.to_owned()).or_insert_with(|| {
        let folder = std::env::var("REALM_PROGRAMS");
        let folder = folder.expect("REALM_PROGRAMS is set: run `cargo xtask programs` first");
        let path = Path::new(&folder).join(format!("{name}.wasm"));
        let component = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Arc::new(compile(&component).expect("compiles").code)
    });
    let mut file = File::from(memfd_create("code", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(code).expect("written");
    file.into()
}

/// A gateway's programs: those named, numbered from 1.
fn programs(names: &[&str]) -> Programs {
    static HOST: LazyLock<Arc<Host>> = LazyLock::new(|| Arc::new(Host::new(Pool::default())));
    programs_of(HOST.clone(), names)
}

/// The same with a pool of their own.
fn programs_of(host: Arc<Host>, names: &[&str]) -> Programs {
    let programs = Programs::new(host, Arc::new(Vocabulary::of(&ModelSource::Embedded)));
    for (number, name) in (1..).zip(names) {
        programs.add(number, name, compiled(name));
    }
    programs
}

fn start<'a>(program: u64, args: &str, generated: &'a [i32]) -> Start<'a> {
    let args = args.to_owned();
    Start {
        guide: Guide::Processor { program, args },
        allotment: Allotment {
            tenant: 1,
            ..Allotment::default()
        },
        prompt: PROMPT,
        generated,
        vocabulary: VOCABULARY,
        key: 7,
        end_tokens: &[2],
        min_tokens: 0,
    }
}

/// Waits until no instance lives: each has a hold on the vocabulary, beside those of `others`.
fn wait_until_empty(vocabulary: &Arc<Vocabulary>, others: usize) {
    let begun = Instant::now();
    while Arc::strong_count(vocabulary) > others {
        assert!(begun.elapsed() < LONG, "instances live on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a steering says when it is not late any more.
fn verdict(steering: &mut Steering) -> Verdict {
    let (bell, begun) = (steering.bell(), Instant::now());
    loop {
        let rings = bell.rings();
        match steering.verdict() {
            Verdict::Late if begun.elapsed() < LONG => bell.wait(rings, Duration::from_secs(1)),
            verdict => return verdict,
        }
    }
}

/// A failure of the first call that fails.
fn failure(programs: &Programs, start: Start<'_>) -> Failure {
    let mut steering = programs.start(start);
    for token in 0.. {
        match verdict(&mut steering) {
            Verdict::Failed(failure) => return failure,
            Verdict::Draw(_) | Verdict::Force(_) if token < 1000 => steering.accept(token),
            other => panic!("{other:?}"),
        }
    }
    unreachable!("it returns before numbers end")
}

/// Runs a sequence for at most `most` tokens; `pick` is the model.
fn run(steering: &mut Steering, most: usize, mut pick: impl FnMut(&Draw) -> u32) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < most {
        let token = match verdict(steering) {
            Verdict::Draw(draw) => pick(&draw),
            Verdict::Force(token) => token,
            Verdict::Stop => break,
            other => panic!("{other:?} after {tokens:?}"),
        };
        tokens.push(token);
        steering.accept(token);
    }
    tokens
}

fn text(tokens: &[u32]) -> String {
    let vocabulary = Vocabulary::of(&ModelSource::Embedded);
    let tokenizer = vocabulary.tokenizer().expect("the embedded model has one");
    let ends = |token: &&u32| **token != 2;
    let bytes = tokens
        .iter()
        .filter(ends)
        .flat_map(|t| tokenizer.token_bytes(*t));
    String::from_utf8(bytes.collect()).expect("whole characters")
}

#[test]
fn a_choice_is_made_whatever_the_model_prefers() {
    let _some = PLACES.read();
    let programs = programs(&["choice"]);
    let args = r#"{"choices": ["red", "green", "dark green"]}"#;
    let mut seen = std::collections::BTreeSet::new();
    for preferred in 0..16 {
        let mut steering = programs.start(start(1, args, &[]));
        let tokens = run(&mut steering, 100, |draw| match &draw.allowed {
            Allowed::Tokens(tokens) => tokens[preferred % tokens.len()],
            other => panic!("{other:?}"),
        });
        seen.insert(text(&tokens).trim().to_owned());
    }
    let seen: Vec<_> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, ["dark green", "green", "red"]);
}

#[test]
fn every_attack_ends_with_its_own_failure() {
    let _some = PLACES.read();
    use Fault::{Error, HostCall, Memory, Plan, Stack, Time, Trap};
    let attacks = [
        ("spin", "null", Time, "more than 50000 µs"),
        ("spin-start", "null", Time, "more than 50000 µs"),
        ("grow", "null", Memory, "more than 67108864 bytes of memory"),
        ("table-grow", "null", Memory, "more than 20000 entries"),
        ("recurse", "null", Stack, "its stack is full"),
        ("trap", "null", Trap, "unreachable"),
        ("trap-start", "null", Trap, "unreachable"),
        ("trap-later", r#"{"at": 3}"#, Trap, "unreachable"),
        ("bad-token", "null", Plan, "in a vocabulary of 2048"),
        ("empty-allow", "null", Plan, "`allowed` has no tokens"),
        ("force-flood", "null", Plan, "not 1 to 4096"),
        ("empty-force", "null", Plan, "not 1 to 4096"),
        ("bad-force", "null", Plan, "in a vocabulary of 2048"),
        ("bad-bias", "null", Plan, "`bias` adds NaN"),
        ("bias-flood", "null", Plan, "more than 1024"),
        ("bad-temperature", "null", Plan, "`temperature` is"),
        ("many-args", "null", HostCall, "at most 65536 tokens"),
        ("errors", "null", Error, "no luck"),
        (
            "choice",
            r#"{"choices": 5}"#,
            Error,
            "processor.args: invalid type",
        ),
    ];
    let names: Vec<_> = attacks.iter().map(|attack| attack.0).collect();
    let programs = programs(&names);
    for (number, (name, args, fault, message)) in (1..).zip(attacks) {
        let mut start = start(number, args, &[]);
        if fault != Time {
            // On a busy machine, to touch much memory takes long.
            start.allotment.call_micros = 5_000_000;
        }
        let failure = failure(&programs, start);
        assert_eq!(failure.fault, fault, "{name}: {failure}");
        assert!(failure.message.contains(message), "{name}: {failure}");
    }
}

#[test]
fn what_was_never_sent_or_is_no_code_is_unusable() {
    let programs = programs(&[]);
    let nothing = memfd_create("nothing", MemfdFlags::CLOEXEC).expect("a memfd");
    programs.add(1, "nothing", nothing);
    assert_eq!(
        failure(&programs, start(1, "null", &[])).fault,
        Fault::Unusable
    );
    programs.add(2, "trap", compiled("trap"));
    programs.forget(2);
    assert!(!programs.has(2));
}

#[test]
fn a_program_may_come_after_those_who_want_it() {
    let _some = PLACES.read();
    let programs = programs(&[]);
    let mut early = programs.start(start(1, "null", &[]));
    assert!(matches!(early.verdict(), Verdict::Late));
    programs.add(1, "errors", compiled("errors"));
    assert!(matches!(verdict(&mut early), Verdict::Failed(_)));
    // It may be forgotten before it comes: then it is there for those who wait, and goes with the last of them.
    let mut before = programs.start(start(3, "null", &[]));
    programs.forget(3);
    programs.add(3, "errors", compiled("errors"));
    assert!(matches!(verdict(&mut before), Verdict::Failed(_)));
    while programs.has(3) {
        std::thread::yield_now();
    }
    programs.forget(4);
    programs.add(4, "errors", compiled("errors"));
    assert!(!programs.has(4));
    // Those that still wait go with their gateway.
    let vocabulary = programs.vocabulary();
    drop(early);
    let (over, never) = (start(2, "null", &[]), start(2, "null", &[]));
    drop(programs.start(over));
    wait_until_empty(&vocabulary, 2);
    let _never = programs.start(never);
    drop(programs);
    wait_until_empty(&vocabulary, 1);
}

#[test]
fn a_component_that_breaks_the_contract_is_not_compiled() {
    let bad = |component: &[u8]| compile(component).expect_err("refused").to_string();
    assert!(bad(b"").contains("no component"));
    assert!(bad(b"\0asm\x01\0\0\0").contains("no component"));
    // The smallest component: it exports nothing.
    let empty = bad(b"\0asm\x0d\0\x01\0");
    for world in ["realm:program/steering", "realm:program/answering"] {
        assert!(empty.contains(world), "{empty}");
    }
}

#[test]
fn a_spinning_instance_ends_with_its_sequence_and_keeps_nobody_waiting() {
    let _some = PLACES.read();
    let programs = programs(&["spin", "choice"]);
    let patient = |tenant| Start {
        allotment: Allotment {
            tenant,
            call_micros: 60_000_000,
            ..Allotment::default()
        },
        ..start(1, "null", &[])
    };
    let spinning: Vec<_> = (0..8).map(|_| programs.start(patient(9))).collect();
    let mut steering = programs.start(start(2, r#"{"choices": ["a", "b"]}"#, &[]));
    assert!(matches!(verdict(&mut steering), Verdict::Draw(_)));
    drop((spinning, steering));
    wait_until_empty(&programs.vocabulary(), 2);
}

/// `echo-state` forces text that depends on every token so far: what it plans after a resume must be
/// what it would have planned, wherever it was interrupted.
#[test]
fn a_sequence_goes_on_where_it_was() {
    let _some = PLACES.read();
    let programs = programs(&["echo-state"]);
    let args = r#"{"every": 5}"#;
    let model = |n: &mut u32| {
        *n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *n >> 21
    };
    let whole = {
        let mut state = 1;
        let mut steering = programs.start(start(1, args, &[]));
        run(&mut steering, 60, |_| model(&mut state))
    };
    for cut in 0..whole.len() {
        let before: Vec<i32> = whole[..cut].iter().map(|token| *token as i32).collect();
        let mut steering = programs.start(start(1, args, &before));
        // The model draws what it drew: where a token is forced it is not asked.
        let mut tokens = whole[..cut].to_vec();
        while tokens.len() < whole.len() {
            let next = whole[tokens.len()];
            match verdict(&mut steering) {
                Verdict::Draw(_) => {}
                Verdict::Force(token) => assert_eq!(token, next, "cut at {cut}"),
                other => panic!("{other:?}, cut at {cut}"),
            }
            tokens.push(next);
            steering.accept(next);
        }
    }
}

#[test]
fn instances_are_counted_by_tenant_and_in_all() {
    let _all = PLACES.write();
    let programs = programs(&["errors", "choice"]);
    let args = r#"{"choices": ["a", "b"]}"#;
    let of = |tenant, instances| Start {
        allotment: Allotment {
            tenant,
            instances,
            ..Allotment::default()
        },
        ..start(2, args, &[])
    };
    let mut first = programs.start(of(1, 1));
    assert!(matches!(verdict(&mut first), Verdict::Draw(_)));
    assert_eq!(failure(&programs, of(1, 1)).fault, Fault::Instances);
    let most = Pool::default().instances;
    let others = 2..=most;
    let mut others: Vec<_> = others.map(|tenant| programs.start(of(tenant, 1))).collect();
    for steering in &mut others {
        assert!(matches!(verdict(steering), Verdict::Draw(_)));
    }
    let refused = failure(&programs, of(most + 1, 1));
    assert_eq!(refused.fault, Fault::Instances);
    assert!(
        refused
            .message
            .contains("1000 instances run in this worker"),
        "{refused}"
    );
    // Where there is a smaller pool, it is smaller.
    let host = Host::new(Pool {
        instances: 2,
        ..Pool::default()
    });
    let few = programs_of(Arc::new(host), &["errors", "choice"]);
    let mut two: Vec<_> = (1..=2).map(|tenant| few.start(of(tenant, 1))).collect();
    for steering in &mut two {
        assert!(matches!(verdict(steering), Verdict::Draw(_)));
    }
    let refused = failure(&few, of(3, 1));
    assert!(refused.message.starts_with("2 instances"), "{refused}");
    // Whoever is next need not wait until the instance is gone.
    drop(first);
    let mut next = programs.start(of(1, 1));
    assert!(matches!(verdict(&mut next), Verdict::Draw(_)));
}
