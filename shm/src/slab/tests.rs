use super::*;
use proptest::prelude::*;

fn classes(classes: &[(u32, u32)]) -> Vec<SlotClass> {
    classes
        .iter()
        .map(|&(bytes, count)| SlotClass { bytes, count })
        .collect()
}

fn slab(list: &[(u32, u32)]) -> Slab {
    Slab::new(Slots::new(&classes(list)).unwrap())
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(usize),
    /// Frees one of the slots in use.
    Free(prop::sample::Index),
    /// Refers to a slot that was freed before.
    Stale(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..1100).prop_map(Op::Alloc),
        3 => any::<prop::sample::Index>().prop_map(Op::Free),
        1 => any::<prop::sample::Index>().prop_map(Op::Stale),
    ]
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn slots_in_use_never_overlap_and_none_is_lost(ops in prop::collection::vec(op(), 1..300)) {
        let total = 4 + 3 + 2;
        let mut slab = slab(&[(64, 4), (256, 3), (1024, 2)]);
        let mut used: Vec<SlotRef> = Vec::new();
        let mut freed: Vec<SlotRef> = Vec::new();
        for op in ops {
            match op {
                Op::Alloc(bytes) => match slab.alloc(bytes) {
                    Ok(slot) => {
                        prop_assert_eq!(slot.len as usize, bytes);
                        let range = slab.check(slot).unwrap();
                        prop_assert_eq!((range.start % ALIGNMENT, range.len()), (0, bytes));
                        let (start, size) = slab.slots.locate(slot.index).unwrap();
                        for other in &used {
                            let (from, bytes) = slab.slots.locate(other.index).unwrap();
                            prop_assert!(
                                start + size as usize <= from || from + bytes as usize <= start
                            );
                        }
                        used.push(slot);
                    }
                    Err(SlabError::TooLarge { .. }) => prop_assert!(bytes > 1024),
                    Err(error) => {
                        prop_assert_eq!(error, SlabError::Exhausted { bytes });
                        let fitting = |slot: &&SlotRef| slab.slots.locate(slot.index).unwrap().1 as usize >= bytes;
                        let slots = [(64, 4), (256, 3), (1024, 2)];
                        let all: usize = slots.iter().filter(|(b, _)| *b >= bytes).map(|(_, n)| n).sum();
                        prop_assert_eq!(used.iter().filter(fitting).count(), all);
                    }
                },
                Op::Free(which) if !used.is_empty() => {
                    let slot = used.swap_remove(which.index(used.len()));
                    prop_assert_eq!(slab.free(slot), Ok(()));
                    freed.push(slot);
                }
                Op::Stale(which) if !freed.is_empty() => {
                    let slot = freed[which.index(freed.len())];
                    let error = slab.free(slot).unwrap_err();
                    prop_assert_eq!(slab.check(slot), Err(error));
                    let in_use = used.iter().any(|other| other.index == slot.index);
                    let stale = matches!(error, SlabError::Stale { .. });
                    let free = matches!(error, SlabError::Free { .. });
                    prop_assert_eq!((stale, free), (in_use, !in_use));
                }
                Op::Free(_) | Op::Stale(_) => {}
            }
            let free: usize = slab.free.iter().map(Vec::len).sum();
            prop_assert_eq!(free + used.len(), total);
            prop_assert!(used.iter().all(|slot| slab.check(*slot).is_ok()));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn no_reference_but_the_one_handed_out_is_accepted(index in 0u32..4, generation in 0u32..4, len in 0u32..130) {
        let mut slab = slab(&[(64, 2), (128, 1)]);
        let slot = slab.alloc(50).unwrap();
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
    assert!(bytes(&geometry.input_slots) + bytes(&geometry.output_slots) <= 64 << 20);
}

#[test]
fn a_larger_slot_is_taken_when_the_fitting_ones_are_out() {
    let mut slab = slab(&[(64, 1), (128, 1)]);
    let small = slab.alloc(64).unwrap();
    let large = slab.alloc(64).unwrap();
    assert_eq!((small.index, large.index), (0, 1));
    assert_eq!(slab.alloc(1), Err(SlabError::Exhausted { bytes: 1 }));
    slab.free(large).unwrap();
    assert_eq!(
        slab.free(large),
        Err(SlabError::Free {
            index: 1,
            generation: 1
        })
    );
    assert_eq!(
        slab.alloc(128).unwrap(),
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
        slab.alloc(129),
        Err(SlabError::TooLarge {
            bytes: 129,
            largest: 128
        })
    );
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
