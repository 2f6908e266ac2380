//! Sequences that are steered by a grammar alone.

use realm_shared::grammar::Grammar;

use super::rig::model;
use super::*;

/// Of texts that are short, whatever is drawn.
const SCHEMA: &str = r#"{"type": "object", "additionalProperties": false, "required": ["size", "few"],
    "properties": {"size": {"enum": ["small", "large", "vast"]},
        "few": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}}}"#;
const END: u32 = 2;

fn json(schema: &str) -> Grammar {
    Grammar::JsonSchema(schema.into())
}

fn regex(regex: &str) -> Grammar {
    Grammar::Regex(regex.into())
}

fn form(grammar: Grammar, generated: &[i32]) -> Start<'_> {
    Start {
        guide: Guide::Grammar(grammar),
        ..start(0, "", generated)
    }
}

/// What may be drawn next, of some tokens.
fn allowed(draw: &Draw, tokens: &[u32]) -> Vec<u32> {
    let Allowed::Mask(words) = &draw.allowed else {
        panic!("{draw:?}");
    };
    let is_allowed = |token: &u32| {
        let word = words.get(*token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    };
    tokens.iter().copied().filter(is_allowed).collect()
}

fn drawn(verdict: Verdict) -> Arc<Draw> {
    match verdict {
        Verdict::Draw(draw) => draw,
        other => panic!("{other:?}"),
    }
}

/// Goes on with a model that depends on `key` from what was drawn before.
fn formed(programs: &Programs, grammar: Grammar, key: u64, before: &[u32]) -> Vec<u32> {
    let generated: Vec<_> = before.iter().map(|token| *token as i32).collect();
    let mut steering = programs.start(form(grammar, &generated));
    let mut tokens = before.to_vec();
    while tokens.last() != Some(&END) {
        let draw = drawn(verdict(&mut steering));
        let token = model(&tokens, key, tokens.len() as u32, &draw);
        tokens.push(token);
        assert!(tokens.len() < 1000, "it has no end: {}", text(&tokens));
        steering.accept(token);
    }
    assert!(matches!(verdict(&mut steering), Verdict::Stop));
    tokens
}

#[test]
fn a_text_fits_its_schema_and_goes_on_on_another_worker() {
    let programs = programs(&[]);
    for key in 0..20 {
        let whole = formed(&programs, json(SCHEMA), key, &[]);
        let said = text(&whole);
        let value: serde_json::Value =
            serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
        let size = value["size"].as_str().expect("a text");
        assert!(["small", "large", "vast"].contains(&size), "{said}");
        assert!(value["few"].as_array().is_some_and(|few| few.len() <= 4));
        for at in (0..whole.len()).step_by(3) {
            let programs = super::programs(&[]);
            let again = formed(&programs, json(SCHEMA), key, &whole[..at]);
            assert_eq!(again, whole, "at {at}");
        }
    }
}

#[test]
fn a_text_ends_where_nothing_else_may_follow() {
    let programs = programs(&[]);
    let tokenizer = programs.vocabulary();
    let a = tokenizer
        .tokenizer()
        .expect("one")
        .id("a")
        .expect("a letter");
    // While there are too few tokens, an end is drawn by nobody; but the form comes first.
    let mut start = form(regex("aa?"), &[]);
    start.min_tokens = 9;
    let mut steering = programs.start(start);
    assert_eq!(allowed(&drawn(verdict(&mut steering)), &[a, END]), [a]);
    steering.accept(a);
    assert_eq!(allowed(&drawn(verdict(&mut steering)), &[a, END]), [a]);
    steering.accept(a);
    assert!(matches!(verdict(&mut steering), Verdict::Stop));
    let mut start = form(regex("a*"), &[]);
    start.min_tokens = 2;
    let mut steering = programs.start(start);
    for expected in [&[a][..], &[a], &[a, END], &[a, END]] {
        assert_eq!(allowed(&drawn(verdict(&mut steering)), &[a, END]), expected);
        steering.accept(a);
    }
    // The same without tokens that end it.
    let mut start = form(regex("aa?"), &[]);
    start.end_tokens = &[];
    let mut steering = programs.start(start);
    for _ in 0..2 {
        assert_eq!(allowed(&drawn(verdict(&mut steering)), &[a, END]), [a]);
        steering.accept(a);
    }
    assert!(matches!(verdict(&mut steering), Verdict::Stop));
}

#[test]
fn what_is_no_form_says_why() {
    let programs = programs(&[]);
    let twice = (0..24).map(|i| format!("T{i}: T{0} T{0}\n", i + 1));
    let twice = format!("start: T0\n{}T24: \"a\"\n", twice.collect::<String>());
    for _ in 0..2 {
        for (grammar, fault, part) in [
            (json(r#"{"type": "thing"}"#), Fault::Error, "thing"),
            (regex("("), Fault::Error, "regex"),
            (
                Grammar::Lark("start: nobody".into()),
                Fault::Error,
                "nobody",
            ),
            (Grammar::Lark(twice.clone()), Fault::Memory, "too big"),
        ] {
            let failure = failure(&programs, form(grammar, &[]));
            assert_eq!(failure.fault, fault, "{failure}");
            assert!(failure.message.contains(part), "{failure}");
        }
    }
    let mut narrow = form(json(SCHEMA), &[]);
    narrow.allotment.memory = 1000;
    let failure = failure(&programs, narrow);
    assert_eq!(failure.fault, Fault::Memory, "{failure}");
    // What another worker would not have drawn.
    let failure = super::failure(&programs, form(regex("[0-9]"), &[END as i32]));
    assert_eq!(failure.fault, Fault::Plan, "{failure}");
}

/// Tenants' limits on instances are about code.
#[test]
fn forms_are_no_instances_and_leave_nothing_behind() {
    let programs = programs(&[]);
    let mut many: Vec<_> = (0..100)
        .map(|_| {
            let mut start = form(json(SCHEMA), &[]);
            start.allotment.instances = 1;
            programs.start(start)
        })
        .collect();
    for steering in &mut many {
        drawn(verdict(steering));
    }
    drop(many);
    wait_until_empty(&programs.vocabulary(), 2);
}
