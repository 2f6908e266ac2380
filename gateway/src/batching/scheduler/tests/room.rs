//! Classes, weights and parts of the arena: who goes first, and who gives way.

use super::*;

impl Rig {
    fn submit_as(
        &mut self,
        tenant: u32,
        priority: Priority,
        allowance: Allowance,
        (prompt, max_tokens): (u32, u32),
    ) -> SequenceId {
        let sequence = self.sequence(prompt, max_tokens);
        let id = sequence.id;
        // Nothing is found, as all of them differ.
        let prompt = sequence
            .prompt
            .iter()
            .map(|token| (token + 7 * id.0 as u32) % VOCAB);
        let sequence = Sequence {
            tenant: TenantId(NonZeroU32::new(tenant).expect("not 0")),
            priority,
            allowance,
            prompt: prompt.collect(),
            ..sequence
        };
        self.scheduler.submit(sequence).expect("accepted");
        id
    }

    fn submit_of(&mut self, tenant: u32, size: (u32, u32)) -> SequenceId {
        self.submit_as(tenant, Priority::Normal, Allowance::default(), size)
    }

    fn submit_at(&mut self, priority: Priority, size: (u32, u32)) -> SequenceId {
        self.submit_as(1, priority, Allowance::default(), size)
    }

    fn running(&self) -> Vec<SequenceId> {
        let worker = self.scheduler.worker.as_ref().expect("a worker");
        worker.running.keys().copied().collect()
    }
}

#[test]
fn a_better_class_goes_first_and_takes_slots_of_a_worse_one() {
    let mut rig = Rig::new(Limits {
        max_sequences: 2,
        ..LIMITS
    });
    let low: [_; 3] = std::array::from_fn(|_| rig.submit_at(Priority::Low, (2, 30)));
    rig.step(1);
    assert_eq!(rig.running(), low[..2]);
    let normal = rig.submit_at(Priority::Normal, (2, 3));
    let high = rig.submit_at(Priority::High, (2, 3));
    let steps: [_; 2] = std::array::from_fn(|_| rig.step(1));
    assert_eq!(
        steps[0].opens[0].1, high,
        "the youngest of the low ones gave way"
    );
    assert_eq!(steps[1].opens[0].1, normal);
    assert_eq!(rig.running(), [normal, high]);
    assert_eq!(rig.scheduler.stats().preemptions, 2);
    while rig.scheduler.stats().completed < 2 {
        rig.step(1);
    }
    rig.step(1);
    assert_eq!(rig.running(), low[..2], "who gave way goes on first");
}

#[test]
fn no_class_stands_still() {
    let mut rig = Rig::new(Limits {
        max_sequences: 2,
        ..LIMITS
    });
    let low = rig.submit_at(Priority::Low, (2, 4));
    let ended = |rig: &Rig| rig.scheduler.sequence(low).is_none();
    let mut better = 0;
    // There are always some that are more urgent.
    while !ended(&rig) {
        while rig.scheduler.room() > 4 {
            rig.submit_at(Priority::High, (2, 4));
            better += 1;
        }
        rig.step(1);
        assert!(better < 60, "it is passed over for ever");
    }
}

#[test]
fn tenants_of_a_worse_class_take_turns_too() {
    let mut rig = Rig::new(Limits {
        max_sequences: 2,
        ..LIMITS
    });
    // One that is always there, and is better.
    rig.submit_as(3, Priority::Normal, Allowance::default(), (2, 60));
    rig.step(1);
    let low =
        |rig: &mut Rig, tenant| rig.submit_as(tenant, Priority::Low, Allowance::default(), (8, 2));
    let first: [_; 4] = std::array::from_fn(|_| low(&mut rig, 1));
    let other = low(&mut rig, 2);
    while rig.scheduler.sequence(other).is_some() {
        rig.step(1);
    }
    assert!(
        rig.scheduler.sequence(first[2]).is_some(),
        "it has not waited for all"
    );
}

#[test]
fn a_tenant_with_less_than_its_part_takes_slots_of_one_with_more() {
    let mut rig = Rig::new(LIMITS);
    let flood: [_; 6] = std::array::from_fn(|_| rig.submit_of(1, (2, 30)));
    rig.step(1);
    assert_eq!(rig.running(), flood[..4]);
    let others: [_; 3] = std::array::from_fn(|_| rig.submit_of(2, (2, 30)));
    (0..4).for_each(|_| drop(rig.step(1)));
    let running = [flood[0], flood[1], others[0], others[1]];
    assert_eq!(rig.running(), running, "two of four slots each");
    assert_eq!(
        rig.scheduler.stats().preemptions,
        2,
        "and nobody takes turns"
    );
    let late = rig.submit_of(3, (2, 30));
    (0..4).for_each(|_| drop(rig.step(1)));
    assert!(
        !rig.running().contains(&late),
        "none has more than its part and one"
    );
}

#[test]
fn weights_tell_the_parts() {
    let mut rig = Rig::new(LIMITS);
    let flood: [_; 4] = std::array::from_fn(|_| rig.submit_of(1, (2, 30)));
    rig.step(1);
    let heavy = Allowance {
        weight: 3.0,
        ..Allowance::default()
    };
    let size = (2, 30);
    let others: [_; 4] = std::array::from_fn(|_| rig.submit_as(2, Priority::Normal, heavy, size));
    (0..6).for_each(|_| drop(rig.step(1)));
    assert_eq!(rig.running(), [flood[0], others[0], others[1], others[2]]);
}

#[test]
fn a_tenant_has_no_more_blocks_than_it_may() {
    let mut rig = Rig::new(LIMITS);
    let quarter = Allowance {
        kv_share: 0.25,
        ..Allowance::default()
    };
    // Four blocks of sixteen: room for two that have one each, and to grow.
    let size = (2, 12);
    for _ in 0..3 {
        rig.submit_as(1, Priority::Normal, quarter, size);
    }
    let mut most = 0;
    while rig.scheduler.stats().completed < 3 {
        rig.step(1);
        most = most.max(rig.scheduler.stats().blocks_used);
    }
    assert_eq!(most, 4);
    let large = rig.submit_as(1, Priority::Normal, quarter, (40, 4));
    rig.step(1);
    assert_eq!(rig.running(), [large], "one may have what it needs");
}
