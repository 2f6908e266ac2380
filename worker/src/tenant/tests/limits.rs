//! Limits, each at its edge: what is just within works, and what is just beyond has a failure of its own.

use realm_shared::run::{Finish, What};

use super::rig::{Rig, answer};
use super::*;

/// A program's arguments that are within a limit, others that are beyond it, and how these fail.
type Edge = (String, String, Fault, &'static str);

/// Has both answered by a program, which has all the time it needs. `allot` sets limits.
fn assert_edges(program: &str, edges: Vec<Edge>, allot: impl Fn(&mut Allotment)) {
    let _some = PLACES.read();
    let mut rig = Rig::new(&[program]);
    let patient = |args: &str| {
        let mut patient = answer(args);
        patient.allotment.call_micros = LONG.as_micros() as u64;
        allot(&mut patient.allotment);
        patient
    };
    for (within, beyond, fault, part) in edges {
        let play = rig.play(patient(&within));
        let last = Some(What::Finished(Finish::Stop));
        assert_eq!(play.last, last, "within: {within:.90}");
        let failure = rig.failure(patient(&beyond));
        assert_eq!(failure.fault, fault, "{failure} of {beyond:.90}");
        assert!(failure.message.contains(part), "{failure} of {beyond:.90}");
    }
}

/// A script of these steps.
fn script(steps: &[&str]) -> String {
    format!("[{}]", steps.join(", "))
}

/// A step, with a number at its end that is within a limit, and with one that is beyond it.
fn edge(step: impl Fn(usize) -> String, most: usize, fault: Fault, part: &'static str) -> Edge {
    let of = |number| script(&[&step(number)]);
    (of(most), of(most + 1), fault, part)
}

#[test]
fn what_a_program_holds_and_says() {
    let new = r#"{"new": {}}"#;
    let one = r#"{"tensor": [[1], [1]]}"#;
    let news = |count| script(&vec![new; count]);
    let tensors = |count| script(&vec![one; count]);
    let full = format!(r#"{{"flood": ["{}", 1024]}}"#, "x".repeat(1024));
    assert_edges(
        "program-script",
        vec![
            (news(8), news(9), Fault::Handles, "more than 8 sequences"),
            (
                tensors(1024),
                tensors(1025),
                Fault::Tensors,
                "1024 tensors at once",
            ),
            (
                script(&[&full]),
                script(&[&full, r#"{"emit": "x"}"#]),
                Fault::Output,
                "more than 1048576 bytes",
            ),
            edge(
                |n| format!(r#"{{"waste": {n}}}"#),
                1 << 16,
                Fault::Output,
                "65536 sequences",
            ),
            (
                script(&[r#"{"recurse": 1000}"#]),
                script(&[r#"{"recurse": 1000000}"#]),
                Fault::Stack,
                "its stack is full",
            ),
        ],
        |_| {},
    );
}

#[test]
fn what_a_tenant_may_set() {
    let one = r#"{"tensor": [[1], [1]]}"#;
    let new = r#"{"new": {}}"#;
    let gather = |count| {
        let gather = format!(r#"{{"gather": [0, {:?}]}}"#, vec![0; count]);
        script(&[r#"{"tensor": [[1], [1]]}"#, &gather])
    };
    assert_edges(
        "program-script",
        vec![
            (
                script(&[new, new]),
                script(&[new, new, new]),
                Fault::Handles,
                "more than 2 sequences",
            ),
            (gather(8), gather(9), Fault::Tensors, "36 bytes"),
            (
                script(&[one; 3]),
                script(&[one; 4]),
                Fault::Tensors,
                "more than 3 tensors",
            ),
            edge(
                |n| format!(r#"{{"log": ["x", {n}]}}"#),
                1 << 16,
                Fault::HostCall,
                "at most 65536 bytes",
            ),
            edge(
                |n| format!(r#"{{"emit": "{}"}}"#, "x".repeat(n)),
                10,
                Fault::Output,
                "more than 10 bytes",
            ),
        ],
        |allotment| {
            allotment.sequences = 2;
            allotment.tensors = 36;
            allotment.output = 10;
            allotment.handles = 3;
            allotment.handed = 1 << 16;
        },
    );
}

/// The stack is the worker's, for all programs alike.
#[test]
fn what_a_pool_has() {
    let recurse = |depth| script(&[&format!(r#"{{"recurse": {depth}}}"#)]);
    let deepest = |stack| {
        let pool = Pool {
            instances: 4,
            stack,
        };
        let mut rig = Rig::with_pool(pool, &["program-script"]);
        let (mut within, mut beyond) = (0, 1 << 20);
        while beyond - within > 16 {
            let depth = (within + beyond) / 2;
            match rig.play(answer(&recurse(depth))).last {
                Some(What::Finished(Finish::Stop)) => within = depth,
                Some(What::Failed(fault, _)) => {
                    assert_eq!(Fault::from_number(fault), Some(Fault::Stack));
                    beyond = depth;
                }
                other => panic!("{other:?}"),
            }
        }
        within
    };
    let [usual, twice] = [256 << 10, 512 << 10].map(deepest);
    assert!(usual > 1000 && twice > usual * 3 / 2, "{usual}, {twice}");
}

#[test]
fn what_is_handed_to_a_call() {
    use Fault::{HostCall, Plan};
    let read = |count: usize| {
        let places = format!(r#"{{"gather": [0, {:?}]}}"#, vec![0; count]);
        script(&[r#"{"tensor": [[1], [1]]}"#, &places, r#"{"peek": 1}"#])
    };
    let named = |bytes: usize| script(&[r#"{"new": {}}"#, &keep(&"n".repeat(bytes), 86_400)]);
    let kept = |seconds| script(&[r#"{"new": {}}"#, &keep("n", seconds)]);
    let top = |count| {
        script(&[
            r#"{"tensor": [[2], [1, 2]]}"#,
            &format!(r#"{{"top": [0, {count}]}}"#),
        ])
    };
    let words = |step: &'static str| move |n| format!(r#"{{"{step}": ["x", {n}]}}"#);
    assert_edges(
        "program-script",
        vec![
            edge(words("encode"), 64 << 10, HostCall, "at most 65536 bytes"),
            edge(
                |n| format!(r#"{{"decode": [5, {n}]}}"#),
                64 << 10,
                HostCall,
                "at most 65536 tokens",
            ),
            edge(words("log"), 8 << 20, HostCall, "at most 8388608 bytes"),
            (read(1 << 16), read((1 << 16) + 1), Plan, "`read`"),
            (top(1024), top(1025), Plan, "`top`"),
            (named(256), named(257), Plan, "257 bytes"),
            (kept(86_400), kept(86_401), Plan, "86401 seconds"),
        ],
        |_| {},
    );
    let grammar = |bytes: usize| {
        let start = "start: \"a\"\n// ";
        let lark = format!("{start}{}", "x".repeat(bytes - start.len()));
        serde_json::json!({ "lark": lark }).to_string()
    };
    assert_edges(
        "answer-matchers",
        vec![(
            grammar(64 << 10),
            grammar((64 << 10) + 1),
            HostCall,
            "at most 65536 bytes",
        )],
        |_| {},
    );
}

fn keep(name: &str, seconds: u32) -> String {
    format!(r#"{{"save": [0, "{name}", {seconds}]}}"#)
}

#[test]
fn what_a_program_sees_and_keeps_in_all() {
    // Each look counts one word more than it shows.
    const SEEN: usize = (1 << 19) - 7 * (1 + (1 << 16)) - 1;
    let see = |count: usize| {
        let most = format!(r#"{{"gather": [0, {:?}]}}"#, vec![0; 1 << 16]);
        let last = format!(r#"{{"gather": [0, {:?}]}}"#, vec![0; count]);
        let looks = r#"{"peek": 1}, "#.repeat(7) + r#"{"peek": 2}"#;
        script(&[r#"{"tensor": [[1], [1]]}"#, &most, &last, &looks])
    };
    // And so does what is kept.
    const KEPT: usize = (1 << 20) - 1047 * 1001 - 1;
    let keep = |count: usize| {
        let append = format!(r#"{{"append": [0, {:?}]}}"#, vec![9; 997]);
        let most = vec![keep("s", 60); 1047].join(", ");
        let less = format!(r#"{{"truncate": [0, {count}]}}"#);
        script(&[r#"{"new": {}}"#, &append, &most, &less, &keep("s", 60)])
    };
    assert_edges(
        "program-script",
        vec![
            (see(SEEN), see(SEEN + 1), Fault::Output, "524288 words"),
            (keep(KEPT), keep(KEPT + 1), Fault::Output, "1048576 tokens"),
        ],
        |_| {},
    );
}

#[test]
fn what_a_processor_plans() {
    let _some = PLACES.read();
    let programs = programs(&["force-flood", "bias-flood"]);
    for (program, name, most) in [(1, "tokens", 4096), (2, "biases", 1024)] {
        let args = |count| format!(r#"{{"{name}": {count}}}"#);
        let mut within = programs.start(start(program, &args(most), &[]));
        assert!(matches!(
            verdict(&mut within),
            Verdict::Draw(_) | Verdict::Force(_)
        ));
        let beyond = failure(&programs, start(program, &args(most + 1), &[]));
        assert_eq!(beyond.fault, Fault::Plan, "{beyond}");
        assert!(beyond.message.contains(&(most + 1).to_string()), "{beyond}");
    }
}

/// Of processor time, which a busy machine does not make longer.
#[test]
fn a_call_that_does_not_end_is_ended_within_ten_milliseconds_of_its_time() {
    let _some = PLACES.read();
    let programs = programs(&["spin"]);
    let over = |_| {
        let failure = failure(&programs, start(1, "null", &[]));
        assert_eq!(failure.fault, Fault::Time, "{failure}");
        let used = failure
            .message
            .split(' ')
            .find_map(|word| word.parse().ok());
        let used: u64 = used.unwrap_or_else(|| panic!("{failure}"));
        used - Allotment::default().call_micros
    };
    let mut over: Vec<_> = (0..9).map(over).collect();
    over.sort();
    assert!(over[4] < 10_000, "{over:?}");
}
