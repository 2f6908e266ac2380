//! Programs and processors whose answers have a form.

use realm_shared::run::{Finish, What};

use super::rig::{KEY, Rig, answer, model};
use super::*;

/// Of texts that are short, whatever is drawn.
const SCHEMA: &str = r#"{"type": "object", "additionalProperties": false, "required": ["size", "few"],
    "properties": {"size": {"enum": ["small", "large", "vast"]},
        "few": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}}}"#;

/// Checks what `SCHEMA` says.
fn assert_fits(text: &str) {
    let value: serde_json::Value =
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let object = value.as_object().expect("an object");
    assert_eq!(object.len(), 2, "{text}");
    let size = object["size"].as_str().expect("a text");
    assert!(["small", "large", "vast"].contains(&size), "{text}");
    let few = object["few"].as_array().expect("a list");
    assert!(
        few.len() <= 4 && few.iter().all(serde_json::Value::is_boolean),
        "{text}"
    );
}

/// Runs the processor `grammar`, with a model that depends on `key`, from what was drawn before.
fn formed(programs: &Programs, args: &str, key: u64, before: &[u32]) -> Vec<u32> {
    let generated: Vec<_> = before.iter().map(|token| *token as i32).collect();
    let mut steering = programs.start(start(1, args, &generated));
    let mut tokens = before.to_vec();
    while tokens.last() != Some(&2) {
        let token = match verdict(&mut steering) {
            Verdict::Draw(draw) => model(&tokens, key, tokens.len() as u32, &draw),
            other => panic!("{other:?} after {}", text(&tokens)),
        };
        tokens.push(token);
        assert!(tokens.len() < 1000, "it has no end: {}", text(&tokens));
        if token != 2 {
            steering.accept(token);
        }
    }
    tokens
}

#[test]
fn a_processor_keeps_an_answer_to_its_form() {
    let _some = PLACES.read();
    let programs = programs(&["grammar"]);
    for key in 0..20 {
        let tokens = formed(
            &programs,
            &format!(r#"{{"json_schema": {SCHEMA}}}"#),
            key,
            &[],
        );
        assert_fits(&text(&tokens));
    }
    let tokens = formed(&programs, r#"{"regex": "[0-9]{3}-(a|b)"}"#, 1, &[]);
    let said = text(&tokens);
    assert!(
        said.len() == 5 && said[..3].parse::<u16>().is_ok(),
        "{said}"
    );
}

#[test]
fn a_form_goes_on_on_another_worker() {
    let _some = PLACES.read();
    let programs = programs(&["grammar"]);
    let args = format!(r#"{{"json_schema": {SCHEMA}}}"#);
    let whole = formed(&programs, &args, KEY, &[]);
    for at in 0..whole.len() {
        assert_eq!(
            formed(&programs, &args, KEY, &whole[..at]),
            whole,
            "at {at}"
        );
    }
}

#[test]
fn a_program_extracts_json_wherever_its_worker_dies() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["json-extract"]);
    let args = format!(r#"{{"schema": {SCHEMA}}}"#);
    let whole = rig.play(answer(&args));
    assert_eq!(whole.last, Some(What::Finished(Finish::Stop)));
    assert_fits(&whole.text);
    for at in 0..whole.drawn.len() {
        let mut again = answer(&args);
        again.journal = whole.journal(at);
        let again = rig.play(again);
        assert_eq!(again.text, whole.text, "at {at}");
        assert_eq!(again.drawn, whole.drawn[at..], "at {at}");
    }
}

#[test]
fn json_that_is_not_complete_is_tried_again() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["json-extract"]);
    let args = r#"{"schema": {"type": "array", "items": {"type": "integer"}}, "attempts": 8}"#;
    let mut begin = |max_tokens| {
        let mut request = answer(args);
        request.request.max_tokens = max_tokens;
        let play = rig.play(request);
        let attempts = play.opened.iter().map(|open| open.sequence).max();
        (play, attempts.expect("one was opened") + 1)
    };
    let (whole, attempts) = begin(500);
    assert_eq!(attempts, 1, "no list has so many tokens: {}", whole.text);
    // Without its end, and without the bracket before that.
    let (again, attempts) = begin(whole.drawn.len() as u32 - 2);
    assert!(attempts > 1);
    match again.last {
        Some(What::Finished(Finish::Stop)) => {
            let _: Vec<serde_json::Number> = serde_json::from_str(&again.text).expect("a list");
            assert_ne!(again.text, whole.text);
        }
        Some(What::Failed(_, message)) => {
            assert!(
                attempts == 8 && message.contains("in 8 attempts"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn matchers_have_limits() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["answer-matchers"]);
    let play = rig.play(answer(
        r#"{"lark": "start: /[a-z]{99}/", "forks": 63, "tokens": 9, "rollback": 9}"#,
    ));
    assert_eq!(play.text, "63 forks, complete: false", "{:?}", play.last);
    let whole = "start: T0\nT0: T1 T1\nT1: T2 T2\nT2: T3 T3\nT3: T4 T4\nT4: T5 T5\nT5: T6 T6\nT6: T7 T7\n\
        T7: T8 T8\nT8: T9 T9\nT9: T10 T10\nT10: T11 T11\nT11: T12 T12\nT12: \"a\"\n";
    let costly = |compile| {
        serde_json::json!({ "lark": whole, "compile": compile, "tokens": 1500 }).to_string()
    };
    for (args, memory, fault, part) in [
        (
            r#"{"lark": "start: \"a\"", "forks": 64}"#.to_owned(),
            None,
            Fault::Handles,
            "64 matchers",
        ),
        (
            r#"{"lark": "start: \"a\"", "tokens": 1, "rollback": 2}"#.into(),
            None,
            Fault::Plan,
            "rollback",
        ),
        (
            r#"{"lark": "0123456789", "times": 7000}"#.into(),
            None,
            Fault::HostCall,
            "65536 bytes",
        ),
        (
            r#"{"lark": "start: (", "times": 1}"#.into(),
            None,
            Fault::Error,
            "Expected",
        ),
        (costly(1), Some(3 << 19), Fault::Memory, "memory"),
        (costly(100_000), None, Fault::Time, "processor time"),
    ] {
        let mut attack = answer(&args);
        attack.allotment.memory = memory.unwrap_or(attack.allotment.memory);
        if fault != Fault::Time {
            attack.allotment.call_micros = LONG.as_micros() as u64;
        }
        let failure = rig.failure(attack);
        assert_eq!(failure.fault, fault, "{failure} of {args:.60}");
        assert!(failure.message.contains(part), "{failure} of {args:.60}");
    }
    // Of other requests' matchers nothing is left.
    let play = rig.play(answer(r#"{"lark": "start: \"a\"", "forks": 63}"#));
    assert_eq!(play.text, "63 forks, complete: false");
}
