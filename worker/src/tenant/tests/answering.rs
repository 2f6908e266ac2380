//! Programs that answer requests, as a gateway and an engine have them run.

use realm_shared::run::{Finish, Journal, Part, What};

use super::rig::{KEY, Play, Rig, answer, model};
use super::*;
use crate::sampler::mix;

/// Key of the random numbers of a sequence.
fn key(sequence: u64) -> u64 {
    match sequence {
        0 => KEY,
        more => mix(mix(KEY).wrapping_add(more)),
    }
}

/// What the model draws after some tokens, freely.
fn drawn(tokens: &[u32], sequence: u64, number: u32) -> u32 {
    let draw = Draw {
        allowed: Allowed::All,
        bias: Vec::new(),
        temperature: None,
    };
    model(tokens, key(sequence), number, &draw)
}

#[test]
fn sequences_fork_grow_and_shrink() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let play = rig.play(answer(
        r#"[{"new": {}}, {"ask": 0}, {"take": 0}, {"ask": 0}, {"take": 0}, {"length": 0},
            {"fork": 0}, {"ask": 1}, {"ask": 0}, {"take": 0}, {"take": 1},
            {"truncate": [0, 4]}, {"length": 0}, {"ask": 0}, {"take": 0},
            {"append": [0, [9, 9]]}, {"length": 0}, {"ask": 0}, {"take": 0}, "finish"]"#,
    ));
    let mut tokens = vec![5, 6, 7];
    let mut text = String::new();
    let draw = |tokens: &mut Vec<u32>, sequence, number| {
        let token = drawn(tokens, sequence, number);
        tokens.push(token);
        format!(" {token}")
    };
    text += &draw(&mut tokens, 0, 0);
    text += &draw(&mut tokens, 0, 1);
    text += "(5)";
    let mut fork = tokens.clone();
    text += &draw(&mut tokens, 0, 2);
    text += &draw(&mut fork, 1, 0);
    tokens.truncate(4);
    text += "(4)";
    text += &draw(&mut tokens, 0, 3);
    tokens.extend([9, 9]);
    text += "(7)";
    text += &draw(&mut tokens, 0, 4);
    assert_eq!(play.text, text);
    assert_eq!(play.last, Some(What::Finished(Finish::Length)));
    // A sequence goes on in one lease for as long as its tokens only grow by what is drawn; on a busy
    // machine there may be more.
    let expected = [
        (0, key(0), vec![5, 6, 7]),
        (
            1,
            key(1),
            tokens[..3].iter().chain(&fork[3..5]).copied().collect(),
        ),
        (0, key(0), tokens[..4].to_vec()),
        (0, key(0), tokens[..7].to_vec()),
    ];
    let opened = play.opened.iter();
    let mut opened: Vec<_> = opened
        .map(|open| (open.sequence, open.key, open.prompt.clone()))
        .collect();
    opened.retain(|open| expected.contains(open));
    assert_eq!(opened, expected);
    // All its leases are over.
    for open in play.opened {
        let verdict = rig.programs.join(open.lease).verdict();
        assert!(matches!(verdict, Verdict::Stop));
    }
}

#[test]
fn a_request_is_given_whole_and_answered_with_what_was_drawn() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let play = rig.play(answer(
        r#"["describe", "random", "random",
            {"new": {"alternatives": 2, "temperature": 0.5}},
            {"ask-with": [0, {"tokens": [11], "temperature": 0}]}, {"take": 0},
            {"emit": "ä"}]"#,
    ));
    for part in [
        "Hi",
        "Role::User",
        "[5, 6, 7]",
        "100",
        "2048",
        "1000",
        "[2]",
    ] {
        assert!(play.text.contains(part), "{part} in {}", play.text);
    }
    let random = |n: u64| format!("<{:016x}>", mix(mix(!KEY).wrapping_add(n)));
    let rest = format!("{}{} 11@-0.5[(1, -1.5), (2, -2.5)]ä", random(1), random(2));
    assert!(play.text.ends_with(&rest), "{rest} after {}", play.text);
    assert_eq!(play.opened[0].dials.temperature, 0.5);
    assert_eq!(play.opened[0].alternatives, Some(2));
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
}

/// Whatever was drawn when its worker died, a program says the same, and what was drawn is not drawn
/// again.
#[test]
fn an_answer_goes_on_where_it_was() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"[{"new": {"alternatives": 1}}, {"fork": 0}, {"ask": 0}, {"ask": 1}, {"take": 1},
        {"take": 0}, "random", {"speak": [0, 3]}, {"drop": 1}, {"fork": 0}, {"truncate": [2, 2]},
        {"ask": 2}, {"take": 2}, {"ask-with": [0, {"tokens": [4, 5, 6]}]}, {"take": 0}, {"emit": "."},
        {"ask": 2}, {"take": 2}, {"fail": "enough"}]"#;
    let whole = rig.play(answer(script));
    assert_eq!(whole.drawn.len(), 8);
    for cut in 0..=whole.drawn.len() {
        let again = rig.play(Answer {
            journal: whole.journal(cut),
            ..answer(script)
        });
        assert_eq!(again.text, whole.text, "cut at {cut}");
        assert_eq!(again.last, whole.last, "cut at {cut}");
        assert_eq!(again.drawn.len(), whole.drawn.len() - cut, "cut at {cut}");
    }
}

#[test]
fn a_sequence_of_which_nothing_is_asked_loses_its_lease() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"[{"new": {}}, {"fork": 0}, {"ask": 0}, {"take": 0}, {"ask": 0}, {"ask": 1},
        {"take": 1}, {"take": 0}, {"ask": 0}, {"take": 0}]"#;
    let mut play = Play::begin(&rig, answer(script));
    play.held = vec![1];
    // Both tokens of sequence 0 are drawn; the second waits to be taken.
    play.until(&mut rig, |play| {
        play.drawn.len() == 2 && play.live.len() == 1
    });
    assert_eq!(play.live.values().next().map(|s| s.open.sequence), Some(1));
    play.held.clear();
    play.finish(&mut rig);
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
    let mut tokens = vec![5, 6, 7];
    for number in 0..3 {
        tokens.push(drawn(&tokens, 0, number));
    }
    let again = play.opened.iter().rfind(|open| open.sequence == 0);
    assert_eq!(again.map(|open| &open.prompt[..]), Some(&tokens[..5]));
    let last = format!(" {}", tokens[5]);
    assert!(play.text.ends_with(&last), "{last} after {}", play.text);
}

#[test]
fn a_sequence_may_lose_its_slot_at_any_time() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"[{"new": {}}, {"speak": [0, 20]}]"#;
    let whole = rig.play(answer(script));
    let mut play = Play::begin(&rig, answer(script));
    let mut lost = 0;
    while play.last.is_none() {
        play.turn(&mut rig);
        for (lease, sequence) in &mut play.live {
            // Its plan was seen, or was not.
            if lost % 2 == 0 {
                sequence.steering.verdict();
            }
            sequence.steering = rig.programs.join(*lease);
            lost += 1;
        }
    }
    assert!(lost >= 20);
    assert_eq!((play.text, play.last), (whole.text, whole.last));
}

#[test]
fn tokens_come_to_an_end_before_the_answer_does() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let mut few = answer(
        r#"[{"new": {}}, {"fork": 0}, {"speak": [0, 2]}, {"ask": 0}, {"ask": 1}, {"take": 0}]"#,
    );
    few.request.budget = 3;
    let play = rig.play(few);
    assert!(play.text.contains("[tokens] "), "{}", play.text);
    assert_eq!(play.drawn.len(), 3);
    let mut short = answer(
        r#"[{"new": {}}, {"speak": [0, 9]}, {"length": 0}, {"fork": 0}, {"ask": 1},
            {"truncate": [1, 2]}, {"append": [1, [1, 2, 3]]}, {"ask": 1}, {"append": [1, []]}]"#,
    );
    short.request.context = 5;
    let play = rig.play(short);
    assert!(
        play.text.ends_with("[context](5)[context][context]"),
        "{}",
        play.text
    );
    assert_eq!(play.drawn.len(), 2);
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
}

#[test]
fn what_cannot_be_is_the_answers_own_failure() {
    let _some = PLACES.read();
    use Fault::{Error, Handles, Output, Plan, Time, Trap};
    let mut rig = Rig::new(&["program-script"]);
    let nine = [r#"{"new": {}}"#; 9].join(", ");
    let flood = format!(r#"{{"flood": ["{}", 1025]}}"#, "x".repeat(1024));
    for (steps, fault, message) in [
        (r#"{"new": {"prompt": []}}"#, Plan, "begins with no tokens"),
        (
            r#"{"new": {"prompt": [2048]}}"#,
            Plan,
            "token 2048 in a vocabulary of 2048",
        ),
        (
            r#"{"new": {"prompt": [1,1,1,1,1,1,1,1,1,1]}}"#,
            Plan,
            "10 tokens of a context of 10",
        ),
        (
            r#"{"new": {"alternatives": 21}}"#,
            Plan,
            "21 alternatives are more than 20",
        ),
        (
            r#"{"new": {"temperature": -1}}"#,
            Plan,
            "`temperature` is -1",
        ),
        (r#"{"new": {"top_p": 0}}"#, Plan, "`top-p` is 0"),
        (r#"{"new": {"top_p": 1.5}}"#, Plan, "`top-p` is 1.5"),
        (r#"{"new": {"min_p": 2}}"#, Plan, "`min-p` is 2"),
        (
            r#"{"new": {}}, {"append": [0, [1, 5000]]}"#,
            Plan,
            "token 5000 in a",
        ),
        (
            r#"{"new": {}}, {"append": [0, [1,1,1,1,1,1,1,1]]}"#,
            Plan,
            "11 tokens of a context",
        ),
        (
            r#"{"new": {}}, {"truncate": [0, 0]}"#,
            Plan,
            "to 0 of 3 tokens",
        ),
        (
            r#"{"new": {}}, {"truncate": [0, 4]}"#,
            Plan,
            "to 4 of 3 tokens",
        ),
        (
            r#"{"new": {}}, {"take": 0}"#,
            Plan,
            "that was not asked for",
        ),
        (
            r#"{"new": {}}, {"ask": 0}, {"ask": 0}"#,
            Plan,
            "`ask` while",
        ),
        (
            r#"{"new": {}}, {"ask": 0}, {"fork": 0}"#,
            Plan,
            "`fork` while",
        ),
        (
            r#"{"new": {}}, {"ask": 0}, {"append": [0, [1]]}"#,
            Plan,
            "`append` while",
        ),
        (
            r#"{"new": {}}, {"ask": 0}, {"truncate": [0, 1]}"#,
            Plan,
            "`truncate` while",
        ),
        (
            r#"{"new": {}}, {"ask-with": [0, {"tokens": []}]}"#,
            Plan,
            "`allowed` has no tokens",
        ),
        (
            r#"{"new": {}}, {"ask-with": [0, {"mask": [0]}]}"#,
            Plan,
            "`allowed` has no tokens",
        ),
        (
            r#"{"new": {}}, {"ask-with": [0, {"tokens": [9999]}]}"#,
            Plan,
            "`allowed` names token 9999",
        ),
        (
            r#"{"new": {}}, {"ask-with": [0, {"bias": [[9999, 1]]}]}"#,
            Plan,
            "`bias` names token",
        ),
        (
            r#"{"new": {}}, {"ask-with": [0, {"temperature": -2}]}"#,
            Plan,
            "`temperature` is -2",
        ),
        (nine.as_str(), Handles, "more than 8 sequences at once"),
        (flood.as_str(), Output, "emits more than 1048576 bytes"),
        (r#"{"spin": 100000000000}"#, Time, "more than 50000 µs"),
        (r#"{"trap": "no"}"#, Trap, "unreachable"),
        (r#"{"fail": "no luck"}"#, Error, "no luck"),
    ] {
        let mut attack = answer(&format!("[{steps}]"));
        attack.request.context = 10;
        let failure = rig.failure(attack);
        assert_eq!(failure.fault, fault, "{steps}: {failure}");
        assert!(failure.message.contains(message), "{steps}: {failure}");
    }
    wait_until_empty(&rig.programs.vocabulary(), 2);
}

#[test]
fn a_draw_that_draws_nothing_fails_the_answer() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let mut play = Play::begin(&rig, answer(r#"[{"new": {}}, {"ask": 0}, {"take": 0}]"#));
    play.held = vec![0];
    play.until(&mut rig, |play| !play.live.is_empty());
    let sequence = play.live.values_mut().next().expect("opened");
    assert!(matches!(sequence.steering.verdict(), Verdict::Draw(_)));
    let none = Failure::new(Fault::Plan, "nothing can be drawn");
    sequence.steering.refuse(&none);
    play.finish(&mut rig);
    assert_eq!(play.last, Some(What::failed(none.fault, none.message)));
}

#[test]
fn processor_time_counts_from_one_token_to_the_next() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let step = r#", {"ask": 0}, {"take": 0}, {"spin": 60000000}"#;
    let mut long = answer(&format!(r#"[{{"new": {{}}}}{}]"#, step.repeat(20)));
    long.allotment.call_micros = 300_000;
    let play = rig.play(long);
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
}

#[test]
fn nothing_is_said_when_nobody_listens_any_more() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let vocabulary = rig.programs.vocabulary();
    // While it computes, while it waits for a token, and before its program has come.
    let mut spins = answer(r#"[{"spin": 100000000000}]"#);
    spins.allotment.call_micros = 60_000_000;
    let mut waits = answer(r#"[{"new": {}}, {"emit": "a"}, {"ask": 0}, {"take": 0}]"#);
    waits.run = 2;
    let mut early = answer("[]");
    (early.run, early.program) = (3, 99);
    rig.answer(spins);
    rig.answer(waits);
    rig.answer(early);
    let begun = Instant::now();
    let mut said = Vec::new();
    while said.len() < 2 {
        assert!(begun.elapsed() < LONG);
        said.extend(rig.heard());
    }
    assert!(said.iter().all(|said| said.run == 2), "{said:?}");
    (1..=3).for_each(|run| rig.programs.end(run, &rig.outbox));
    wait_until_empty(&vocabulary, 2);
    assert_eq!(rig.heard(), []);
    // Nor does what waits for a slot outlive its run.
    let mut deaf = Rig::deaf(&["program-script"]);
    deaf.answer(answer(r#"[{"emit": "a"}]"#));
    wait_until_empty(&deaf.programs.vocabulary(), 2);
    deaf.programs.end(1, &deaf.outbox);
    deaf.lend(1);
    assert_eq!(deaf.heard(), []);
    // The gateway goes.
    let never = answer(r#"[{"new": {}}, {"ask": 0}, {"take": 0}]"#);
    deaf.answer(never);
    drop(deaf.programs);
    drop(rig);
}

#[test]
fn what_is_long_is_said_in_pieces_that_fit() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let prompt: Vec<u32> = (0..17_003).map(|n| n % 2048).collect();
    let text = "\\u0001ä".repeat(10_000);
    let mut long = answer(&format!(
        r#"[{{"emit": "{text}"}}, {{"new": {{}}}}, {{"ask": 0}}, {{"take": 0}}]"#
    ));
    long.request.prompt = prompt.clone();
    long.request.context = 20_000;
    let play = rig.play(long);
    assert_eq!(play.opened[0].prompt, prompt);
    assert!(play.text.starts_with(&"\u{1}ä".repeat(10_000)));
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
}

/// What is asked for in vain is not said, where it waits for a slot.
#[test]
fn what_is_taken_back_in_time_is_never_said() {
    let _some = PLACES.read();
    let mut rig = Rig::deaf(&["program-script"]);
    rig.answer(answer(r#"[{"waste": 500}, {"emit": "done"}]"#));
    wait_until_empty(&rig.programs.vocabulary(), 2);
    rig.lend(1);
    let mut said = Vec::new();
    let last = What::Finished(Finish::Stop);
    let begun = Instant::now();
    // The last thing is said after the instance is gone.
    while said.last() != Some(&last) {
        assert!(begun.elapsed() < LONG, "{said:?}");
        said.extend(rig.heard().into_iter().map(|said| said.what));
    }
    assert_eq!(said, [What::Emit(Part::Text("done".into())), last]);
}

#[test]
fn a_component_of_the_other_world_is_unusable() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["choice", "program-script"]);
    let refused = rig.failure(answer("null"));
    assert_eq!(refused.fault, Fault::Unusable);
    assert!(
        refused.message.contains("`choice` is a processor"),
        "{refused}"
    );
    let refused = failure(&rig.programs, start(2, "null", &[]));
    assert_eq!(refused.fault, Fault::Unusable);
    assert!(
        refused.message.contains("`program-script` is a program"),
        "{refused}"
    );
}

#[test]
fn an_answer_takes_a_place_among_its_tenants_instances() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let mut first = answer(r#"[{"new": {}}, {"ask": 0}, {"take": 0}]"#);
    first.allotment.instances = 1;
    rig.answer(first);
    let mut second = answer("[]");
    (second.run, second.allotment.instances) = (2, 1);
    assert_eq!(rig_failure(&mut rig, second).fault, Fault::Instances);
    rig.programs.end(1, &rig.outbox);
    let mut third = answer("[]");
    (third.run, third.allotment.instances) = (3, 1);
    assert_eq!(rig.play(third).last, Some(What::Finished(Finish::Stop)));
}

/// How a run fails, while others say things.
fn rig_failure(rig: &mut Rig, answer: Answer) -> Failure {
    let run = answer.run;
    rig.answer(answer);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LONG);
        for said in rig.heard() {
            if let (true, What::Failed(fault, message)) = (said.run == run, said.what) {
                return Failure::new(Fault::from_number(fault).expect("known"), message);
            }
        }
    }
}

#[test]
fn a_program_that_answers_may_come_after_who_wants_it() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&[]);
    let mut play = Play::begin(&rig, answer(r#"[{"emit": "here"}]"#));
    rig.programs.add(1, "late", compiled("program-script"));
    play.finish(&mut rig);
    assert_eq!(play.text, "here");
    assert_eq!(play.journal(0), Journal::default());
}

/// A script that saves what it drew, opens that again, and goes on from there.
const SAVED: &str = r#"[{"reopen": "s"}, {"new": {}}, {"ask": 0}, {"take": 0}, {"save": [0, "s", 60]},
    {"emit": "-"}, {"reopen": "s"}, {"length": 1}, {"ask": 1}, {"take": 1}, {"forget": "s"}, {"reopen": "s"}]"#;

#[test]
fn a_sequence_is_saved_and_opened_again() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let play = rig.play(answer(SAVED));
    let [(0, first), (1, second)] = &play.drawn[..] else {
        panic!("{:?}", play.drawn);
    };
    let (first, second) = (first.token, second.token);
    assert_eq!(play.text, format!("[none] {first}-(4) {second}[none]"));
    assert_eq!(play.opened[1].prompt, [5, 6, 7, first]);
    let sights: Vec<_> = play.seen.iter().map(|(_, words)| words.clone()).collect();
    assert_eq!(sights, [vec![], vec![5, 6, 7, first], vec![]]);
    assert_eq!(play.kept["s"].seconds, 0, "it is forgotten");
}

/// What it found before is what it finds again, whatever is kept by now.
#[test]
fn what_was_opened_again_is_opened_again_elsewhere() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let whole = rig.play(answer(SAVED));
    for cut in 0..=whole.drawn.len() {
        let known = whole.seen.iter().filter(|(drawn, _)| *drawn <= cut).count();
        for sights in 0..=known {
            let again = rig.play(Answer {
                journal: whole.journal_of(cut, sights),
                ..answer(SAVED)
            });
            assert_eq!(again.text, whole.text, "{cut}, {sights}");
            // Before each look but the first, one token is drawn.
            let from = cut.min(sights);
            assert_eq!(again.drawn, whole.drawn[from..], "{cut}, {sights}");
        }
    }
    let journal = Journal {
        seen: vec![2, 8, 9],
        ..Journal::default()
    };
    let again = rig.play(Answer {
        journal,
        ..answer(r#"[{"reopen": "s"}, {"length": 0}]"#)
    });
    assert_eq!(again.text, "(2)");
    assert_eq!(again.seen, [], "nobody was asked");
}

#[test]
fn names_and_what_is_saved_have_limits() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let long = "ä".repeat(129);
    let save = r#", {"save": [0, "s", 60]}"#.repeat((1 << 20) / 1001 + 1);
    for (script, fault, part) in [
        (r#"[{"reopen": ""}]"#.into(), Fault::Plan, "0 bytes"),
        (format!(r#"[{{"reopen": "{long}"}}]"#), Fault::Plan, "258"),
        (r#"[{"forget": ""}]"#.into(), Fault::Plan, "`forget`"),
        (
            r#"[{"new": {}}, {"save": [0, "s", 86401]}]"#.into(),
            Fault::Plan,
            "86401 seconds",
        ),
        (
            r#"[{"new": {}}, {"ask": 0}, {"save": [0, "s", 60]}]"#.into(),
            Fault::Plan,
            "`save` while",
        ),
        (
            format!(
                r#"[{{"new": {{}}}}, {{"append": [0, {:?}]}}{save}]"#,
                vec![9; 997]
            ),
            Fault::Output,
            "1048576 tokens",
        ),
    ] {
        let mut request = answer(&script);
        request.allotment.call_micros = LONG.as_micros() as u64;
        let failure = rig.failure(request);
        assert_eq!(failure.fault, fault, "{failure} of {script:.90}");
        assert!(failure.message.contains(part), "{failure} of {script:.90}");
    }
}
