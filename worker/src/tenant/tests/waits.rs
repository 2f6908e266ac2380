//! Waiting for the first of several sequences.

use std::collections::BTreeMap;

use realm_shared::run::{Finish, Journal, MOST_SEEN, What};

use super::rig::{Play, Rig, answer};
use super::*;

/// Two sequences side by side, of which the first that has a token is taken.
const RACE: &str = r#"[{"new": {}}, {"fork": 0}, {"race": [[0, 1], 6]}]"#;

/// Plays it, and has sequence `last` computed only when something was seen, or after so many turns: it may
/// be waited for.
fn race(rig: &mut Rig, last: u32, journal: Journal, mut patience: usize) -> Play {
    let answer = answer(RACE);
    let mut play = Play::begin(rig, Answer { journal, ..answer });
    play.held = vec![last];
    while play.seen.is_empty() && play.last.is_none() && patience > 0 {
        play.turn(rig);
        patience -= 1;
    }
    play.held.clear();
    play.finish(rig);
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
    play
}

/// What was taken, turn by turn: which sequence it was of, and the token.
fn turns(play: &Play) -> Vec<String> {
    let turns = play.text.split('<').skip(1);
    turns.map(str::to_owned).collect()
}

/// Whether the gateway may have heard of this look when so many tokens were drawn: it follows from
/// those that were taken before.
fn may_be_known(play: &Play, look: usize, drawn: usize) -> bool {
    let mut taken = BTreeMap::<u32, usize>::new();
    for (_, words) in &play.seen[..look] {
        *taken.entry(words[0]).or_default() += 1;
    }
    taken.iter().all(|(sequence, count)| {
        let known = play.drawn[..drawn].iter();
        known.filter(|(of, _)| of == sequence).count() >= *count
    })
}

#[test]
fn the_first_that_is_there_is_told_and_is_still_to_be_taken() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    for (last, first) in [(0, 1), (1, 0)] {
        let play = race(&mut rig, last, Journal::default(), usize::MAX);
        assert_eq!(play.seen[0].1, [first]);
        assert_eq!((play.seen.len(), turns(&play).len()), (6, 6));
        assert!(play.text.starts_with(&format!("<{first}> ")));
    }
    // Of those that are there, the one that stands first, whatever it waits for.
    for (ask, take) in [("ask", "take"), ("ask-logits", "take-logits")] {
        let script = format!(
            r#"[{{"new": {{}}}}, {{"fork": 0}}, {{"{ask}": 0}}, {{"{ask}": 1}}, {{"wait-any": [1]}},
            {{"wait-any": [0]}}, {{"wait-any": [1, 0]}}, {{"wait-any": [0, 1, 0]}}, {{"{take}": 1}},
            {{"wait-any": [0]}}, {{"{take}": 0}}]"#
        );
        let play = rig.play(answer(&script));
        assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
        let seen: Vec<_> = play.seen.iter().map(|(_, words)| words[0]).collect();
        assert_eq!(seen, [0; 5], "{ask}");
    }
}

/// Which was first is what it was, whoever is first on another worker, and whether it is there or not. Of
/// what nobody has heard, it is whoever is first there.
#[test]
fn another_worker_shows_what_was_first() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let whole = race(&mut rig, 0, Journal::default(), usize::MAX);
    let mut ahead = 0;
    for cut in 0..=whole.drawn.len() {
        for known in 0..=whole.seen.len() {
            if !(0..known).all(|look| may_be_known(&whole, look, cut)) {
                continue;
            }
            ahead += usize::from(!may_be_known(&whole, known, cut));
            for last in [0, 1] {
                let again = race(&mut rig, last, whole.journal_of(cut, known), 20);
                let context = format!("{cut} drawn, {known} known, {last} is last");
                assert_eq!(known + again.seen.len(), 6, "{context}");
                assert_eq!(turns(&again)[..known], turns(&whole)[..known], "{context}");
                if known == 6 {
                    assert_eq!(again.text, whole.text, "{context}");
                }
            }
        }
    }
    assert!(ahead > 0, "some were seen whose token was lost");
}

#[test]
fn who_waits_for_nothing_is_told_so() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    for (steps, message) in [
        (r#"{"wait-any": []}"#, "`wait-any` of no sequences"),
        (
            r#"{"ask": 0}, {"wait-any": [0, 0, 0, 0, 0, 0, 0, 0, 0]}"#,
            "`wait-any` of 9 sequences, of which it may have 8",
        ),
        (r#"{"wait-any": [0]}"#, "not asked for"),
        (r#"{"ask": 1}, {"wait-any": [1, 0]}"#, "not asked for"),
        (
            r#"{"ask": 0}, {"take": 0}, {"wait-any": [0]}"#,
            "not asked for",
        ),
    ] {
        let script = format!(r#"[{{"new": {{}}}}, {{"fork": 0}}, {steps}]"#);
        let failure = rig.failure(answer(&script));
        assert_eq!(failure.fault, Fault::Plan, "{failure}");
        assert!(failure.message.contains(message), "{failure}");
    }
    let journal = Journal {
        seen: vec![1, 1],
        ..Journal::default()
    };
    let other = Answer {
        journal,
        ..answer(r#"[{"new": {}}, {"ask": 0}, {"wait-any": [0]}]"#)
    };
    let failure = rig.failure(other);
    assert!(failure.message.contains("other sequences"), "{failure}");
}

#[test]
fn a_wait_counts_like_any_look() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let wait = r#", {"wait-any": [0]}"#;
    for (waits, fits) in [(2, true), (3, false)] {
        // All but four words have been seen; each wait takes two.
        let words = MOST_SEEN - 5;
        let mut seen = vec![words as u32];
        seen.resize(1 + words, 0);
        let script = format!(
            r#"[{{"tensor": [[1], [1]]}}, {{"peek": 0}}, {{"new": {{}}}}, {{"ask": 0}}{}]"#,
            wait.repeat(waits)
        );
        let mut request = answer(&script);
        request.allotment.call_micros = LONG.as_micros() as u64;
        let journal = Journal {
            seen,
            ..Journal::default()
        };
        let play = rig.play(Answer { journal, ..request });
        match play.last {
            Some(What::Finished(_)) => assert!(fits),
            Some(What::Failed(fault, message)) => {
                assert!(!fits, "{message}");
                assert_eq!(fault, Fault::Output as u8, "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}
