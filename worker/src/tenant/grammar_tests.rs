use super::*;
use crate::embedded;

/// Ends an answer, whatever it is.
const END: u32 = 2;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(embedded::TOKENIZER).expect("the embedded model has one")
}

fn grammars() -> Grammars {
    Grammars::of(&tokenizer()).expect("made")
}

fn schema(text: &str) -> Grammar {
    Grammar::JsonSchema(text.into())
}

fn allowed(mask: &[u32], token: u32) -> bool {
    let word = mask.get(token as usize / 32).copied().unwrap_or(0);
    word >> (token % 32) & 1 == 1
}

/// Whether a text fits as it is encoded, and the text may be over behind it.
fn fits(matcher: &mut Matcher, tokens: &[u32]) -> bool {
    let mut matcher = matcher.fork();
    for token in tokens {
        let mask = matcher.mask(&[END]).expect("not too complex");
        let accepted = matcher.accept(&[*token], &[END]).expect("not too complex");
        assert_eq!(accepted == 1, allowed(&mask, *token), "of {token}");
        if accepted == 0 {
            return false;
        }
    }
    let complete = matcher.is_complete().expect("known");
    let mask = matcher.mask(&[END]).expect("not too complex");
    assert_eq!(allowed(&mask, END), complete);
    assert_eq!(matcher.accept(&[END], &[END]), Ok(u32::from(complete)));
    complete
}

#[test]
fn texts_fit_their_grammars_token_by_token() {
    let (tokenizer, grammars) = (tokenizer(), grammars());
    let person = schema(
        r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"], "additionalProperties": false}"#,
    );
    let sum = Grammar::Lark("start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/\n".into());
    let cases = [
        (&person, r#"{"name": "Ann", "age": 3}"#, true),
        (&person, r#"{"name":"Änn €","age":-31}"#, true),
        (&person, r#"{"name": "Ann"}"#, false),
        (&person, r#"{"name": "Ann", "age": "3"}"#, false),
        (&person, r#"{"name": "Ann", "age": 3, "x": 1}"#, false),
        (&person, r#"{"name": "Ann", "age": 3"#, false),
        (&person, "Sure!", false),
        (&sum, "12+3+456", true),
        (&sum, "12+", false),
        (&sum, "+1", false),
        (&Grammar::Regex("(yes|no)!?".into()), "yes!", true),
        (&Grammar::Regex("(yes|no)!?".into()), "no", true),
        (&Grammar::Regex("(yes|no)!?".into()), "nay", false),
        (&Grammar::Regex(".*".into()), "", true),
    ];
    for (source, text, expected) in cases {
        let mut matcher = grammars.compile(source).expect("compiles");
        let tokens = tokenizer.encode(text, false).expect("encoded");
        assert_eq!(fits(&mut matcher, &tokens), expected, "{text}");
    }
}

#[test]
fn a_text_is_over_after_its_end() {
    let grammars = grammars();
    let mut matcher = grammars.compile(&Grammar::Regex("a*".into())).unwrap();
    assert_eq!(matcher.accept(&[END, END], &[END]), Ok(1));
    assert_eq!(matcher.mask(&[END]), Ok(Vec::new()));
    assert_eq!(matcher.is_complete(), Ok(true));
    matcher.rollback(1).unwrap();
    let a = tokenizer().id("a").expect("a letter");
    assert_eq!(matcher.accept(&[a], &[END]), Ok(1));
    // Without a token to end with, only what goes on may come.
    let mask = matcher.mask(&[]).unwrap();
    assert!(allowed(&mask, a) && !allowed(&mask, END));
    // What may only end has nothing to go on with.
    let mut one = grammars.compile(&Grammar::Regex("a".into())).unwrap();
    assert_eq!(one.accept(&[a, a], &[END]), Ok(1));
    assert_eq!(one.is_complete(), Ok(true));
    assert!(one.mask(&[]).unwrap().iter().all(|word| *word == 0));
    let ends: Vec<_> = (0..2048)
        .filter(|t| allowed(&one.mask(&[END, 7]).unwrap(), *t))
        .collect();
    assert_eq!(ends, [END, 7]);
    assert_eq!(one.accept(&[7], &[END, 7]), Ok(1));
}

#[test]
fn places_fork_and_go_back() {
    let (tokenizer, grammars) = (tokenizer(), grammars());
    let mut matcher = grammars
        .compile(&schema(r#"{"enum": ["left", "right"]}"#))
        .unwrap();
    let left = tokenizer.encode(r#""left""#, false).unwrap();
    let right = tokenizer.encode(r#""right""#, false).unwrap();
    let start = matcher.mask(&[END]).unwrap();
    let mut fork = matcher.fork();
    assert_eq!(matcher.accept(&left, &[END]), Ok(left.len() as u32));
    assert_eq!(fork.mask(&[END]), Ok(start.clone()));
    assert_eq!(fork.accept(&right, &[END]), Ok(right.len() as u32));
    assert!(matcher.is_complete().unwrap() && fork.is_complete().unwrap());
    assert_eq!(matcher.accept(&[END], &[END]), Ok(1));
    assert!(
        matcher
            .rollback(left.len() + 2)
            .unwrap_err()
            .contains("rollback")
    );
    matcher.rollback(left.len() + 1).unwrap();
    assert_eq!(matcher.mask(&[END]), Ok(start));
    assert_eq!(matcher.own_bytes(), 0);
    assert_eq!(matcher.accept(&right, &[END]), Ok(right.len() as u32));
}

#[test]
fn special_tokens_are_no_text_and_unknown_ones_fit_nothing() {
    let mut matcher = grammars()
        .compile(&Grammar::Regex("(?s).*".into()))
        .unwrap();
    let tokenizer = tokenizer();
    let mask = matcher.mask(&[]).unwrap();
    for token in 0..tokenizer.vocab_size() {
        let text = !tokenizer.is_special(token)
            && std::str::from_utf8(&tokenizer.token_bytes(token)).is_ok();
        if text || tokenizer.is_special(token) {
            assert_eq!(allowed(&mask, token), text, "of {token}");
        }
    }
    for token in [tokenizer.vocab_size(), tokenizer.vocab_size() + 1, u32::MAX] {
        assert!(!allowed(&mask, token));
        assert_eq!(matcher.accept(&[token], &[]), Ok(0));
    }
}

#[test]
fn a_bad_grammar_is_an_error_that_says_so() {
    let grammars = grammars();
    for (source, part) in [
        (schema("{"), "EOF"),
        (schema(r#"{"type": "thing"}"#), "thing"),
        (Grammar::Regex("(".into()), "regex"),
        (Grammar::Lark("start: nothing".into()), "nothing"),
        (Grammar::Lark(String::new()), "start"),
    ] {
        let error = grammars.compile(&source).err().expect("no grammar");
        assert!(error.contains(part), "{error}");
        assert!(error.len() <= crate::tenant::MAX_MESSAGE);
    }
}

/// Grammars that are made to take time, memory or stack: each ends in an error or is as cheap as any.
#[test]
fn a_grammar_costs_no_more_than_it_may() {
    let grammars = grammars();
    let rules = |n: usize, rule: &dyn Fn(usize) -> String| (0..n).map(rule).collect::<String>();
    let any = |k: usize, n: usize| {
        let one = |i| {
            format!(r#"{{"type": "object", "properties": {{"p{k}_{i}": {{"type": "integer"}}}}}}"#)
        };
        format!(
            r#"{{"anyOf": [{}]}}"#,
            (0..n).map(one).collect::<Vec<_>>().join(",")
        )
    };
    let sources = [
        Grammar::Lark(format!(
            "start: {}\"a\"{}",
            "(".repeat(20_000),
            ")".repeat(20_000)
        )),
        Grammar::Regex(format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000))),
        schema(&format!("{}1{}", "[".repeat(30_000), "]".repeat(30_000))),
        Grammar::Lark(format!(
            "start: r0\n{}r4000: \"a\"\n",
            rules(4000, &|i| format!("r{i}: r{}\n", i + 1))
        )),
        Grammar::Lark(format!(
            "start: T0\n{}T24: \"a\"\n",
            rules(24, &|i| format!("T{i}: T{0} T{0}\n", i + 1))
        )),
        Grammar::Lark(format!(
            "start: t0\n{}t20: \"a\"\n",
            rules(20, &|i| format!("t{i}: t{0} t{0}\n", i + 1))
        )),
        Grammar::Lark("start: s\ns: s s | s s s | \"a\" | \n".into()),
        schema(&format!(r#"{{"allOf": [{}, {}]}}"#, any(0, 30), any(1, 30))),
        schema(&format!(
            r#"{{"allOf": [{}, {}, {}, {}]}}"#,
            any(0, 10),
            any(1, 10),
            any(2, 10),
            any(3, 10)
        )),
        Grammar::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
        Grammar::Regex("(a|b)*a(a|b){1000}".into()),
    ];
    let tokenizer = tokenizer();
    let a = tokenizer.id("a").expect("a letter");
    for source in sources {
        let Ok(mut matcher) = grammars.compile(&source) else {
            continue;
        };
        for _ in 0..200 {
            if matcher.mask(&[END]).is_err() || matcher.accept(&[a], &[END]) != Ok(1) {
                break;
            }
        }
        let bytes = matcher.bytes();
        assert!(bytes < 40 << 20, "{bytes} bytes for {:.40}", source.text());
    }
}

/// Otherwise a model that has nothing to say could say it for ever.
#[test]
fn spaces_come_to_an_end() {
    let (tokenizer, grammars) = (tokenizer(), grammars());
    let fits = |options: &str, spaces: &str| {
        let grammar = schema(&format!(r#"{{"type": "array"{options}}}"#));
        let mut matcher = grammars.compile(&grammar).expect("compiles");
        let tokens = tokenizer.encode(&format!("[{spaces}]"), false);
        fits(&mut matcher, &tokens.expect("encoded"))
    };
    let line = |indent| format!(" \r\n{}", " ".repeat(indent));
    let coerce = r#", "x-guidance": {"coerce_one_of": true}"#;
    for options in ["", coerce] {
        for spaces in ["", " ", "  ", "\t", "\n", &line(0), &line(32)] {
            assert!(fits(options, spaces), "{spaces:?}");
        }
        for spaces in ["   ", "\n\n", &line(33)] {
            assert!(!fits(options, spaces), "{spaces:?}");
        }
    }
    // A schema may say otherwise.
    let own = r#", "x-guidance": {"whitespace_pattern": " {1,99}"}"#;
    assert!(fits(own, &" ".repeat(99)) && !fits(own, &" ".repeat(100)));
    let none = r#", "x-guidance": {"whitespace_flexible": false}"#;
    assert!(fits(none, "") && !fits(none, " "));
}

#[test]
fn copies_have_nothing_in_common() {
    let (tokenizer, grammars) = (tokenizer(), grammars());
    let person = schema(r#"{"type": "object", "properties": {"name": {"type": "string"}}}"#);
    let mut first = grammars.compile(&person).expect("compiles");
    let begun = first.bytes();
    let second = first.copy();
    let text = r#"{"name": "Änn"}"#;
    assert!(fits(
        &mut first,
        &tokenizer.encode(text, false).expect("encoded")
    ));
    assert!(first.bytes() > begun, "what was found out is remembered");
    assert_eq!((second.bytes(), second.own_bytes()), (begun, begun));
}

/// A text that no token of the vocabulary goes on with is not over for that.
#[test]
fn a_dead_end_is_no_end() {
    let json = br#"{"version": "1.0", "added_tokens": [], "decoder":
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    let tokenizer = Tokenizer::from_bytes(json).expect("a tokenizer");
    let grammars = Grammars::of(&tokenizer).expect("made");
    let mut matcher = grammars.compile(&Grammar::Regex("ab".into())).unwrap();
    assert_eq!(matcher.accept(&[0], &[]), Ok(1));
    assert!(!matcher.is_dead_end());
    assert!(matcher.mask(&[]).is_err());
    assert!(matcher.is_dead_end());
    assert_eq!(matcher.is_complete(), Ok(false));
}
