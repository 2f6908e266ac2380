//! Slots of fixed sizes: where they lie, and which of them are in use.
//!
//! Both sides know where slots lie ([`Slots`]). Which are in use, and on whose account, is known
//! to the gateway alone ([`Slab`]), in private memory, so the peer can neither forge nor lose a
//! slot.

use std::collections::HashMap;
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

/// On whose account a slot is taken. What a number above 0 means is the caller's affair; a tenant
/// of the gateway, for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u32);

impl Owner {
    /// The gateway itself: without a quota, and the only one to get the last [`RESERVED`] slots
    /// of a size.
    pub const GATEWAY: Self = Self(0);
}

/// Slots of each size that only the gateway gets, so that its own messages always find room: it
/// has two steps in flight, with one slot each.
pub const RESERVED: usize = 2;

/// What each owner other than the gateway may have in use at once, in each slab. An owner that
/// has nothing in use may take one slot of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Number of slots.
    pub slots: u32,
    /// Bytes of those slots, whole slots counted.
    pub bytes: u64,
}

impl Default for Quota {
    /// 128 slots and 2 MiB: half of the small ones of the default geometry and of the medium ones.
    fn default() -> Self {
        Self {
            slots: 128,
            bytes: 2 << 20,
        }
    }
}

/// The slots of both slabs. All of their memory is allocated when the segments are created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Slots that the gateway writes, by ascending size.
    pub input_slots: Vec<SlotClass>,
    /// Slots that the worker writes, by ascending size.
    pub output_slots: Vec<SlotClass>,
    /// What each owner may have of them.
    pub quota: Quota,
}

impl Default for Geometry {
    /// 41 MiB for input and 29 MiB for output.
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
            // One more of the huge ones than is reserved: whatever an owner has to say fits.
            input_slots: classes(256, 64, 12, RESERVED as u32 + 1),
            output_slots: classes(256, 64, 8, RESERVED as u32),
            quota: Quota::default(),
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
    /// Every slot of sufficient size is in use or reserved for the gateway. Try again when some
    /// have been freed.
    #[error("all slots that hold {bytes} bytes are in use")]
    Exhausted {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The owner has as much in use as it may. Try again when it has freed some.
    #[error(
        "owner {} has {slots} slots of {in_use} bytes in use; {bytes} bytes more are above its quota",
        owner.0
    )]
    Quota {
        /// Who asked.
        owner: Owner,
        /// Slots it has in use.
        slots: u32,
        /// Bytes of these slots.
        in_use: u64,
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
    /// Who has it, and the bytes asked for; `None` while the slot is free.
    taken: Option<(Owner, u32)>,
}

/// What an owner has in use.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    slots: u32,
    bytes: u64,
}

/// The accounts of all owners that have slots in use, but the gateway.
#[derive(Debug)]
struct Accounts {
    quota: Quota,
    open: HashMap<Owner, Account>,
}

/// Which slots are in use.
#[derive(Debug)]
pub(crate) struct Slab {
    slots: Slots,
    states: Vec<State>,
    /// Free slots of each class. The one freed last goes out first: it is the likeliest in cache.
    free: Vec<Vec<u32>>,
    accounts: Accounts,
}

impl Slab {
    pub(crate) fn new(slots: Slots, quota: Quota) -> Self {
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
                taken: None
            };
            first as usize
        ];
        Self {
            slots,
            states,
            free,
            accounts: Accounts {
                quota,
                open: HashMap::new(),
            },
        }
    }

    /// Hands out a slot of the smallest class that fits and has one left for this owner.
    pub(crate) fn alloc(&mut self, bytes: usize, owner: Owner) -> Result<SlotRef, SlabError> {
        let largest = self.slots.classes.last().map_or(0, |class| class.bytes);
        let len = u32::try_from(bytes)
            .ok()
            .filter(|len| *len <= largest)
            .ok_or(SlabError::TooLarge { bytes, largest })?;
        let reserved = match owner {
            Owner::GATEWAY => 0,
            _ => RESERVED,
        };
        let fitting = self
            .slots
            .classes
            .iter()
            .zip(&mut self.free)
            .find(|(class, free)| class.bytes >= len && free.len() > reserved);
        let Some((class, free)) = fitting else {
            return Err(SlabError::Exhausted { bytes });
        };
        let charged = self.accounts.charge(owner, class.bytes.into());
        charged.map_err(|account| SlabError::Quota {
            owner,
            slots: account.slots,
            in_use: account.bytes,
            bytes,
        })?;
        if let Some(index) = free.pop()
            && let Some(state) = self.states.get_mut(index as usize)
        {
            state.generation = state.generation.wrapping_add(1);
            state.taken = Some((owner, len));
            return Ok(SlotRef {
                index,
                generation: state.generation,
                len,
            });
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
        let (_, allocated) = state.taken.ok_or(SlabError::Free { index, generation })?;
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
        let (mut within, mut size) = (slot.index, 0);
        for (class, free) in self.slots.classes.iter().zip(&mut self.free) {
            if within < class.count {
                free.push(slot.index);
                size = class.bytes.into();
                break;
            }
            within -= class.count;
        }
        if let Some(state) = self.states.get_mut(slot.index as usize)
            && let Some((owner, _)) = state.taken.take()
        {
            self.accounts.credit(owner, size);
        }
        Ok(())
    }
}

impl Accounts {
    /// Puts a slot on an owner's account, unless that is above its quota; then says what is on it.
    fn charge(&mut self, owner: Owner, size: u64) -> Result<(), Account> {
        if owner == Owner::GATEWAY {
            return Ok(());
        }
        let account = self.open.get(&owner).copied().unwrap_or_default();
        let more = Account {
            slots: account.slots + 1,
            bytes: account.bytes + size,
        };
        let first = account.slots == 0;
        if !first && (more.slots > self.quota.slots || more.bytes > self.quota.bytes) {
            return Err(account);
        }
        self.open.insert(owner, more);
        Ok(())
    }

    /// Takes a slot off an owner's account, which is dropped when it is empty.
    fn credit(&mut self, owner: Owner, size: u64) {
        if let Some(account) = self.open.get_mut(&owner) {
            account.slots -= 1;
            account.bytes -= size;
            if account.slots == 0 {
                self.open.remove(&owner);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
