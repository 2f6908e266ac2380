//! Who gets blocks, and who gives way.

use super::*;

/// Two sequences that fill four blocks with a step in flight, and a second step for the older
/// one alone: the younger one gave way.
fn crowded() -> (Rig, [SequenceId; 2], [StepPlan; 2]) {
    let mut rig = Rig::new(Limits {
        block_count: 4,
        ..LIMITS
    });
    let (old, young) = (rig.submit(4, 12), rig.submit(4, 8));
    for _ in 0..4 {
        rig.step(2);
    }
    let both = rig.plan();
    assert_eq!(
        (&both.ids[..], &both.context[..]),
        (&[old, young][..], &[7, 7][..])
    );
    let alone = rig.plan();
    assert_eq!((&alone.ids[..], alone.width), (&[old][..], 3));
    assert_eq!(rig.scheduler.stats().preemptions, 1);
    rig.events();
    (rig, [old, young], [both, alone])
}

#[test]
fn the_youngest_gives_way_and_is_read_again_with_its_tokens() {
    let (mut rig, [old, young], [both, alone]) = crowded();
    rig.complete(&both, 3);
    assert_eq!(
        rig.events(),
        [(old, token(3)), (young, token(3))],
        "both drew it"
    );
    rig.complete(&alone, 4);
    while rig.scheduler.stats().completed == 0 {
        assert_eq!(rig.step(4).ids, [old], "too few blocks for both");
    }
    let again = rig.plan();
    assert_eq!((&again.ids[..], again.opens[0].1), (&[young][..], young));
    assert_eq!((&again.context[..], &again.index[..]), (&[0][..], &[5][..]));
    assert_eq!(again.tokens, [0, 1, 2, 3, 2, 2, 2, 2, 3]);
    let view = rig.scheduler.sequence(young).expect("live");
    assert_eq!(
        (view.generated, view.sampling.prompt_len),
        (&[2, 2, 2, 2, 3][..], 4)
    );
}

#[test]
fn what_is_in_flight_arrives_before_a_sequence_is_read_again() {
    let (mut rig, [old, young], [both, alone]) = crowded();
    rig.scheduler.steps_in_flight = 3;
    rig.scheduler.cancel(old);
    assert_eq!(
        rig.scheduler.plan(rig.now, |_| true),
        None,
        "its token is in flight"
    );
    rig.complete(&both, 3);
    let again = rig.plan();
    assert_eq!(
        (&again.ids[..], &again.context[..], again.tokens.len()),
        (&[young][..], &[4][..], 5),
        "one of its two full blocks is still there"
    );
    rig.complete(&alone, 4);
    assert_eq!(rig.events(), [(young, token(3))]);
}

#[test]
fn admission_leaves_a_block_to_grow_for_everyone_who_runs() {
    let mut rig = Rig::new(Limits {
        block_count: 3,
        ..LIMITS
    });
    let (first, second) = (rig.submit(4, 5), rig.submit(5, 1));
    assert_eq!(
        rig.plan().ids,
        [first],
        "2 blocks are free, and 3 are asked for"
    );
    let stats = rig.scheduler.stats();
    assert_eq!((stats.waiting, stats.running, stats.blocks_used), (1, 1, 1));
    rig.scheduler.cancel(first);
    assert_eq!(rig.plan().ids, [second]);
}

#[test]
fn waiting_sequences_are_admitted_in_order_of_age() {
    let mut rig = Rig::new(Limits {
        block_count: 4,
        ..LIMITS
    });
    let (a, b, c) = (rig.submit(4, 9), rig.submit(13, 1), rig.submit(1, 1));
    assert_eq!(rig.step(1).ids, [a]);
    assert_eq!(
        rig.step(1).ids,
        [a],
        "the third would fit, but the second comes first"
    );
    rig.scheduler.cancel(a);
    assert_eq!(rig.step(1).ids, [b]);
    assert_eq!(rig.step(1).ids, [c]);
}

#[test]
fn prompt_scores_are_reported_once() {
    let mut rig = Rig::new(LIMITS);
    let mut sequence = rig.sequence(20, 3);
    let id = sequence.id;
    sequence.prompt_logprobs = true;
    rig.scheduler.submit(sequence).expect("accepted");
    rig.step(1);
    rig.scheduler.worker_lost(true);
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    let plan = rig.step(1);
    assert_eq!((plan.context[0], plan.tokens.len()), (0, 16));
    assert!(plan.targets.is_empty(), "all of these were scored");
    let plan = rig.step(1);
    assert_eq!(plan.targets, [17, 18, 19, -1]);
    let starts: Vec<_> = rig.events();
    let starts = starts.iter().filter_map(|(of, event)| match event {
        Event::PromptLogprobs { start, entries } if *of == id => Some((*start, entries.len())),
        _ => None,
    });
    assert_eq!(starts.collect::<Vec<_>>(), [(0, 16), (16, 3)]);
}
