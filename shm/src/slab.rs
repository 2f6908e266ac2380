//! Slots of fixed sizes: where they lie, and which of them are in use.
//!
//! Both sides know where slots lie ([`Slots`]). Which are in use is known to the gateway alone
//! ([`Slab`]), in private memory, so the peer can neither forge nor lose a slot.

use std::ops::Range;

use crate::layout::{ALIGNMENT, MAX_CLASSES, PAGE, SLAB};
use crate::message::{SlotRef, pack};

/// Most bytes of a segment. All of it is allocated at once, from memory that the machine's
/// ordinary limits on files do not cover, so that a slip in a geometry would take the machine down.
const MAX_SEGMENT: usize = 4 << 30;

/// Slots of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotClass {
    /// Bytes of each slot; a multiple of 64.
    pub bytes: u32,
    /// Number of slots.
    pub count: u32,
}

/// The slots of both slabs. All of their memory is allocated when the segments are created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Slots that the gateway writes, by ascending size.
    pub input_slots: Vec<SlotClass>,
    /// Slots that the worker writes, by ascending size.
    pub output_slots: Vec<SlotClass>,
}

impl Default for Geometry {
    /// 33 MiB for input and 29 MiB for output.
    fn default() -> Self {
        let classes = |small, medium, large, huge| {
            [
                (4 << 10, small),
                (64 << 10, medium),
                (1 << 20, large),
                (8 << 20, huge),
            ]
            .map(|(bytes, count)| SlotClass { bytes, count })
            .to_vec()
        };
        Self {
            input_slots: classes(256, 64, 12, 2),
            output_slots: classes(256, 64, 8, 2),
        }
    }
}

/// A geometry that cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// No classes, or more than the segment's table holds.
    #[error("{0} slot classes; a slab has 1 to {MAX_CLASSES}")]
    Classes(usize),
    /// A class with no slots or with slots that are not aligned.
    #[error(
        "{count} slots of {bytes} bytes: at least one slot is needed, of a multiple of 64 bytes"
    )]
    Class {
        /// Bytes of each slot.
        bytes: u32,
        /// Number of slots.
        count: u32,
    },
    /// Classes not in ascending order of size.
    #[error("slot classes must ascend in size, but {1} bytes follow {0}")]
    Order(u32, u32),
    /// More slots or bytes than a segment may have.
    #[error("the slot classes are too large together; a segment has up to {MAX_SEGMENT} bytes")]
    Size,
}

/// A slot that cannot be had or does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlabError {
    /// No class has slots of this size.
    #[error("{bytes} bytes do not fit in a slot; the largest holds {largest}")]
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes of the largest slot.
        largest: u32,
    },
    /// Every slot of sufficient size is in use. Try again when some have been freed.
    #[error("all slots that hold {bytes} bytes are in use")]
    Exhausted {
        /// Bytes asked for.
        bytes: usize,
    },
    /// No such slot.
    #[error("slot {index} does not exist")]
    Unknown {
        /// Number of the slot.
        index: u32,
    },
    /// The slot is free: it was freed before, or never handed out.
    #[error("slot {index} (generation {generation}) is free")]
    Free {
        /// Number of the slot.
        index: u32,
        /// Generation referred to.
        generation: u32,
    },
    /// The slot has been handed out anew since.
    #[error(
        "slot {index} is in its generation {current}, the reference is to generation {generation}"
    )]
    Stale {
        /// Number of the slot.
        index: u32,
        /// Generation referred to.
        generation: u32,
        /// Generation now in use.
        current: u32,
    },
    /// More bytes than were allocated.
    #[error("slot {index} was allocated with {allocated} bytes, not {len}")]
    Length {
        /// Number of the slot.
        index: u32,
        /// Bytes referred to.
        len: usize,
        /// Bytes allocated.
        allocated: u32,
    },
}

/// Where the slots of a segment lie: class after class, starting at [`SLAB`].
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    classes: Vec<SlotClass>,
}

impl Slots {
    pub(crate) fn new(classes: &[SlotClass]) -> Result<Self, GeometryError> {
        if classes.is_empty() || classes.len() > MAX_CLASSES {
            return Err(GeometryError::Classes(classes.len()));
        }
        let (mut slots, mut bytes) = (0u32, SLAB);
        for class in classes {
            let SlotClass { bytes: size, count } = *class;
            if size == 0 || count == 0 || !(size as usize).is_multiple_of(ALIGNMENT) {
                return Err(GeometryError::Class { bytes: size, count });
            }
            slots = slots.checked_add(count).ok_or(GeometryError::Size)?;
            let more = (size as usize)
                .checked_mul(count as usize)
                .ok_or(GeometryError::Size)?;
            bytes = bytes.checked_add(more).ok_or(GeometryError::Size)?;
        }
        if let Some(pair) = classes
            .windows(2)
            .find(|pair| pair[0].bytes >= pair[1].bytes)
        {
            return Err(GeometryError::Order(pair[0].bytes, pair[1].bytes));
        }
        // Indices stay below that of `SlotRef::NONE`, since a slot has at least 64 bytes.
        if bytes > MAX_SEGMENT {
            return Err(GeometryError::Size);
        }
        Ok(Self {
            classes: classes.to_vec(),
        })
    }

    pub(crate) fn classes(&self) -> &[SlotClass] {
        &self.classes
    }

    /// Bytes of a segment with these slots.
    pub(crate) fn segment_bytes(&self) -> usize {
        let slab: usize = self
            .classes
            .iter()
            .map(|c| c.bytes as usize * c.count as usize)
            .sum();
        (SLAB + slab).next_multiple_of(PAGE)
    }

    /// First byte in the segment and size of the slot with number `index`.
    fn locate(&self, index: u32) -> Option<(usize, u32)> {
        let (mut offset, mut within) = (SLAB, index);
        for class in &self.classes {
            if within < class.count {
                return Some((offset + within as usize * class.bytes as usize, class.bytes));
            }
            offset += class.count as usize * class.bytes as usize;
            within -= class.count;
        }
        None
    }

    /// The bytes of the segment that `slot` names, if it has them.
    pub(crate) fn range(&self, slot: SlotRef) -> Option<Range<usize>> {
        let (offset, bytes) = self.locate(slot.index)?;
        (slot.len <= bytes).then(|| offset..offset + slot.len as usize)
    }
}

/// The slot classes as they stand in G.
pub(crate) fn class_words(input: &Slots, output: &Slots) -> [u64; 2 * MAX_CLASSES] {
    let mut words = [0; 2 * MAX_CLASSES];
    let (inputs, outputs) = words.split_at_mut(MAX_CLASSES);
    for (words, slots) in [(inputs, input), (outputs, output)] {
        for (word, class) in words.iter_mut().zip(slots.classes()) {
            *word = pack(class.bytes, class.count);
        }
    }
    words
}

#[derive(Debug, Clone, Copy)]
struct State {
    generation: u32,
    /// Bytes asked for; `None` while the slot is free.
    len: Option<u32>,
}

/// Which slots are in use.
#[derive(Debug)]
pub(crate) struct Slab {
    slots: Slots,
    states: Vec<State>,
    /// Free slots of each class. The one freed last goes out first: it is the likeliest in cache.
    free: Vec<Vec<u32>>,
}

impl Slab {
    pub(crate) fn new(slots: Slots) -> Self {
        let mut first = 0;
        let free: Vec<Vec<u32>> = slots
            .classes
            .iter()
            .map(|class| {
                let indices = first..first + class.count;
                first = indices.end;
                indices.rev().collect()
            })
            .collect();
        let states = vec![
            State {
                generation: 0,
                len: None
            };
            first as usize
        ];
        Self {
            slots,
            states,
            free,
        }
    }

    /// Hands out a slot of the smallest class that fits and has one left.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<SlotRef, SlabError> {
        let largest = self.slots.classes.last().map_or(0, |class| class.bytes);
        let len = u32::try_from(bytes)
            .ok()
            .filter(|len| *len <= largest)
            .ok_or(SlabError::TooLarge { bytes, largest })?;
        let fitting = self
            .slots
            .classes
            .iter()
            .zip(&mut self.free)
            .filter(|(c, _)| c.bytes >= len);
        for (_, free) in fitting {
            if let Some(index) = free.pop()
                && let Some(state) = self.states.get_mut(index as usize)
            {
                state.generation = state.generation.wrapping_add(1);
                state.len = Some(len);
                return Ok(SlotRef {
                    index,
                    generation: state.generation,
                    len,
                });
            }
        }
        Err(SlabError::Exhausted { bytes })
    }

    /// The bytes of the segment that `slot` names, if it is in use, in this generation, with at
    /// least this length.
    pub(crate) fn check(&self, slot: SlotRef) -> Result<Range<usize>, SlabError> {
        let SlotRef {
            index,
            generation,
            len,
        } = slot;
        let state = self
            .states
            .get(index as usize)
            .ok_or(SlabError::Unknown { index })?;
        let allocated = state.len.ok_or(SlabError::Free { index, generation })?;
        if state.generation != generation {
            return Err(SlabError::Stale {
                index,
                generation,
                current: state.generation,
            });
        }
        if len > allocated {
            return Err(SlabError::Length {
                index,
                len: len as usize,
                allocated,
            });
        }
        self.slots.range(slot).ok_or(SlabError::Unknown { index })
    }

    /// Takes a slot back. Only its index and generation matter.
    pub(crate) fn free(&mut self, slot: SlotRef) -> Result<(), SlabError> {
        self.check(SlotRef { len: 0, ..slot })?;
        let mut within = slot.index;
        for (class, free) in self.slots.classes.iter().zip(&mut self.free) {
            if within < class.count {
                free.push(slot.index);
                break;
            }
            within -= class.count;
        }
        if let Some(state) = self.states.get_mut(slot.index as usize) {
            state.len = None;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
