//! Workers come and go.

use realm_shared::wire::result::LATE;

use super::*;

#[test]
fn sequences_wait_for_the_first_worker() {
    let mut scheduler = Scheduler::new(Config {
        max_waiting: 1,
        step_timeout: TIMEOUT,
        max_table: 1 << 20,
        surplus: 0.2,
    });
    let now = Instant::now();
    let mut rig = Rig::new(LIMITS);
    scheduler.submit(rig.sequence(3, 1)).expect("accepted");
    assert_eq!(
        (scheduler.plan(now, |_| true), scheduler.next_deadline()),
        (None, None)
    );
    scheduler.worker_ready(LIMITS).expect("valid limits");
    assert!(scheduler.plan(now, |_| true).is_some());
}

#[test]
fn a_lost_workers_sequences_go_on_with_their_tokens() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(3, 5);
    rig.step(1);
    let lost = rig.plan();
    rig.scheduler.worker_lost(true);
    assert_eq!(rig.scheduler.plan(rig.now, |_| true), None);
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    let again = rig.step(2);
    assert_eq!(
        (&again.opens[..], &again.tokens[..]),
        (&[(0, id)][..], &[0, 1, 2, 1][..])
    );
    assert_eq!((again.index[0], again.number), (1, lost.number + 1));
    assert_eq!(rig.events(), [(id, token(1)), (id, token(2))]);
}

#[test]
fn suspects_of_a_death_compute_alone_until_they_are_where_they_were() {
    let mut rig = Rig::new(LIMITS);
    let (first, second) = (rig.submit(3, 5), rig.submit(3, 5));
    rig.step(1);
    rig.plan();
    rig.plan();
    rig.scheduler.worker_lost(true);
    let third = rig.submit(3, 5);
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    // Two tokens of each were in flight.
    for suspect in [first, second] {
        let (prefill, decode) = (rig.plan(), rig.plan());
        assert_eq!(
            (&prefill.ids[..], &decode.ids[..]),
            (&[suspect][..], &[suspect][..])
        );
        assert_eq!(counts(&prefill), [4]);
        rig.complete(&prefill, 1);
        let ahead = rig.plan();
        assert_eq!(ahead.ids, [suspect]);
        rig.complete(&decode, 1);
        if suspect == first {
            assert_eq!(
                rig.scheduler.plan(rig.now, |_| true),
                None,
                "each trial starts on its own"
            );
        }
        rig.complete(&ahead, 1);
    }
    assert_eq!(
        rig.plan().ids,
        [first, second, third],
        "nobody is suspected any more"
    );
}

#[test]
fn a_suspect_that_is_alone_in_a_second_death_fails() {
    let mut rig = Rig::new(LIMITS);
    let innocent = rig.submit(3, 5);
    let poison = rig.submit(3, 5);
    let late = rig.submit(3, 5);
    rig.plan();
    rig.plan();
    rig.scheduler.worker_lost(true);
    assert_eq!(rig.events(), [], "two steps in flight are one death");
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    rig.scheduler.worker_lost(true);
    assert_eq!(rig.events(), [], "nothing was in flight");
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    rig.step(1);
    assert_eq!(rig.events(), [(innocent, token(1))]);
    let own = rig.step(1);
    assert_eq!(own.ids, [innocent], "it had two tokens in flight");
    rig.events();
    assert_eq!(rig.plan().ids, [poison]);
    rig.scheduler.worker_lost(true);
    assert_eq!(
        rig.events(),
        [(poison, Event::Failed(FailReason::WorkerCrashed))]
    );
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    // One whose trial is over is no suspect any more; one that had none yet still is.
    for ids in [&[late][..], &[late], &[late, innocent]] {
        assert_eq!(rig.step(1).ids, ids);
    }
}

/// What steers it may wait for another suspect, of the same program: both would wait for ever.
#[test]
fn a_suspect_that_may_wait_for_another_one_is_cleared_when_its_plan_is_late() {
    let mut rig = Rig::new(LIMITS);
    let [first, second] = [1, 2].map(|lease| rig.submit_steered(Steering::Lease(lease)));
    rig.plan();
    rig.scheduler.worker_lost(true);
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    let late = LATE as u32;
    let prefill = rig.plan();
    assert_eq!(prefill.ids, [first]);
    let ahead = rig.plan();
    assert_eq!(ahead.ids, [first]);
    rig.complete(&prefill, late);
    assert!(rig.scheduler.is_suspect(first), "the rest is in flight");
    rig.complete(&ahead, late);
    assert!(!rig.scheduler.is_suspect(first));
    // Now the other one's turn, alone. There is nobody whom it could wait for.
    let prefill = rig.plan();
    assert_eq!(prefill.ids, [second]);
    let ahead = rig.plan();
    rig.complete(&prefill, late);
    rig.complete(&ahead, late);
    assert_eq!(rig.plan().ids, [second]);
    assert!(rig.scheduler.is_suspect(second));
}

/// What steers it runs beside the steps, and the worker may die of that.
#[test]
fn a_suspect_with_code_of_its_own_is_on_trial_until_it_has_its_tokens_and_others_are_gone() {
    let mut rig = Rig::new(LIMITS);
    let [first, second] = [steering(), form()].map(|by| rig.submit_steered(by));
    let plain = rig.submit(3, 5);
    rig.plan();
    rig.scheduler.worker_lost(true);
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    for _ in 0..3 {
        rig.scheduler.clear_for_trial(false);
        assert_eq!(rig.step(LATE as u32).ids, [first]);
    }
    assert!(rig.scheduler.is_suspect(first));
    rig.step(1);
    assert!(!rig.scheduler.is_suspect(first));
    // It makes way for the next, and its code is ended before that begins.
    rig.scheduler.clear_for_trial(false);
    let mut closed = Vec::new();
    rig.scheduler.close_slots(|slot| {
        closed.push(slot);
        true
    });
    assert_eq!(closed.len(), 1);
    assert_eq!(rig.step(1).ids, [second]);
    rig.scheduler.clear_for_trial(false);
    assert_eq!(rig.step(1).ids, [plain]);
    assert!(!rig.scheduler.tries_suspects());
    assert_eq!(rig.scheduler.stats().running, 1);
    // Trials are over, until a program is tried, for which the scheduler has no suspects.
    rig.scheduler.clear_for_trial(false);
    rig.step(1);
    assert!(rig.scheduler.stats().running > 1);
    rig.scheduler.clear_for_trial(true);
    assert_eq!(rig.scheduler.stats().running, 1);
}

/// An operator who ends two workers in a row, the second of them while a suspect is alone on it.
#[test]
fn a_suspect_is_not_convicted_where_workers_may_have_been_ended_by_somebody() {
    let mut rig = Rig::new(LIMITS);
    let [first, second] = [rig.submit(3, 5), rig.submit(3, 5)];
    rig.plan();
    for by_itself in [false, false] {
        rig.scheduler.worker_lost(by_itself);
        rig.scheduler.worker_ready(LIMITS).expect("valid limits");
        assert_eq!(rig.plan().ids, [first]);
    }
    assert_eq!(rig.events(), []);
    rig.scheduler.worker_lost(false);
    let failed = Event::Failed(FailReason::WorkerCrashed);
    assert_eq!(rig.events(), [(first, failed)], "that is no chance");
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    // One that came through its trial begins anew.
    assert_eq!(rig.step(1).ids, [second]);
    rig.step(1);
    for _ in 0..2 {
        rig.plan();
        rig.scheduler.worker_lost(false);
        rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    }
    assert!(rig.scheduler.is_suspect(second));
}

#[test]
fn a_suspect_goes_on_when_it_was_not_alone() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(3, 9);
    rig.submit(3, 9);
    for _ in 0..5 {
        // Trials are over before each death.
        for _ in 0..9 {
            rig.step(1);
        }
        rig.events();
        rig.submit(3, 9);
        rig.plan();
        rig.scheduler.worker_lost(true);
        assert_eq!(rig.events(), []);
        rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    }
}

#[test]
fn a_worker_that_is_replaced_without_a_death_counts_none() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(3, 5);
    for _ in 0..3 {
        rig.plan();
        rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    }
    assert_eq!(rig.events(), []);
}

#[test]
fn nothing_outlives_a_worker_that_is_gone() {
    let mut rig = Rig::new(LIMITS);
    let (running, waiting) = (rig.submit(40, 5), rig.submit(3, 5));
    rig.plan();
    rig.scheduler.worker_gone();
    let late = rig.submit(3, 5);
    let failed = |id| (id, Event::Failed(FailReason::WorkerGone));
    assert_eq!(rig.events(), [running, waiting, late].map(failed));
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    rig.submit(3, 5);
    assert_eq!(rig.plan().ids.len(), 1, "until there is one again");
}

#[test]
fn a_step_is_overdue_from_when_the_worker_could_begin_it() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(3, 5);
    let start = rig.now;
    assert_eq!(rig.scheduler.next_deadline(), None);
    let first = rig.plan();
    rig.now += Duration::from_secs(1);
    let second = rig.plan();
    assert_eq!(rig.scheduler.next_deadline(), Some(start + TIMEOUT));
    rig.now += Duration::from_secs(1);
    rig.complete(&first, 1);
    assert_eq!(rig.scheduler.next_deadline(), Some(rig.now + TIMEOUT));
    rig.complete(&second, 1);
    assert_eq!(rig.scheduler.next_deadline(), None);
}

#[test]
fn a_worker_that_cannot_be_scheduled_is_refused() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(3, 5);
    rig.plan();
    let limits = Limits {
        block_size: 0,
        ..LIMITS
    };
    assert!(rig.scheduler.worker_ready(limits).is_err());
    assert_eq!(
        rig.scheduler.stats().steps_in_flight,
        1,
        "nothing has changed"
    );
}
