use super::*;
use proptest::prelude::*;

fn classes(classes: &[(u32, u32)]) -> Vec<SlotClass> {
    classes
        .iter()
        .map(|&(bytes, count)| SlotClass { bytes, count })
        .collect()
}

/// Less than a slot of 1,024 bytes.
const QUOTA: Quota = Quota {
    slots: 3,
    bytes: 320,
};

fn slab(list: &[(u32, u32)]) -> Slab {
    Slab::new(Slots::new(&classes(list)).unwrap(), QUOTA)
}

/// Slots and bytes of one owner, counted anew.
fn account(slab: &Slab, used: &[(SlotRef, Owner)], owner: Owner) -> (u32, u64) {
    let its = used.iter().filter(|(_, of)| *of == owner);
    let sizes = its.map(|(slot, _)| u64::from(slab.slots.locate(slot.index).unwrap().1));
    sizes.fold((0, 0), |(slots, bytes), size| (slots + 1, bytes + size))
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(usize, Owner),
    /// Frees one of the slots in use.
    Free(prop::sample::Index),
    /// Refers to a slot that was freed before.
    Stale(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..1100, 0u32..3).prop_map(|(bytes, owner)| Op::Alloc(bytes, Owner(owner))),
        3 => any::<prop::sample::Index>().prop_map(Op::Free),
        1 => any::<prop::sample::Index>().prop_map(Op::Stale),
    ]
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn slots_in_use_never_overlap_and_none_is_lost(ops in prop::collection::vec(op(), 1..300)) {
        let sizes = [(64, 6), (256, 5), (1024, 4)];
        let total = 6 + 5 + 4;
        let mut slab = slab(&sizes);
        let mut used: Vec<(SlotRef, Owner)> = Vec::new();
        let mut freed: Vec<SlotRef> = Vec::new();
        for op in ops {
            match op {
                Op::Alloc(bytes, owner) => match slab.alloc(bytes, owner) {
                    Ok(slot) => {
                        prop_assert_eq!(slot.len as usize, bytes);
                        let range = slab.check(slot).unwrap();
                        prop_assert_eq!((range.start % ALIGNMENT, range.len()), (0, bytes));
                        let (start, size) = slab.slots.locate(slot.index).unwrap();
                        for (other, _) in &used {
                            let (from, bytes) = slab.slots.locate(other.index).unwrap();
                            prop_assert!(
                                start + size as usize <= from || from + bytes as usize <= start
                            );
                        }
                        used.push((slot, owner));
                        let (slots, bytes) = account(&slab, &used, owner);
                        prop_assert!(
                            owner == Owner::GATEWAY
                                || slots == 1
                                || slots <= QUOTA.slots && bytes <= QUOTA.bytes
                        );
                    }
                    Err(SlabError::TooLarge { .. }) => prop_assert!(bytes > 1024),
                    Err(SlabError::Quota { slots, in_use, .. }) => {
                        prop_assert_eq!((slots, in_use), account(&slab, &used, owner));
                        // The smallest slot that it could have had.
                        let more = sizes.iter().find(|(size, _)| *size as usize >= bytes);
                        let more = u64::from(more.unwrap().0);
                        prop_assert!(slots > 0);
                        prop_assert!(slots == QUOTA.slots || in_use + 1024.max(more) > QUOTA.bytes);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, SlabError::Exhausted { bytes });
                        let reserved = if owner == Owner::GATEWAY { 0 } else { RESERVED };
                        for (free, (size, _)) in slab.free.iter().zip(sizes) {
                            prop_assert!((size as usize) < bytes || free.len() <= reserved);
                        }
                    }
                },
                Op::Free(which) if !used.is_empty() => {
                    let (slot, _) = used.swap_remove(which.index(used.len()));
                    prop_assert_eq!(slab.free(slot), Ok(()));
                    freed.push(slot);
                }
                Op::Stale(which) if !freed.is_empty() => {
                    let slot = freed[which.index(freed.len())];
                    let error = slab.free(slot).unwrap_err();
                    prop_assert_eq!(slab.check(slot), Err(error));
                    let in_use = used.iter().any(|(other, _)| other.index == slot.index);
                    let stale = matches!(error, SlabError::Stale { .. });
                    let free = matches!(error, SlabError::Free { .. });
                    prop_assert_eq!((stale, free), (in_use, !in_use));
                }
                Op::Free(_) | Op::Stale(_) => {}
            }
            let free: usize = slab.free.iter().map(Vec::len).sum();
            prop_assert_eq!(free + used.len(), total);
            prop_assert!(used.iter().all(|(slot, _)| slab.check(*slot).is_ok()));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn no_reference_but_the_one_handed_out_is_accepted(index in 0u32..4, generation in 0u32..4, len in 0u32..130) {
        let mut slab = slab(&[(64, 2), (128, 1)]);
        let slot = slab.alloc(50, Owner::GATEWAY).unwrap();
        let tried = SlotRef { index, generation, len };
        let accepted = index == slot.index && generation == slot.generation && len <= 50;
        prop_assert_eq!(slab.check(tried).is_ok(), accepted);
    }
}

#[test]
fn slots_lie_one_after_the_other_within_the_segment() {
    let geometry = Geometry::default();
    for classes in [&geometry.input_slots, &geometry.output_slots] {
        let slots = Slots::new(classes).unwrap();
        let mut end = SLAB;
        let total: u32 = classes.iter().map(|class| class.count).sum();
        for index in 0..total {
            let (start, bytes) = slots.locate(index).unwrap();
            assert_eq!(start, end);
            assert!(start.is_multiple_of(ALIGNMENT));
            end = start + bytes as usize;
            let slot = |len| SlotRef {
                index,
                generation: 0,
                len,
            };
            assert_eq!(slots.range(slot(bytes)), Some(start..end));
            assert_eq!(slots.range(slot(bytes + 1)), None);
        }
        assert_eq!(slots.locate(total), None);
        assert_eq!(slots.range(SlotRef::NONE), None);
        assert!(end <= slots.segment_bytes() && slots.segment_bytes() < end + PAGE);
    }
    let bytes = |classes| Slots::new(classes).unwrap().segment_bytes();
    assert!(bytes(&geometry.input_slots) + bytes(&geometry.output_slots) <= 72 << 20);
}

#[test]
fn a_larger_slot_is_taken_when_the_fitting_ones_are_out() {
    let mut slab = slab(&[(64, 1), (128, 1)]);
    let small = slab.alloc(64, Owner::GATEWAY).unwrap();
    let large = slab.alloc(64, Owner::GATEWAY).unwrap();
    assert_eq!((small.index, large.index), (0, 1));
    assert_eq!(
        slab.alloc(1, Owner::GATEWAY),
        Err(SlabError::Exhausted { bytes: 1 })
    );
    slab.free(large).unwrap();
    assert_eq!(
        slab.free(large),
        Err(SlabError::Free {
            index: 1,
            generation: 1
        })
    );
    assert_eq!(
        slab.alloc(128, Owner::GATEWAY).unwrap(),
        SlotRef {
            index: 1,
            generation: 2,
            len: 128
        }
    );
    assert_eq!(
        slab.free(large),
        Err(SlabError::Stale {
            index: 1,
            generation: 1,
            current: 2
        })
    );
    assert_eq!(
        slab.alloc(129, Owner::GATEWAY),
        Err(SlabError::TooLarge {
            bytes: 129,
            largest: 128
        })
    );
}

#[test]
fn an_owner_gets_its_quota_and_no_more_until_it_gives_something_back() {
    let mut slab = slab(&[(64, 8), (256, 4)]);
    let (one, other) = (Owner(1), Owner(2));
    let first = slab.alloc(64, one).unwrap();
    let above = |slots, in_use, bytes| SlabError::Quota {
        owner: one,
        slots,
        in_use,
        bytes,
    };
    // Whole slots count: 64 and 256 bytes are all it may have.
    slab.alloc(65, one).unwrap();
    assert_eq!(slab.alloc(1, one), Err(above(2, 320, 1)));
    slab.free(first).unwrap();
    slab.alloc(1, one).unwrap();
    // The number of slots is bounded as well.
    for _ in 0..3 {
        slab.alloc(1, other).unwrap();
    }
    assert!(matches!(
        slab.alloc(1, other),
        Err(SlabError::Quota {
            slots: 3,
            in_use: 192,
            ..
        })
    ));
    // The gateway has no quota, and nothing is kept of owners that have nothing.
    for _ in 0..6 {
        slab.alloc(1, Owner::GATEWAY).unwrap();
    }
    assert_eq!(slab.accounts.open.len(), 2);
    let all = (0..12).map(|index| (index, slab.states[index].generation));
    for (index, generation) in all.collect::<Vec<_>>() {
        let _ = slab.free(SlotRef {
            index: index as u32,
            generation,
            len: 0,
        });
    }
    assert!(slab.accounts.open.is_empty());
}

#[test]
fn an_owner_without_slots_gets_one_of_any_size() {
    let mut slab = slab(&[(64, 3), (1 << 20, 3)]);
    let large = slab.alloc(1 << 20, Owner(1)).unwrap();
    assert!(matches!(
        slab.alloc(1, Owner(1)),
        Err(SlabError::Quota { .. })
    ));
    slab.free(large).unwrap();
    slab.alloc(1, Owner(1)).unwrap();
}

#[test]
fn the_last_slots_of_a_size_are_the_gateways() {
    let mut slab = slab(&[(64, 3), (256, 3)]);
    let exhausted = Err(SlabError::Exhausted { bytes: 1 });
    slab.alloc(1, Owner(1)).unwrap();
    slab.alloc(1, Owner(2)).unwrap();
    assert_eq!(slab.alloc(1, Owner(3)), exhausted);
    for _ in 0..2 * RESERVED {
        slab.alloc(1, Owner::GATEWAY).unwrap();
    }
    assert_eq!(slab.alloc(1, Owner::GATEWAY), exhausted);
}

#[test]
fn impossible_geometries_are_refused() {
    let refused = |list: &[(u32, u32)]| Slots::new(&classes(list)).unwrap_err();
    assert_eq!(refused(&[]), GeometryError::Classes(0));
    assert_eq!(refused(&[(64, 1); 9]), GeometryError::Classes(9));
    assert_eq!(
        refused(&[(100, 1)]),
        GeometryError::Class {
            bytes: 100,
            count: 1
        }
    );
    assert_eq!(
        refused(&[(0, 1)]),
        GeometryError::Class { bytes: 0, count: 1 }
    );
    assert_eq!(
        refused(&[(64, 0)]),
        GeometryError::Class {
            bytes: 64,
            count: 0
        }
    );
    assert_eq!(refused(&[(128, 1), (64, 1)]), GeometryError::Order(128, 64));
    assert_eq!(refused(&[(64, 1), (64, 1)]), GeometryError::Order(64, 64));
    assert_eq!(refused(&[(64, u32::MAX)]), GeometryError::Size);
    assert_eq!(refused(&[(64, u32::MAX), (128, 1)]), GeometryError::Size);
    assert_eq!(refused(&[(1 << 30, 4)]), GeometryError::Size);
    let huge = !63u32;
    assert_eq!(
        refused(&[(huge - 64, 1 << 31), (huge, u32::MAX >> 1)]),
        GeometryError::Size
    );
}
