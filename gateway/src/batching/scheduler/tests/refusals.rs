//! What is not accepted, from clients and from workers.

use realm_shared::wire::result::NO_NUMBER;

use super::*;

#[test]
fn refusals_leave_no_trace() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(3, 5);
    let again = Sequence {
        id,
        ..rig.sequence(3, 5)
    };
    let empty = rig.sequence(0, 5);
    assert_eq!(
        rig.scheduler.submit(again.clone()),
        Err(Refused::DuplicateId(id))
    );
    assert_eq!(rig.scheduler.submit(empty), Err(Refused::EmptyPrompt));
    rig.plan();
    assert_eq!(
        rig.scheduler.submit(again),
        Err(Refused::DuplicateId(id)),
        "running too"
    );
    while rig.scheduler.room() > 0 {
        rig.submit(3, 5);
    }
    let one_more = rig.sequence(3, 5);
    assert_eq!(rig.scheduler.submit(one_more), Err(Refused::QueueFull(8)));
    assert_eq!((rig.events(), rig.scheduler.stats().admitted), (vec![], 9));
}

/// A step with a row that draws and wants scores, and one that does neither.
fn asked() -> (Rig, StepPlan) {
    let mut rig = Rig::new(LIMITS);
    let mut sequence = rig.sequence(3, 5);
    sequence.prompt_logprobs = true;
    sequence.sampling.top_logprobs = 2;
    rig.scheduler.submit(sequence).expect("accepted");
    rig.submit(20, 5);
    let plan = rig.plan();
    assert_eq!((counts(&plan), plan.top), (vec![3, 13], 2));
    (rig, plan)
}

#[test]
fn a_lie_is_not_believed_and_changes_nothing() {
    let lies: [fn(&mut Answer); 18] = [
        |a| a.number += 1,
        |a| a.tokens.clear(),
        |a| a.logprobs.push(0.0),
        |a| a.top_ids.truncate(3),
        |a| a.top_logprobs.truncate(3),
        |a| a.prompt_logprobs.clear(),
        |a| a.prompt_top_ids.push(0),
        |a| a.prompt_top_logprobs.clear(),
        |a| a.tokens[0] = VOCAB as i32,
        |a| a.tokens[0] = -1,
        |a| a.tokens[1] = 0,
        |a| a.tokens[1] = NO_NUMBER,
        |a| a.logprobs[0] = f32::NAN,
        |a| a.logprobs[0] = 0.5,
        |a| a.top_ids[1] = VOCAB as i32,
        |a| a.top_logprobs[0] = f32::INFINITY,
        |a| a.prompt_logprobs[1] = f32::INFINITY,
        |a| a.prompt_top_ids[0] = -2,
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let (mut rig, plan) = asked();
        let mut answer = Answer::to(&plan, 1);
        lie(&mut answer);
        let told = rig
            .scheduler
            .complete(rig.now, Duration::ZERO, answer.view());
        assert!(told.is_err(), "lie {index} was believed");
        assert_eq!(
            (rig.events(), rig.scheduler.stats().steps_in_flight),
            (vec![], 1)
        );
        rig.complete(&plan, 1);
    }
}

#[test]
fn what_nobody_asked_for_is_not_looked_at() {
    let (mut rig, plan) = asked();
    let mut answer = Answer::to(&plan, 1);
    answer.logprobs[1] = f32::NAN;
    answer.top_ids[2..].fill(i32::MAX);
    answer.prompt_logprobs[2..].fill(f32::NAN);
    rig.scheduler
        .complete(rig.now, Duration::ZERO, answer.view())
        .expect("the rest is right");
}

#[test]
fn errors_say_where_and_what() {
    let (mut rig, plan) = asked();
    let mut answer = Answer::to(&plan, 1);
    answer.tokens[1] = 5;
    let error = rig
        .scheduler
        .complete(rig.now, Duration::ZERO, answer.view());
    let expected = ResultError::Token {
        number: 1,
        tensor: "TOKENS",
        index: 1,
        token: 5,
        expected: Expected::Nothing,
    };
    assert_eq!(error, Err(expected.clone()));
    assert_eq!(
        expected.to_string(),
        "`TOKENS[1]` of step 1 is 5; expected -1 (no token was to be drawn)"
    );
    let mut idle = Rig::new(LIMITS);
    assert_eq!(
        idle.scheduler
            .complete(idle.now, Duration::ZERO, answer.view()),
        Err(ResultError::Unasked { number: 1 })
    );
}
