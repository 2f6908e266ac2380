//! What a step holds.

use super::*;

#[test]
fn two_steps_are_in_flight_and_the_second_takes_the_token_just_drawn() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(5, 3);
    let first = rig.plan();
    assert_eq!(first.opens, [(0, id)]);
    assert_eq!((&first.ids[..], &first.slots[..]), (&[id][..], &[0][..]));
    assert_eq!(first.tokens, [0, 1, 2, 3, 4]);
    assert_eq!(
        (&first.starts[..], &first.context[..]),
        (&[0, 5][..], &[0][..])
    );
    assert_eq!(
        (&first.flags[..], &first.index[..]),
        (&[SAMPLE][..], &[0][..])
    );
    assert_eq!((&first.blocks[..], first.width), (&[0, 1][..], 2));

    let second = rig.plan();
    assert_eq!(second.number, first.number + 1);
    assert_eq!((second.opens.len(), counts(&second)), (0, vec![1]));
    assert_eq!(second.flags, [SAMPLE | INPUT_SAMPLED]);
    assert_eq!(
        (&second.context[..], &second.index[..]),
        (&[5][..], &[1][..])
    );
    assert_eq!(
        rig.scheduler.plan(rig.now, |_| true),
        None,
        "two are in flight"
    );

    rig.complete(&first, 7);
    let third = rig.plan();
    assert_eq!(third.flags, [SAMPLE | INPUT_SAMPLED]);
    rig.complete(&second, 8);
    assert_eq!(
        rig.scheduler.plan(rig.now, |_| true),
        None,
        "max_tokens are drawn"
    );
    rig.complete(&third, 9);
    let finished = Event::Finished(FinishReason::Length);
    let events = [token(7), token(8), token(9), finished];
    assert_eq!(rig.events(), events.map(|event| (id, event)));
    assert_eq!(rig.scheduler.stats().rows_wasted, 0);
}

#[test]
fn a_token_that_is_known_is_sent() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(2, 3);
    rig.step(7);
    let plan = rig.step(8);
    assert_eq!(
        (&plan.tokens[..], &plan.flags[..]),
        (&[7][..], &[SAMPLE][..])
    );
}

#[test]
fn a_long_prompt_is_read_in_chunks() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(40, 2);
    let plans = [rig.step(1), rig.step(1), rig.plan(), rig.plan()];
    assert_eq!(plans.each_ref().map(counts), [[16], [16], [8], [1]]);
    assert_eq!(
        plans.each_ref().map(|plan| plan.context[0]),
        [0, 16, 32, 40]
    );
    assert_eq!(plans.each_ref().map(|plan| plan.width), [4, 8, 10, 11]);
    let flags = [0, 0, SAMPLE, SAMPLE | INPUT_SAMPLED];
    assert_eq!(plans.each_ref().map(|plan| plan.flags[0]), flags);
}

#[test]
fn decodes_go_first_and_prefill_gets_a_little() {
    let mut rig = Rig::new(LIMITS);
    let decoding = rig.submit(2, 20);
    rig.step(1);
    let reading = rig.submit(20, 5);
    for _ in 0..5 {
        let plan = rig.step(1);
        assert_eq!(plan.ids, [decoding, reading]);
        assert_eq!(counts(&plan), [1, 4]);
    }
    assert_eq!(counts(&rig.step(1)), [1, 1]);
}

#[test]
fn decodes_take_turns_when_a_step_has_not_room_for_all() {
    let mut rig = Rig::new(Limits {
        block_count: 64,
        max_step_tokens: 8,
        max_sequences: 8,
        ..LIMITS
    });
    let decoding: [_; 7] = std::array::from_fn(|_| rig.submit(1, 30));
    rig.step(1);
    rig.submit(20, 1);
    rig.step(1); // The long prompt is admitted with the one token left.
    let plans: [_; 7] = std::array::from_fn(|_| rig.step(1));
    assert!(plans.iter().all(|plan| plan.tokens.len() == 8));
    let rows: Vec<_> = plans.into_iter().flat_map(|plan| plan.ids).collect();
    for id in decoding {
        assert_eq!(rows.iter().filter(|row| **row == id).count(), 6);
    }
}

#[test]
fn decodes_cannot_keep_a_prompt_from_being_read() {
    let mut rig = Rig::new(Limits {
        max_step_tokens: 4,
        ..LIMITS
    });
    for _ in 0..3 {
        rig.submit(1, 30);
    }
    rig.step(1);
    let reading = rig.submit(9, 1);
    let read = |plan: &StepPlan| plan.ids.contains(&reading);
    for _ in 0..9 {
        assert!(read(&rig.step(1)), "one token of every step is for it");
    }
}

#[test]
fn a_wide_table_has_fewer_rows_and_all_take_turns() {
    let mut rig = Rig::new(LIMITS);
    rig.limit_table(16);
    let short: [_; 3] = std::array::from_fn(|_| rig.submit(1, 40));
    assert_eq!(rig.step(1).ids, short, "three rows of one block");
    let long = rig.submit(16, 40);
    let plans: [_; 12] = std::array::from_fn(|_| rig.step(1));
    for plan in &plans {
        assert!(plan.blocks.len() <= 16 || plan.ids.len() <= 2);
    }
    let rows: Vec<_> = plans.iter().flat_map(|plan| &plan.ids).collect();
    for id in short.iter().chain([&long]) {
        let served = rows.iter().filter(|row| **row == id).count();
        assert!(served >= 5, "{id:?} was served {served} times of 12");
    }
}

#[test]
fn a_sequence_starts_when_there_is_room_on_the_way() {
    let mut rig = Rig::new(LIMITS);
    let [first, second, third] = std::array::from_fn(|_| rig.submit(2, 5));
    let mut asked = 0;
    let plan = rig.scheduler.plan(rig.now, |sequence| {
        asked += 1;
        assert_eq!(
            (sequence.tenant.0.get(), sequence.prompt.len()),
            (asked, 2),
            "on whose account"
        );
        asked == 1
    });
    assert_eq!(
        asked, 2,
        "those behind the first that waits are not asked for"
    );
    let plan = plan.expect("there was room for one");
    assert_eq!((&plan.ids, plan.opens.len()), (&vec![first], 1));
    let none = rig.scheduler.plan(rig.now, |_| false);
    assert_eq!(none.expect("a decode needs none").ids, [first]);
    rig.complete(&plan, 1);
    assert_eq!(rig.plan().ids, [first, second, third]);
}

#[test]
fn a_step_that_decodes_bears_as_much_prefill_as_keeps_it_short() {
    let mut rig = Rig::new(Limits {
        block_count: 128,
        max_sequences: 8,
        max_context: 512,
        max_step_tokens: 256,
        ..LIMITS
    });
    let step = |rig: &mut Rig| {
        let plan = rig.plan();
        let prefill = plan.tokens.len() - 7;
        let busy = Duration::from_micros(30_000 + 500 * prefill as u64);
        let answer = Answer::to(&plan, 1);
        let done = rig.scheduler.complete(rig.now, busy, answer.view());
        done.expect("a right answer");
        plan
    };
    let running: [_; 7] = std::array::from_fn(|_| rig.submit(1, 40));
    step(&mut rig);
    step(&mut rig);
    rig.submit(300, 1);
    let plan = step(&mut rig);
    assert_eq!(plan.ids[..7], running);
    let prefill = |plan: &StepPlan| counts(plan)[7];
    assert_eq!(prefill(&plan), 4, "nothing is known");
    assert_eq!(prefill(&step(&mut rig)), 16, "four times as many");
    assert_eq!(prefill(&step(&mut rig)), 48, "54 instead of 30 ms");
}
