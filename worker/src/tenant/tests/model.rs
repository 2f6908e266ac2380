//! A program beside the embedded model: it draws what a request without one does.

use std::collections::BTreeMap;

use realm_shared::run::{Finish, What};
use realm_shared::wire::Sampling;
use realm_shared::wire::result::{LATE, STOPPED};
use realm_shared::wire::step::{PARKED, SAMPLE, STEERED};

use super::rig::{KEY, Play, Rig, answer};
use super::*;
use crate::batch::Step;
use crate::engine::{Engine, Options};

/// Blocks of each slot.
const BLOCKS: i32 = 8;
const TOKENS: usize = 24;

fn engine() -> Engine {
    let options = Options {
        threads: Some(1),
        kv_memory: Some(16 << 20),
        ..Options::default()
    };
    Engine::load(&ModelSource::Embedded, &options, &mut |_, _| {}).expect("loads")
}

/// A row of a step: a slot, flags, how many tokens were drawn in it, and all its tokens.
type Row = (u64, i32, usize, Vec<u32>);

/// Runs a step that computes all tokens of its rows. What it draws, as a program would write it down.
fn step(engine: &mut Engine, rows: &[Row]) -> Vec<(i32, String)> {
    const TOP: usize = 2;
    let mut starts = vec![0];
    let mut tokens: Vec<i32> = Vec::new();
    for (_, _, _, all) in rows {
        tokens.extend(all.iter().map(|token| *token as i32));
        starts.push(tokens.len() as i32);
    }
    let slots: Vec<_> = rows.iter().map(|(slot, ..)| *slot as i32).collect();
    let flags: Vec<_> = rows.iter().map(|(_, flags, ..)| *flags).collect();
    let index: Vec<_> = rows.iter().map(|(_, _, drawn, _)| *drawn as i32).collect();
    let blocks = slots.iter().flat_map(|s| s * BLOCKS..(s + 1) * BLOCKS);
    let out = engine.step(Step {
        slots: &slots,
        starts: &starts,
        context: &vec![0; rows.len()],
        flags: &flags,
        index: &index,
        tokens: &tokens,
        blocks: &blocks.collect::<Vec<_>>(),
        targets: &[],
        top: TOP,
    });
    let out = out.expect("valid");
    let drawn = out.tokens.iter().enumerate().map(|(row, token)| {
        let part = row * TOP..(row + 1) * TOP;
        let ids = out.top_ids[part.clone()].iter().map(|id| *id as u32);
        let top: Vec<(u32, f32)> = ids.zip(out.top_logprobs[part].iter().copied()).collect();
        (*token, format!(" {token}@{}{top:?}", out.logprobs[row]))
    });
    drawn.collect()
}

/// What a request without a program draws.
fn native(engine: &mut Engine, temperature: f32, prompt: &[u32]) -> String {
    let sampling = Sampling {
        key: KEY,
        temperature,
        top_logprobs: 2,
        ..Sampling::default()
    };
    let opened = engine.open(0, sampling, std::iter::empty(), &[], None);
    opened.expect("valid");
    let (mut tokens, mut text) = (prompt.to_vec(), String::new());
    for drawn in 0..TOKENS {
        let (token, written) = step(engine, &[(0, SAMPLE, drawn, tokens.clone())]).remove(0);
        tokens.push(token as u32);
        text += &written;
    }
    text
}

/// A sequence of a program in a slot.
struct Lane {
    tokens: Vec<u32>,
    drawn: usize,
    late: bool,
}

/// Computes an answer as a gateway has it computed.
fn play(engine: &mut Engine, program: &str, answer: Answer) -> Play {
    let mut rig = Rig::new(&[program]);
    let mut play = Play::begin(&rig, answer);
    let mut lanes: BTreeMap<u64, Lane> = BTreeMap::new();
    let begun = Instant::now();
    while play.last.is_none() {
        assert!(begun.elapsed() < LONG);
        play.hear(&mut rig);
        while let Some((lease, computed)) = play.live.pop_first() {
            let sampling = computed.open.sampling();
            let steering = Some(computed.steering);
            let opened = engine.open(lease, sampling, std::iter::empty(), &[], steering);
            opened.expect("valid");
            let lane = Lane {
                tokens: computed.open.prompt,
                drawn: 0,
                late: false,
            };
            lanes.insert(lease, lane);
        }
        let row = |(slot, lane): (&u64, &Lane)| match lane.late {
            true => (*slot, SAMPLE | STEERED | PARKED, lane.drawn, Vec::new()),
            false => (*slot, SAMPLE | STEERED, lane.drawn, lane.tokens.clone()),
        };
        let rows: Vec<Row> = lanes.iter().map(row).collect();
        if rows.is_empty() {
            continue;
        }
        let drawn = step(engine, &rows);
        for ((slot, ..), (token, _)) in rows.iter().zip(drawn) {
            let Some(lane) = lanes.get_mut(slot) else {
                continue;
            };
            lane.late = token == LATE;
            match token {
                LATE => {}
                STOPPED => drop(lanes.remove(slot)),
                token => {
                    lane.tokens.push(u32::try_from(token).expect("a token"));
                    lane.drawn += 1;
                }
            }
        }
    }
    play
}

#[test]
fn a_program_draws_what_a_request_without_one_does() {
    let _some = PLACES.read();
    let mut engine = engine();
    for temperature in [0.0, 1.0] {
        let take = r#", {"ask": 0}, {"take": 0}"#.repeat(TOKENS);
        let new = r#"{"new": {"alternatives": 2}}"#;
        let mut request = answer(&format!("[{new}{take}]"));
        request.request.dials.temperature = temperature;
        let prompt = request.request.prompt.len();
        let expected = native(&mut engine, temperature, &request.request.prompt);
        let played = play(&mut engine, "program-script", request);
        assert_eq!(played.text, expected);
        assert_eq!(played.last, Some(What::Finished(Finish::Stop)));
        // In one lease after the other, beside a sequence that goes its own way.
        let mut steps = format!(r#"{new}, {{"fork": 0}}, {{"ask": 1}}"#);
        for drawn in 1..=TOKENS {
            steps += r#", {"ask": 0}, {"take": 0}, {"append": [0, [9]]}"#;
            steps += &format!(r#", {{"truncate": [0, {}]}}"#, prompt + drawn);
        }
        let mut request = answer(&format!("[{steps}]"));
        request.request.dials.temperature = temperature;
        let played = play(&mut engine, "program-script", request);
        assert_eq!(played.text, expected);
        assert_eq!(played.opened.len(), 1 + TOKENS);
    }
}

/// Logits that were seen, and what is drawn from them or from a copy, are the model's.
#[test]
fn what_is_drawn_from_the_models_own_logits_is_what_the_model_draws() {
    let _some = PLACES.read();
    let mut engine = engine();
    for (temperature, draw) in [
        (0.0, r#"{"ask": 0}"#),
        (1.0, r#"{"ask": 0}"#),
        (0.0, r#"{"ask-from": [0, N]}"#),
        (1.0, r#"{"ask-from": [0, N]}"#),
    ] {
        let mut steps = r#"{"new": {"alternatives": 2}}"#.to_owned();
        for n in 0..TOKENS {
            let draw = draw.replace('N', &n.to_string());
            steps +=
                &format!(r#", {{"ask-logits": 0}}, {{"take-logits": 0}}, {draw}, {{"take": 0}}"#);
        }
        let mut request = answer(&format!("[{steps}]"));
        request.request.dials.temperature = temperature;
        let expected = native(&mut engine, temperature, &request.request.prompt);
        let played = play(&mut engine, "program-script", request);
        assert_eq!(played.text, expected, "{draw} at {temperature}");
        assert_eq!(played.last, Some(What::Finished(Finish::Stop)));
        assert_eq!(played.opened.len(), 1, "nothing is computed twice");
    }
}

/// What the engine computed for a sequence is what its program sees, in a slot that waits for it as well as
/// in one that goes on.
#[test]
fn hidden_states_are_the_models() {
    let _some = PLACES.read();
    let mut engine = engine();
    let size = engine.hidden_size();
    let look = r#"{"ask-hidden": 0}, {"take-hidden": 0}"#;
    let script = format!(
        r#"[{{"new": {{}}}}, {look}, {look}, {{"ask": 0}}, {{"take": 0}}, {look}, {{"read": 0}}, {{"read": 1}},
        {{"read": 2}}]"#
    );
    let mut request = answer(&script);
    (request.hidden_size, request.request.dials.temperature) = (size, 0.0);
    let played = play(&mut engine, "program-script", request);
    let sights: Vec<_> = played.seen.iter().map(|(_, words)| words).collect();
    assert!(sights.iter().all(|words| words.len() == size));
    assert_eq!(sights[0], sights[1], "nothing was drawn between them");
    assert_ne!(sights[0], sights[2]);
    // The same in a sequence that begins with what the first one became.
    let mut again = answer(&format!(r#"[{{"new": {{}}}}, {look}, {{"read": 0}}]"#));
    let token = played
        .text
        .split(['[', ' '])
        .nth(1)
        .and_then(|token| token.parse().ok());
    again
        .request
        .prompt
        .extend(token.into_iter().collect::<Vec<u32>>());
    assert_eq!(again.request.prompt.len(), 4);
    again.hidden_size = size;
    let again = play(&mut engine, "program-script", again);
    assert_eq!(&again.seen[0].1, sights[2]);
}

#[test]
fn an_amateur_without_weight_changes_nothing() {
    let _some = PLACES.read();
    let mut engine = engine();
    let mut contrast = |strength: f32| {
        let args = format!(r#"{{"strength": {strength}, "window": 1, "cutoff": 1e-30}}"#);
        let mut request = answer(&args);
        request.request.dials.temperature = 0.0;
        request.request.max_tokens = TOKENS as u32;
        play(&mut engine, "contrastive", request).text
    };
    let [without, with] = [0.0, 3.0].map(&mut contrast);
    assert_ne!(with, without);
    let mut request = answer(&format!(r#"[{{"new": {{}}}}, {{"speak": [0, {TOKENS}]}}]"#));
    request.request.dials.temperature = 0.0;
    let plain = play(&mut engine, "program-script", request).text;
    assert!(!plain.is_empty());
    assert!(plain.starts_with(&without), "{without:?} is not {plain:?}");
}
