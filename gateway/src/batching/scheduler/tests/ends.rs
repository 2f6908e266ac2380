//! How a sequence ends.

use realm_shared::wire::result::NO_NUMBER;

use super::*;

#[test]
fn a_stop_id_ends_a_sequence_once_min_tokens_are_generated() {
    let mut rig = Rig::new(LIMITS);
    let mut sequence = rig.sequence(3, 10);
    let id = sequence.id;
    sequence.sampling.stop_ids[..2].copy_from_slice(&[9, 8]);
    sequence.sampling.stop_count = 1;
    sequence.sampling.min_tokens = 1;
    rig.scheduler.submit(sequence).expect("accepted");
    rig.step(9);
    rig.step(8);
    let third = rig.plan();
    let wasted = rig.plan();
    rig.complete(&third, 9);
    assert_eq!(rig.scheduler.stats().blocks_used, 0, "free at once");
    let finished = Event::Finished(FinishReason::Stop);
    let events = [token(9), token(8), token(9), finished];
    assert_eq!(rig.events(), events.map(|event| (id, event)));

    let next = rig.submit(3, 1);
    assert_eq!(rig.plan().opens, [(0, next)], "its slot too");
    rig.complete(&wasted, 9);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.scheduler.stats().rows_wasted, 1);
}

#[test]
fn max_tokens_0_reads_the_prompt_and_draws_nothing() {
    let mut rig = Rig::new(Limits {
        max_step_tokens: 3,
        ..LIMITS
    });
    let mut sequence = rig.sequence(5, 0);
    let id = sequence.id;
    sequence.prompt_logprobs = true;
    sequence.sampling.top_logprobs = 2;
    rig.scheduler.submit(sequence).expect("accepted");
    let plans = [rig.step(1), rig.step(1)];
    assert_eq!(plans.each_ref().map(|plan| plan.flags[0]), [0, 0]);
    assert_eq!(plans.each_ref().map(|plan| plan.top), [2, 2]);
    assert_eq!(
        (&plans[0].targets[..], &plans[1].targets[..]),
        (&[1, 2, 3][..], &[4, -1][..])
    );
    let entry = TokenLogprobs {
        logprob: -1.0,
        top: vec![(0, -1.0); 2],
    };
    let scores = |start, count| Event::PromptLogprobs {
        start,
        entries: vec![entry.clone(); count],
    };
    let finished = Event::Finished(FinishReason::Length);
    let events = [scores(0, 3), scores(3, 1), finished];
    assert_eq!(rig.events(), events.map(|event| (id, event)));
}

#[test]
fn the_context_ends_a_sequence() {
    let mut rig = Rig::new(Limits {
        max_context: 7,
        ..LIMITS
    });
    let (short, full) = (rig.submit(5, u32::MAX), rig.submit(7, 3));
    rig.step(1);
    rig.step(2);
    let finished = Event::Finished(FinishReason::Length);
    let expected = [
        (short, token(1)),
        (full, finished.clone()),
        (short, token(2)),
        (short, finished),
    ];
    assert_eq!(rig.events(), expected);
}

#[test]
fn a_sequence_without_a_number_fails_alone() {
    let mut rig = Rig::new(LIMITS);
    let (bad, good) = (rig.submit(5, 5), rig.submit(5, 5));
    let first = rig.plan();
    let second = rig.plan();
    let mut answer = Answer::to(&first, 1);
    answer.tokens[0] = NO_NUMBER;
    let done = rig
        .scheduler
        .complete(rig.now, Duration::ZERO, answer.view());
    done.expect("a right answer");
    let failed = Event::Failed(FailReason::NotANumber);
    assert_eq!(rig.events(), [(bad, failed.clone()), (good, token(1))]);
    assert_eq!(rig.scheduler.stats().blocks_used, 2, "its own are free");
    // The step behind it was planned before; what it says of the sequence is nobody's.
    rig.complete(&second, 2);
    assert_eq!(rig.events(), [(good, token(2))]);
    let stats = rig.scheduler.stats();
    assert_eq!((stats.failed, stats.rows_wasted), (1, 1));

    let mut scored = rig.sequence(3, 0);
    let id = scored.id;
    scored.prompt_logprobs = true;
    rig.scheduler.submit(scored).expect("accepted");
    let plan = rig.plan();
    let mut answer = Answer::to(&plan, 3);
    let at = plan.targets.iter().position(|&target| target >= 0);
    answer.prompt_logprobs[at.expect("some")] = f32::NAN;
    let done = rig
        .scheduler
        .complete(rig.now, Duration::ZERO, answer.view());
    done.expect("a right answer");
    assert_eq!(rig.events(), [(good, token(3)), (id, failed)]);
}

#[test]
fn a_sequence_that_can_never_fit_fails() {
    let limits = Limits {
        block_count: 2,
        ..LIMITS
    };
    let mut rig = Rig::new(limits);
    let fits = rig.submit(5, 4);
    let too_long = [rig.submit(5, 5), rig.submit(9, 0), rig.submit(65, 1)];
    let failed = |id| (id, Event::Failed(FailReason::TooLong));
    assert_eq!(rig.events(), too_long.map(failed));

    rig.step(1);
    rig.scheduler
        .worker_ready(Limits {
            block_count: 1,
            ..limits
        })
        .expect("valid limits");
    assert_eq!(rig.events(), [(fits, token(1)), failed(fits)]);
}

#[test]
fn a_sequence_longer_than_a_new_workers_context_has_its_length() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(5, 10);
    rig.step(1);
    rig.events();
    let shorter = Limits {
        max_context: 6,
        ..LIMITS
    };
    rig.scheduler.worker_ready(shorter).expect("valid limits");
    assert_eq!(rig.events(), [(id, Event::Finished(FinishReason::Length))]);
}

#[test]
fn a_cancelled_sequence_leaves_at_once() {
    let mut rig = Rig::new(LIMITS);
    let (a, b) = (rig.submit(5, 5), rig.submit(5, 5));
    let first = rig.plan();
    let second = rig.plan();
    rig.complete(&first, 1);
    rig.scheduler.cancel(a);
    assert_eq!(rig.events(), [(b, token(1))], "queued events go too");
    assert_eq!(rig.scheduler.stats().blocks_used, 2);
    rig.complete(&second, 2);
    assert_eq!(rig.events(), [(b, token(2))]);
    rig.scheduler.cancel(a);
    let stats = rig.scheduler.stats();
    assert_eq!((stats.cancelled, stats.rows_wasted), (1, 1));
}
