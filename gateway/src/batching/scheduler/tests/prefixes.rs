//! What begins alike is computed once.

use super::*;

impl Rig {
    /// Like [`Rig::submit`], for one tenant whose sequences all begin alike.
    fn submit_alike(&mut self, prompt: u32, max_tokens: u32) -> SequenceId {
        let sequence = self.sequence(prompt, max_tokens);
        let id = sequence.id;
        let sequence = Sequence {
            tenant: TenantId::ANYONE,
            ..sequence
        };
        self.scheduler.submit(sequence).expect("accepted");
        id
    }

    /// The same, but it begins in another way.
    fn submit_unlike(&mut self, prompt: u32, max_tokens: u32) -> SequenceId {
        let sequence = self.sequence(prompt, max_tokens);
        let id = sequence.id;
        let sequence = Sequence {
            tenant: TenantId::ANYONE,
            prompt: (0..prompt).rev().collect(),
            ..sequence
        };
        self.scheduler.submit(sequence).expect("accepted");
        id
    }

    fn starts(&mut self) -> Vec<(SequenceId, usize)> {
        let events = std::iter::from_fn(|| self.scheduler.poll_event());
        events
            .filter_map(|(id, event)| match event {
                Event::Started { cached } => Some((id, cached)),
                _ => None,
            })
            .collect()
    }

    /// Runs until everything has ended.
    fn drain(&mut self) {
        loop {
            let stats = self.scheduler.stats();
            if stats.running + stats.waiting == 0 {
                break;
            }
            self.step(1);
        }
    }
}

#[test]
fn a_prompt_is_read_from_where_an_ended_sequence_was_like_it() {
    let mut rig = Rig::new(LIMITS);
    let first = rig.submit_alike(10, 2);
    rig.drain();
    assert_eq!(rig.starts(), [(first, 0)]);
    let second = rig.submit_alike(14, 2);
    let plan = rig.plan();
    assert_eq!(
        (plan.context[0], &plan.tokens[..]),
        (8, &[8, 9, 10, 11, 12, 13][..])
    );
    assert_eq!(plan.blocks[..2], [0, 1], "the first one's");
    assert_eq!(rig.starts(), [(second, 8)]);
    let stats = rig.scheduler.stats();
    assert_eq!((stats.prefix_tokens, stats.prefix_tokens_found), (24, 8));
}

#[test]
fn what_was_generated_is_shared_too() {
    let mut rig = Rig::new(LIMITS);
    let first = rig.submit_alike(6, 3);
    rig.step(6);
    rig.step(7);
    rig.step(8);
    assert_eq!(rig.scheduler.stats().completed, 1, "{first:?}");
    rig.submit_alike(12, 1);
    assert_eq!(
        rig.plan().context,
        [8],
        "6 of the prompt, and 2 that were drawn"
    );
}

#[test]
fn the_last_token_is_computed_always() {
    let mut rig = Rig::new(LIMITS);
    rig.submit_alike(8, 1);
    rig.drain();
    rig.submit_alike(8, 1);
    let plan = rig.plan();
    assert_eq!(
        (&plan.context[..], &plan.tokens[..]),
        (&[4][..], &[4, 5, 6, 7][..])
    );
}

#[test]
fn what_is_to_be_scored_is_computed() {
    let mut rig = Rig::new(LIMITS);
    rig.submit_alike(12, 1);
    rig.drain();
    let sequence = Sequence {
        tenant: TenantId::ANYONE,
        prompt_logprobs: true,
        ..rig.sequence(12, 1)
    };
    rig.scheduler.submit(sequence).expect("accepted");
    assert_eq!(rig.plan().context, [0]);
}

#[test]
fn tenants_share_nothing() {
    let mut rig = Rig::new(LIMITS);
    rig.submit(12, 1);
    rig.drain();
    rig.submit(12, 1);
    assert_eq!(rig.plan().context, [0]);
}

#[test]
fn what_another_is_about_to_compute_is_waited_for() {
    let mut rig = Rig::new(LIMITS);
    let (a, b, c) = (
        rig.submit_alike(20, 4),
        rig.submit_alike(20, 4),
        rig.submit_alike(20, 4),
    );
    assert_eq!(
        (&rig.plan().ids[..], rig.starts()),
        (&[a][..], vec![(a, 0)]),
        "16 tokens, and the others wait for them"
    );
    let plan = rig.plan();
    assert_eq!(
        (&plan.ids[..], &plan.context[..]),
        (&[a, b, c][..], &[16, 16, 16][..])
    );
    assert_eq!(rig.scheduler.stats().blocks_used, 5 + 1 + 1);
    assert_eq!(rig.starts(), [(b, 16), (c, 16)]);
}

#[test]
fn who_waits_for_another_keeps_nobody_else_waiting() {
    let mut rig = Rig::new(LIMITS);
    let [a, b] = std::array::from_fn(|_| rig.submit_alike(24, 4));
    let other = rig.submit_unlike(8, 4);
    assert_eq!(rig.plan().ids, [a]);
    rig.scheduler.steps_in_flight = 4;
    let plan = rig.plan();
    assert_eq!(
        (&plan.ids[..], counts(&plan)),
        (&[a, other][..], vec![8, 8])
    );
    let opens: Vec<_> = plan.opens.iter().map(|open| open.1).collect();
    assert_eq!(opens, [b, other], "it has its place, and nothing to do");
    assert_eq!(rig.starts(), [(a, 0), (other, 0)]);
    let plan = rig.plan();
    assert_eq!(plan.ids, [a, other, b]);
    assert_eq!((plan.context[2], plan.tokens.len()), (20, 6));
    assert_eq!(rig.starts(), [(b, 20)]);
    let stats = rig.scheduler.stats();
    assert_eq!((stats.prefix_tokens, stats.prefix_tokens_found), (56, 20));
    assert_eq!(stats.blocks_used, 7 + 3 + 1, "five are shared");
}

#[test]
fn what_a_cancelled_sequence_computed_is_shared() {
    let mut rig = Rig::new(LIMITS);
    let (a, b) = (rig.submit_alike(20, 4), rig.submit_alike(20, 4));
    assert_eq!(rig.step(1).ids, [a]);
    rig.scheduler.cancel(a);
    let plan = rig.plan();
    assert_eq!((&plan.ids[..], &plan.context[..]), (&[b][..], &[16][..]));
}

#[test]
fn what_gave_no_number_is_computed_again() {
    let mut rig = Rig::new(LIMITS);
    rig.submit_alike(12, 4);
    let plan = rig.plan();
    let mut answer = Answer::to(&plan, 1);
    answer.tokens[0] = realm_shared::wire::result::NO_NUMBER;
    let done = rig
        .scheduler
        .complete(rig.now, Duration::ZERO, answer.view());
    done.expect("a right answer");
    assert_eq!(rig.scheduler.stats().failed, 1);
    rig.submit_alike(12, 4);
    assert_eq!(rig.plan().context, [0]);
}

#[test]
fn a_preempted_sequence_goes_on_where_it_was() {
    let mut rig = Rig::new(LIMITS);
    let id = rig.submit(10, 8);
    rig.step(1);
    rig.step(1);
    rig.scheduler.hold(id);
    rig.scheduler.resume(id);
    let plan = rig.plan();
    assert_eq!(
        (&plan.context[..], &plan.tokens[..]),
        (&[8][..], &[8, 9, 1, 1][..])
    );
    assert_eq!(rig.starts(), [(id, 0)], "once");
}

#[test]
fn a_new_worker_has_nothing_to_share() {
    let mut rig = Rig::new(LIMITS);
    rig.submit_alike(12, 8);
    rig.step(1);
    rig.scheduler.worker_lost(true);
    let limits = Limits {
        block_size: 2,
        ..LIMITS
    };
    rig.scheduler.worker_ready(limits).expect("valid limits");
    assert_eq!(rig.step(1).context, [0]);
    rig.drain();
    rig.submit_alike(12, 1);
    assert_eq!(rig.plan().context, [10], "blocks of two now");
}

#[test]
fn blocks_of_the_past_make_room() {
    let mut rig = Rig::new(Limits {
        block_count: 4,
        ..LIMITS
    });
    rig.submit_alike(15, 1);
    rig.drain();
    assert_eq!(rig.scheduler.stats().blocks_used, 0);
    rig.submit(16, 1);
    assert_eq!(rig.plan().context, [0]);
    assert_eq!(rig.scheduler.stats().blocks_used, 4);
}
