use proptest::prelude::*;

use super::*;
use crate::api::testing::{logprobs, sampling, sequence, token};
use crate::text::testing::chat_text;

const END: u32 = 264;

fn choice(stop: &[&str], scored: bool, min_tokens: u32) -> Choice {
    let text = Arc::new(chat_text());
    let sequence = sequence(&[1], sampling(if scored { 0 } else { -1 }, min_tokens));
    let detokenizer = Detokenizer::at_start(&text.tokenizer);
    let stop = stop.iter().map(|&s| s.to_owned()).collect();
    Choice::new(text, &sequence, detokenizer, stop, None)
}

fn ids(text: &str) -> Vec<u32> {
    chat_text().tokenizer.encode(text, false).expect("encodes")
}

fn all(choice: &mut Choice, events: impl IntoIterator<Item = Event>) -> Delta {
    let mut whole = Delta::default();
    for event in events {
        whole.extend(choice.push(event).expect("no failure"));
    }
    whole
}

#[test]
fn the_token_that_ends_a_sequence_counts_and_is_silent() {
    let mut c = choice(&[], true, 0);
    let events = ids("hello").into_iter().chain([END]).map(token);
    let mut delta = all(&mut c, events);
    assert_eq!(delta.finish, None);
    delta.extend(c.push(Event::Finished(FinishReason::Stop)).expect("ok"));
    assert_eq!(delta.text, "hello");
    assert_eq!(delta.tokens.len(), ids("hello").len());
    assert_eq!(delta.finish, Some(FinishReason::Stop));
    assert_eq!(c.generated() as usize, ids("hello").len() + 1);
}

#[test]
fn tokens_behind_a_stop_string_are_not_reported() {
    let mut c = choice(&["lo wo"], true, 0);
    // "hello" is one token, then " w", "o", ...
    let delta = all(&mut c, ids("hello world").into_iter().map(token));
    assert_eq!(delta.text, "hel");
    assert_eq!(delta.finish, Some(FinishReason::Stop));
    assert_eq!(
        delta.tokens.iter().map(|t| t.token).collect::<Vec<_>>(),
        ids("hello")
    );
    assert!(c.is_over());
    assert_eq!(c.generated(), 3, "later tokens no longer count");
}

#[test]
fn a_held_back_end_is_sent_when_the_sequence_ends() {
    let mut c = choice(&["STOP"], true, 0);
    let held = all(&mut c, ids("a ST").into_iter().map(token));
    assert_eq!((held.text.as_str(), held.tokens.len()), ("a ", 2));
    let rest = c.push(Event::Finished(FinishReason::Length)).expect("ok");
    assert_eq!((rest.text.as_str(), rest.tokens.len()), ("ST", 2));
    assert_eq!(rest.finish, Some(FinishReason::Length));
}

#[test]
fn stop_strings_wait_for_the_least_number_of_tokens() {
    let mut c = choice(&["a"], false, 2);
    let delta = all(&mut c, ids("aaba").into_iter().map(token));
    assert_eq!(delta.text, "aab");
    assert_eq!(delta.finish, Some(FinishReason::Stop));
}

#[test]
fn an_unfinished_character_is_replaced_at_the_end() {
    let mut c = choice(&["\u{FFFD}"], false, 0);
    let mut delta = all(&mut c, ids("a€").into_iter().take(2).map(token));
    delta.extend(c.push(Event::Finished(FinishReason::Length)).expect("ok"));
    assert_eq!(delta.text, "a", "it became the stop string");
    assert_eq!(delta.finish, Some(FinishReason::Stop));
}

#[test]
fn a_failure_is_passed_on() {
    let mut c = choice(&[], false, 0);
    let failed = c.push(Event::Failed(FailReason::WorkerCrashed));
    assert_eq!(failed, Err(FailReason::WorkerCrashed));
}

#[test]
fn an_echoed_prompt_waits_for_all_its_scores() {
    let text = Arc::new(chat_text());
    let prompt = [10, 11, 12];
    let mut c = Choice::new(
        text,
        &sequence(&prompt, sampling(0, 0)),
        Detokenizer::within_text(),
        Vec::new(),
        Some(Echo {
            text: "abc".into(),
            offsets: vec![0, 1, 2],
        }),
    );
    let scores = |start, n: usize| Event::PromptLogprobs {
        start,
        entries: vec![logprobs(-1.0, &[]); n],
    };
    assert_eq!(c.push(scores(0, 1)), Ok(Delta::default()));
    let delta = c.push(scores(1, 1)).expect("ok");
    assert_eq!(delta.text, "abc");
    let got: Vec<_> = delta
        .tokens
        .iter()
        .map(|s| (s.token, s.start, s.logprobs.is_some()))
        .collect();
    assert_eq!(got, [(10, 0, false), (11, 1, true), (12, 2, true)]);
    let delta = all(&mut c, ids("hello").into_iter().map(token));
    assert_eq!(delta.text, "hello");
    assert_eq!(delta.tokens[0].start, 3);
}

proptest! {
    /// Whatever the tokens: the text is that of all tokens cut at the first stop string, and the
    /// reported tokens are those that begin in it, in order.
    #[test]
    fn text_and_tokens_agree(
        tokens in prop::collection::vec(prop_oneof![97u32..101, 0u32..263], 0..40),
        stop in prop::collection::vec("[a-d]{1,3}", 0..3),
    ) {
        let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
        let mut c = choice(&stop, true, 0);
        let mut delta = all(&mut c, tokens.iter().copied().map(token));
        delta.extend(c.push(Event::Finished(FinishReason::Length)).expect("ok"));

        let text = chat_text();
        let mut whole = String::new();
        let mut starts = Vec::new();
        let mut d = Detokenizer::at_start(&text.tokenizer);
        for &id in &tokens {
            starts.push(whole.chars().count());
            d.push(&text.tokenizer, id, &mut whole);
        }
        d.finish(&mut whole);
        prop_assert!(whole.starts_with(&delta.text));
        prop_assert!(stop.iter().all(|s| !delta.text.contains(s)));
        let cut = delta.text.chars().count();
        let hit = delta.finish == Some(FinishReason::Stop);
        prop_assert_eq!(hit, stop.iter().any(|s| whole.contains(s)));
        let expected: Vec<_> = tokens
            .iter()
            .zip(starts)
            .filter(|(_, start)| !hit || *start < cut)
            .map(|(&id, start)| (id, start))
            .collect();
        let got: Vec<_> = delta.tokens.iter().map(|s| (s.token, s.start)).collect();
        prop_assert_eq!(got, expected);
    }
}
