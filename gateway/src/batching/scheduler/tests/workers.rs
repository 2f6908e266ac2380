//! Workers come and go.

use super::*;

#[test]
fn sequences_wait_for_the_first_worker() {
    let mut scheduler = Scheduler::new(Config {
        max_waiting: 1,
        step_timeout: TIMEOUT,
    });
    let now = Instant::now();
    let mut rig = Rig::new(LIMITS);
    scheduler.submit(rig.sequence(3, 1)).expect("accepted");
    assert_eq!(
        (scheduler.plan(now), scheduler.next_deadline()),
        (None, None)
    );
    scheduler.worker_ready(LIMITS).expect("valid limits");
    assert!(scheduler.plan(now).is_some());
}

#[test]
fn a_lost_workers_sequences_go_on_with_their_tokens() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(3, 5);
    rig.step(1);
    let lost = rig.plan();
    rig.scheduler.worker_lost();
    assert_eq!(rig.scheduler.plan(rig.now), None);
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
fn a_sequence_in_flight_in_two_deaths_fails_alone() {
    let mut rig = Rig::new(Limits {
        max_sequences: 1,
        ..LIMITS
    });
    let (poison, innocent) = (rig.submit(3, 5), rig.submit(3, 5));
    rig.plan();
    rig.plan();
    rig.scheduler.worker_lost();
    assert_eq!(rig.events(), [], "two steps in flight are one death");
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    rig.scheduler.worker_lost();
    assert_eq!(rig.events(), [], "nothing was in flight");
    rig.scheduler
        .worker_ready(Limits {
            max_sequences: 1,
            ..LIMITS
        })
        .expect("valid limits");
    rig.plan();
    rig.scheduler.worker_lost();
    assert_eq!(
        rig.events(),
        [(poison, Event::Failed(FailReason::WorkerCrashed))]
    );
    rig.scheduler.worker_ready(LIMITS).expect("valid limits");
    assert_eq!(rig.plan().ids, [innocent]);
    assert_eq!(rig.scheduler.stats().workers_lost, 3);
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
