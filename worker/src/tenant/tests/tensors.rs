//! Programs that compute with tensors.

use realm_shared::run::{Finish, What};

use super::rig::{Play, Rig, answer, likeliest, logits};
use super::*;

/// A request to play a script, however long it takes.
fn patient(script: &str) -> Answer {
    let mut patient = answer(script);
    patient.allotment.call_micros = LONG.as_micros() as u64;
    patient
}

/// An answer to a script that ends well.
fn said(rig: &mut Rig, script: &str) -> String {
    let play = rig.play(patient(script));
    assert_eq!(
        play.last,
        Some(What::Finished(Finish::Stop)),
        "{script:.90}"
    );
    play.text
}

#[test]
fn tensors_are_computed_with_and_read() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"[{"tensor": [[2, 2], [1, 2, 3, 4]]}, {"scale": [0, 2]}, {"add": [0, 1]}, {"read": 2},
        {"matmul": [0, 2]}, {"read": 3}, {"gather": [3, [1]]}, {"read": 4}, {"concat": [0, 0]}, {"read": 5},
        {"top": [2, 3]}, {"top": [2, 0]}, {"top": [2, 9]}]"#;
    let expected = "[3.0, 6.0, 9.0, 12.0][21.0, 30.0, 45.0, 66.0][30.0, 66.0]\
        [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0][(3, 12.0), (2, 9.0), (1, 6.0)][]\
        [(3, 12.0), (2, 9.0), (1, 6.0), (0, 3.0)]";
    assert_eq!(said(&mut rig, script), expected);
    // Of equals the first, and what is no number is none of the largest.
    let script = r#"[{"tensor": [[4], [-1, 7, -1, 7]]}, {"top": [0, 3]}]"#;
    assert_eq!(said(&mut rig, script), "[(1, 7.0), (3, 7.0), (0, -1.0)]");
}

/// Plays a script again, of which so much was drawn in an earlier life: that comes to the same.
fn resume(rig: &mut Rig, script: &str, whole: &Play, cut: usize) -> Play {
    let again = rig.play(Answer {
        journal: whole.journal(cut),
        ..answer(script)
    });
    assert_eq!(again.text, whole.text, "cut at {cut}");
    assert_eq!(again.last, whole.last, "cut at {cut}");
    assert_eq!(again.drawn, whole.drawn[cut..], "cut at {cut}");
    again
}

/// A script that draws by two sequences' logits together, `count` times.
fn contrast(count: usize, more: &str) -> String {
    let mut steps = r#"{"new": {}}, {"new": {"prompt": [9]}}"#.to_owned();
    for n in 0..count {
        let [a, b, doubled, sum] = [0, 1, 2, 3].map(|i| 4 * n + i);
        steps += &format!(
            r#", {{"ask-logits": 0}}, {{"ask-logits": 1}}, {{"take-logits": 0}}, {{"take-logits": 1}},
            {{"scale": [{b}, -2]}}, {{"add": [{a}, {doubled}]}}, {{"ask-from": [0, {sum}]}}, {{"take": 0}},
            {{"ask": 1}}, {{"take": 1}}{more}"#
        );
    }
    format!("[{steps}]")
}

#[test]
fn tokens_are_drawn_from_what_was_computed() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let play = rig.play(answer(&contrast(5, "")));
    let (mut first, mut second) = (vec![5, 6, 7], vec![9]);
    let mut drawn = play.drawn.iter();
    for _ in 0..5 {
        let sum = logits(&first).into_iter().zip(logits(&second));
        let sum: Vec<f32> = sum.map(|(a, b)| a + b * -2.0).collect();
        let (sequence, token) = drawn.next().map(|(s, d)| (*s, d.token)).expect("drawn");
        assert_eq!((sequence, token), (0, likeliest(&sum)));
        first.push(token);
        second.push(drawn.next().expect("drawn").1.token);
    }
    assert_eq!(play.shown, 10);
    assert_eq!(play.last, Some(What::Finished(Finish::Stop)));
}

/// Tokens that were drawn are not drawn again, and logits are computed again only where a token depends
/// on them that was not drawn yet.
#[test]
fn computing_goes_on_where_it_was() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = contrast(4, "");
    let whole = rig.play(answer(&script));
    for cut in 0..=whole.drawn.len() {
        let again = resume(&mut rig, &script, &whole, cut);
        let rounds = (whole.drawn.len() - cut).div_ceil(2);
        assert!(
            again.shown <= 2 * rounds,
            "{} for {rounds} rounds",
            again.shown
        );
    }
}

/// What a program has read is what it reads again, and what it had not said that it read is read anew:
/// then tokens are drawn again that followed from it.
#[test]
fn reading_goes_on_where_it_was() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = contrast(3, r#", {"top": [3, 2]}"#);
    let whole = rig.play(answer(&script));
    assert_eq!(whole.seen.len(), 3);
    for cut in 0..=whole.drawn.len() {
        let known = whole.seen.iter().filter(|(drawn, _)| *drawn <= cut).count();
        for sights in 0..=known {
            let again = rig.play(Answer {
                journal: whole.journal_of(cut, sights),
                ..answer(&script)
            });
            // Each look is at what two tokens were drawn for.
            let from = cut.min(2 * (sights + 1));
            assert_eq!(again.text, whole.text, "{cut}, {sights}");
            assert_eq!(again.last, whole.last, "{cut}, {sights}");
            assert_eq!(again.drawn, whole.drawn[from..], "{cut}, {sights}");
            assert_eq!(again.seen.len(), 3 - sights, "{cut}, {sights}");
        }
    }
}

/// A hidden state is read, and a token is drawn by what was made of it.
#[test]
fn hidden_states_are_seen_and_seen_again() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"[{"new": {}}, {"ask": 0}, {"take": 0}, {"ask-hidden": 0}, {"take-hidden": 0}, {"read": 0},
        {"ask-hidden": 0}, {"take-hidden": 0}, {"ask-logits": 0}, {"take-logits": 0}, {"gather": [1, [0]]},
        {"add": [2, 3]}, {"ask-from": [0, 4]}, {"take": 0}]"#;
    let whole = rig.play(answer(script));
    let first = whole.drawn[0].1.token;
    let shown = format!(" {first}[4.0, {first}.0, 0.5] ");
    assert!(whole.text.starts_with(&shown), "{}", whole.text);
    assert_eq!(whole.opened.len(), 1, "nothing is computed twice");
    assert_eq!(whole.shown, 3);
    let shows = [3, 2, 0];
    for (cut, shows) in (0..=whole.drawn.len()).zip(shows) {
        let again = resume(&mut rig, script, &whole, cut);
        assert_eq!(again.shown, shows, "cut at {cut}");
    }
}

/// Another worker may compute something else: what was read counts, and what was read in vain does not.
#[test]
fn what_was_read_counts_and_not_what_would_be_read_now() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let script = r#"[{"new": {}}, {"ask-logits": 0}, {"take-logits": 0}, {"top": [0, 1]}, {"ask": 0}, {"take": 0},
        {"tensor": [[2], [1, 2]]}, {"read": 1}]"#;
    let whole = rig.play(answer(script));
    let [(0, top), (1, read)] = &whole.seen[..] else {
        panic!("{:?}", whole.seen);
    };
    assert_eq!(read, &[1.0_f32, 2.0].map(f32::to_bits));
    let mut journal = whole.journal(1);
    assert_eq!(journal.seen[0], top.len() as u32);
    (journal.seen[1], journal.seen[2]) = (77, 0.25_f32.to_bits());
    let again = rig.play(Answer {
        journal,
        ..answer(script)
    });
    assert!(again.text.contains("(77, 0.25)"), "{}", again.text);
    assert_eq!(
        (again.shown, again.drawn.len()),
        (0, 0),
        "nothing is computed"
    );
}

#[test]
fn what_is_read_in_all_has_a_limit() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let places = vec![0; 1 << 15];
    let wide =
        format!(r#"{{"tensor": [[1], [1]]}}, {{"gather": [0, {places:?}]}}, {{"concat": [1, 1]}}"#);
    let reads = |count| format!("[{wide}{}]", r#", {"peek": 2}"#.repeat(count));
    let whole = rig.play(patient(&reads(7)));
    assert_eq!(whole.last, Some(What::Finished(Finish::Stop)));
    assert!(whole.seen.iter().all(|(_, words)| words.len() == 1 << 16));
    for sights in [0, 3, 7] {
        let failure = rig.failure(Answer {
            journal: whole.journal_of(0, sights),
            ..patient(&reads(8))
        });
        assert_eq!(failure.fault, Fault::Output, "{failure}");
        assert!(failure.message.contains("524288 words"), "{failure}");
    }
}

/// Each sum depends on the one before, back to logits that are not there any more.
#[test]
fn a_long_way_back_is_no_trouble() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    // Each also of the first, or twice of the one before: then there are as many ways back as powers of two.
    for (sums, of) in [(900, "0"), (70, "N")] {
        let mut steps = r#"{"new": {}}, {"ask-logits": 0}, {"take-logits": 0}"#.to_owned();
        for n in 0..sums {
            steps += &format!(r#", {{"add": [{n}, {of}]}}, {{"drop-tensor": {n}}}"#)
                .replace('N', &n.to_string())
                .replace(r#", {"drop-tensor": 0}"#, "");
        }
        let script = format!(
            r#"[{steps}, {{"ask-from": [0, {sums}]}}, {{"take": 0}}, {{"ask": 0}}, {{"take": 0}}]"#
        );
        let whole = rig.play(answer(&script));
        assert_eq!(whole.drawn[0].1.token, likeliest(&logits(&[5, 6, 7])));
        for cut in 0..=2 {
            resume(&mut rig, &script, &whole, cut);
        }
    }
}

#[test]
fn tensors_have_limits() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let mib =
        r#"{"tensor": [[1], [1]]}, {"gather": [0, GATHER]}, {"concat": [1, 1, 1, 1, 1, 1, 1, 1]}"#
            .replace("GATHER", &format!("{:?}", vec![0; 32 << 10]));
    let full = vec!["2"; 64].join(",");
    let many = format!("[{}]", vec![r#"{"tensor": [[1], [1]]}"#; 1025].join(","));
    for (script, fault, part) in [
        // 64 MiB are gone with 16 MiB times 4.
        (
            format!(
                r#"[{mib}, {{"concat": [{}]}}, {{"scale": [3, 2]}}, {{"scale": [3, 2]}},
                {{"scale": [3, 2]}}, {{"scale": [3, 2]}}]"#,
                vec!["2"; 16].join(",")
            ),
            Fault::Tensors,
            "67108864 bytes",
        ),
        (
            format!(r#"[{mib}, {{"concat": [{full}]}}]"#),
            Fault::Plan,
            "at most",
        ),
        (many, Fault::Tensors, "1024 tensors"),
        (
            // Told in few words, however many were given.
            format!(
                r#"[{{"tensor": [[{}], [1]]}}]"#,
                vec!["1"; 20_000].join(",")
            ),
            Fault::Plan,
            "20000 dimensions",
        ),
        (
            r#"[{"tensor": [[2], [1]]}]"#.into(),
            Fault::Plan,
            "from 1 numbers",
        ),
        (r#"[{"tensor": [[0], []]}]"#.into(), Fault::Plan, "at most"),
        (
            r#"[{"tensor": [[4000000000, 4000000000], [1]]}]"#.into(),
            Fault::Plan,
            "at most",
        ),
        (
            r#"[{"tensor": [[2], [1, 2]]}, {"tensor": [[3], [1, 2, 3]]}, {"add": [0, 1]}]"#.into(),
            Fault::Plan,
            "`add`",
        ),
        (
            r#"[{"tensor": [[2], [1, 2]]}, {"gather": [0, [2]]}]"#.into(),
            Fault::Plan,
            "at 2",
        ),
        (
            r#"[{"tensor": [[2], [1, 2]]}, {"top": [0, 1025]}]"#.into(),
            Fault::Plan,
            "`top`",
        ),
        (format!(r#"[{mib}, {{"read": 2}}]"#), Fault::Plan, "`read`"),
        (
            r#"[{"new": {}}, {"tensor": [[2], [1, 2]]}, {"ask-from": [0, 0]}]"#.into(),
            Fault::Plan,
            "[2048]",
        ),
        (
            format!(
                r#"[{{"new": {{}}}}, {{"tensor": [[1], [-1e38]]}}, {{"scale": [0, 1e38]}},
                {{"gather": [1, {:?}]}}, {{"ask-from": [0, 2]}}]"#,
                vec![0; VOCABULARY]
            ),
            Fault::Plan,
            "none is a number",
        ),
        (
            r#"[{"new": {}}, {"take-logits": 0}]"#.into(),
            Fault::Plan,
            "not asked for",
        ),
        (
            r#"[{"new": {}}, {"ask": 0}, {"take-logits": 0}]"#.into(),
            Fault::Plan,
            "not asked for",
        ),
        (
            r#"[{"new": {}}, {"ask-logits": 0}, {"take-hidden": 0}]"#.into(),
            Fault::Plan,
            "`take-hidden` of what was not asked for",
        ),
        (
            r#"[{"new": {}}, {"ask-logits": 0}, {"take": 0}]"#.into(),
            Fault::Plan,
            "not asked for",
        ),
        (
            r#"[{"new": {}}, {"ask-logits": 0}, {"fork": 0}]"#.into(),
            Fault::Plan,
            "`fork`",
        ),
    ] {
        let failure = rig.failure(patient(&script));
        assert_eq!(failure.fault, fault, "{failure} of {script:.90}");
        assert!(failure.message.contains(part), "{failure} of {script:.90}");
    }
    // What is dropped does not count.
    let dropped = r#", {"concat": [[2], 0]}, {"drop-tensor": N}"#;
    let turns: String = (3..30)
        .map(|n| {
            dropped
                .replace("[[2], 0]", "[2, 2, 2, 2]")
                .replace('N', &n.to_string())
        })
        .collect();
    assert_eq!(said(&mut rig, &format!("[{mib}{turns}]")), "");
}

/// What is computed is bounded, whether anything is drawn or not.
#[test]
fn logits_count_like_tokens() {
    let _some = PLACES.read();
    let mut rig = Rig::new(&["program-script"]);
    let seen = r#"{"ask-logits": 0}, {"take-logits": 0}"#;
    let script =
        format!(r#"[{{"new": {{}}}}, {seen}, {{"ask": 0}}, {{"take": 0}}, {seen}, {seen}]"#);
    let limited = |budget| {
        let mut limited = answer(&script);
        limited.request.budget = budget;
        limited
    };
    assert_eq!(
        rig.play(limited(4)).last,
        Some(What::Finished(Finish::Stop))
    );
    let whole = rig.play(limited(3));
    for cut in 0..=whole.drawn.len() {
        let again = rig.failure(Answer {
            journal: whole.journal(cut),
            ..limited(3)
        });
        assert_eq!(again.fault, Fault::Error, "{again}");
        assert!(again.message.contains("as many tokens"), "{again}");
    }
}
