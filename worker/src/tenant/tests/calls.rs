//! Calls of the client's tools.

use realm_shared::run::{Finish, Journal, MOST_CALLS, Tool, ToolChoice, Tools, What};
use serde_json::{Value, json};

use super::rig::{Play, Rig, answer};
use super::*;

/// Parameters of the tools here.
fn parameters() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["where", "far"],
        "properties": {"where": {"enum": ["sea", "sky"]}, "far": {"type": "boolean"}},
    })
}

fn tools(names: &[&str], choice: ToolChoice) -> Tools {
    let tool = |name: &&str| Tool {
        name: (*name).into(),
        description: None,
        parameters: parameters().to_string(),
        strict: false,
    };
    Tools {
        offered: names.iter().map(tool).collect(),
        choice,
        parallel: true,
    }
}

/// An answer to a request with these tools.
fn with(tools: Tools, args: &str) -> Answer {
    let mut answer = answer(args);
    answer.request.tools = tools;
    answer
}

fn encode(text: &str) -> Vec<u32> {
    let vocabulary = Vocabulary::of(&ModelSource::Embedded);
    let tokenizer = vocabulary.tokenizer().expect("the embedded model has one");
    tokenizer.encode(text, false).expect("encodes")
}

fn assert_fit(calls: &[(String, String)], names: &[&str]) {
    for (name, arguments) in calls {
        assert!(names.contains(&name.as_str()), "{name}");
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        assert!(["sea", "sky"].contains(&arguments["where"].as_str().expect("a text")));
        assert!(arguments["far"].is_boolean(), "{arguments}");
    }
}

#[test]
fn a_program_is_told_of_tools_and_calls_them() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"["describe", {"new": {}}, {"emit": "a"}, {"call": "look"}, {"arguments": "{\"a"},
        {"arguments": "\": "}, {"speak-arguments": [0, 3]}, {"emit": "b"}, {"arguments": "}"},
        {"call": "look"}, {"call": "listen"}, {"arguments": "{}"}, {"speak": [0, 2]}]"#;
    let request = || {
        let function = ToolChoice::Function("listen".into());
        with(tools(&["look", "listen"], function), script)
    };
    let whole = rig.play(request());
    for part in [
        "\"look\"",
        "ToolChoice::Function(\"listen\")",
        "parallel-tool-calls: true",
        "sea",
    ] {
        assert!(whole.text.contains(part), "{part} in {}", whole.text);
    }
    let drawn: String = whole.drawn[..3]
        .iter()
        .map(|(_, drawn)| format!("{},", drawn.token))
        .collect();
    let call = |name: &str, arguments: String| (name.to_owned(), arguments);
    assert_eq!(
        whole.calls,
        [
            call("look", format!("{{\"a\": {drawn}}}")),
            call("look", String::new()),
            call("listen", "{}".into()),
        ]
    );
    assert_eq!(whole.last, Some(What::Finished(Finish::Stop)));
    for cut in 0..=whole.drawn.len() {
        let again = rig.play(Answer {
            journal: whole.journal(cut),
            ..request()
        });
        let said = |play: &Play| (play.text.clone(), play.calls.clone());
        assert_eq!(said(&again), said(&whole), "cut at {cut}");
    }
}

#[test]
fn calls_have_limits() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let many = vec![r#"{"call": "look"}"#; MOST_CALLS + 1].join(", ");
    let long = "x".repeat(1 << 10);
    let flood = vec![format!(r#"{{"arguments": "{long}"}}"#); 1 << 10].join(", ");
    for (steps, fault, message) in [
        (
            format!(r#"{{"call": "{}"}}"#, "no".repeat(50)),
            Fault::Plan,
            "`begin-call` of `nononono",
        ),
        (
            r#"{"arguments": "{}"}"#.into(),
            Fault::Plan,
            "`emit-arguments` before",
        ),
        (many, Fault::Output, "more than 128 calls"),
        (
            format!(r#"{{"call": "look"}}, {flood}"#),
            Fault::Output,
            "more than 1048576 bytes",
        ),
    ] {
        let mut attack = with(tools(&["look"], ToolChoice::Auto), &format!("[{steps}]"));
        attack.allotment.call_micros = LONG.as_micros() as u64;
        let failure = rig.failure(attack);
        assert_eq!(failure.fault, fault, "{failure}");
        assert!(failure.message.contains(message), "{failure}");
        assert!(failure.message.len() < 200, "{failure}");
    }
}

/// The program `tools`: the model speaks, and begins a call.
#[test]
fn a_model_calls_a_tool_when_it_likes() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["tools"]);
    let names = ["look", "look_up", "listen"];
    for said in [
        "I see <tool>: <tool_call>\n",
        "<tool_call>",
        "a<<tool_call>{\"name",
    ] {
        let mut script = encode(said);
        // The call is seen as soon as it has begun.
        let has_begun = |tokens: &usize| super::text(&script[..*tokens]).contains("<tool_call>");
        let before = (1..=script.len()).find(has_begun).expect("it begins");
        script.truncate(before);
        script.push(2);
        let play = |rig: &mut Rig, journal, from: usize| {
            let request = with(tools(&names, ToolChoice::Auto), "null");
            let mut play = Play::begin(rig, Answer { journal, ..request });
            play.script = script[from.min(script.len())..].to_vec().into();
            play.finish(rig);
            play
        };
        let whole = play(&mut rig, Journal::default(), 0);
        let text = said.split("<tool_call>").next().expect("one");
        assert_eq!(whole.text, text);
        assert_eq!(whole.calls.len(), 1, "{said}");
        assert_fit(&whole.calls, &names);
        assert_eq!(whole.last, Some(What::Finished(Finish::Stop)));
        // What is computed behind the text is the call, as the model would have written it.
        let opened = &whole.opened.last().expect("it is gone on with").prompt;
        let arguments = &whole.calls[0].1;
        let call = format!("\", \"arguments\": {arguments}}}\n</tool_call>");
        assert!(
            super::text(opened).ends_with(&call),
            "{}",
            super::text(opened)
        );
        for cut in 0..=whole.drawn.len() {
            let again = play(&mut rig, whole.journal(cut), cut.min(before));
            assert_eq!(again.text, whole.text, "cut at {cut}");
            assert_eq!(again.calls, whole.calls, "cut at {cut}");
        }
    }
    // One that only seems to begin is text.
    let mut play = Play::begin(&rig, with(tools(&names, ToolChoice::Auto), "null"));
    play.script = encode("<tool_cal").into();
    play.script.push_back(2);
    play.finish(&mut rig);
    assert_eq!((play.text.as_str(), play.calls.len()), ("<tool_cal", 0));
    // Nor is one begun that is not wanted.
    let mut play = Play::begin(&rig, with(tools(&names, ToolChoice::None), "null"));
    play.script = encode("<tool_call>").into();
    play.script.push_back(2);
    play.finish(&mut rig);
    assert_eq!((play.text.as_str(), play.calls.len()), ("<tool_call>", 0));
}

#[test]
fn a_call_that_is_asked_for_is_made() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["tools"]);
    let names = ["look", "listen"];
    let mut seen = std::collections::BTreeSet::new();
    for key in 0..20 {
        let mut request = with(tools(&names, ToolChoice::Required), "null");
        request.request.tools.parallel = false;
        request.request.key = key;
        let play = rig.play(request);
        assert_eq!((play.text.as_str(), play.calls.len()), ("", 1));
        assert_fit(&play.calls, &names);
        assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
        seen.insert(play.calls[0].0.clone());
    }
    assert_eq!(seen.len(), 2, "the model chooses");
    // This one, and no other.
    let function = ToolChoice::Function("listen".into());
    let whole = rig.play(with(tools(&names, function.clone()), "null"));
    assert_fit(&whole.calls, &["listen"]);
    assert_eq!(whole.calls.len(), 1);
    // Of too few tokens it is cut off.
    for most in 0..=whole.drawn.len() {
        let mut short = with(tools(&names, function.clone()), "null");
        short.request.max_tokens = most as u32;
        let play = rig.play(short);
        let finish = match most == whole.drawn.len() {
            true => Finish::Stop,
            false => Finish::Length,
        };
        assert_eq!(play.last, Some(What::Finished(finish)), "{most}");
        let arguments = play.calls.first().map_or("", |(_, arguments)| arguments);
        assert!(whole.calls[0].1.starts_with(arguments), "{most}");
    }
}

#[test]
fn tools_that_cannot_be_called_are_named() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["tools"]);
    for parameters in [r#"{"type": "string"}"#, r#"{"properties": 1}"#] {
        let mut request = with(tools(&["look"], ToolChoice::Required), "null");
        request.request.tools.offered[0].parameters = parameters.into();
        let failure = rig.failure(request);
        assert_eq!(failure.fault, Fault::Error, "{failure}");
    }
}
