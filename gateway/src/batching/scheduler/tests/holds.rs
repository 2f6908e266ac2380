//! Sequences whose readers are slow.

use super::*;

#[test]
fn a_sequence_that_is_held_leaves_the_batch_and_comes_back_with_its_tokens() {
    let mut rig = Rig::new(LIMITS);
    let (slow, other) = (rig.submit(3, 5), rig.submit(3, 5));
    rig.step(1);
    let crossed = rig.plan();
    rig.scheduler.hold(slow);
    let stats = rig.scheduler.stats();
    assert_eq!((stats.running, stats.held, stats.blocks_used), (1, 1, 1));
    rig.complete(&crossed, 2);
    let seen = [
        (slow, token(1)),
        (other, token(1)),
        (slow, token(2)),
        (other, token(2)),
    ];
    assert_eq!(rig.events(), seen, "what was in flight is reported");
    assert_eq!(rig.step(3).ids, [other]);
    rig.scheduler.resume(slow);
    let back = rig.plan();
    assert_eq!(back.ids, [other, slow]);
    // The block that it had filled is still there.
    assert_eq!((counts(&back), back.context[1]), (vec![1, 1], 4));
    assert_eq!(back.tokens[1..], [2]);
}

#[test]
fn a_sequence_that_is_held_can_end() {
    let mut rig = Rig::new(LIMITS);
    let (done, cancelled, failed) = (rig.submit(3, 1), rig.submit(3, 5), rig.submit(3, 5));
    let last = rig.plan();
    for id in [done, cancelled, failed] {
        rig.scheduler.hold(id);
        rig.scheduler.hold(id);
    }
    rig.complete(&last, 1);
    rig.scheduler.cancel(cancelled);
    assert_eq!(rig.scheduler.plan(rig.now, |_| true), None);
    rig.scheduler.worker_gone();
    let finished = |id| (id, Event::Finished(FinishReason::Length));
    let events = rig.events();
    assert!(events.contains(&finished(done)), "{events:?}");
    assert!(events.contains(&(failed, Event::Failed(FailReason::WorkerGone))));
    let stats = rig.scheduler.stats();
    assert_eq!(
        (stats.completed, stats.cancelled, stats.failed, stats.held),
        (1, 1, 1, 0)
    );
    rig.scheduler.resume(done);
}

#[test]
fn a_sequence_that_is_held_is_suspected_as_any_other() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(3, 5);
    rig.plan();
    rig.scheduler.hold(id);
    rig.scheduler.worker_lost(true);
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    let other = rig.submit(3, 5);
    let step = rig.plan();
    assert_eq!(
        step.ids,
        [other],
        "nobody waits for its trial while it is held"
    );
    rig.scheduler.resume(id);
    assert_eq!(
        rig.scheduler.plan(rig.now, |_| true),
        None,
        "its trial is next"
    );
    rig.complete(&step, 1);
    assert_eq!(rig.plan().ids, [id]);
}
