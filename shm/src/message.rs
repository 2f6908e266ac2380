//! What the rings carry.

use crate::layout::ENTRY_WORDS;

/// Number of the entry format below; part of the layout hash. Raised when the format changes.
pub(crate) const FORMAT: u64 = 1;

/// A slot of the input or the output slab, as both sides name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotRef {
    /// Number of the slot, counted over all classes of its slab.
    pub index: u32,
    /// How often the slot had been handed out; tells a stale reference from a live one.
    pub generation: u32,
    /// Bytes in use.
    pub len: u32,
}

impl SlotRef {
    /// No slot.
    pub const NONE: Self = Self {
        index: u32::MAX,
        generation: 0,
        len: 0,
    };

    /// Whether this is [`SlotRef::NONE`].
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl Default for SlotRef {
    fn default() -> Self {
        Self::NONE
    }
}

/// One message. What `kind` and `args` mean is for the two ends to agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// What is asked or answered.
    pub kind: u16,
    /// Slot of the input slab, or [`SlotRef::NONE`].
    pub input: SlotRef,
    /// Slot of the output slab, or [`SlotRef::NONE`].
    pub output: SlotRef,
    /// Two words of the caller's.
    pub args: [u64; 2],
}

/// A message with what the ring adds to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) epoch: u32,
    /// Bits that the format does not use; 0 in every valid entry.
    pub(crate) reserved: u64,
    pub(crate) message: Message,
}

/// ```text
/// word  low 32 bits    high 32 bits
///  0    sequence number
///  1    epoch          kind (16), 0 (16)
///  2    input index    input generation
///  3    input length   output length
///  4    output index   output generation
///  5-6  args
///  7    0
/// ```
pub(crate) fn encode(sequence: u64, epoch: u32, message: &Message) -> [u64; ENTRY_WORDS] {
    let Message {
        kind,
        input,
        output,
        args,
    } = message;
    [
        sequence,
        pack(epoch, u32::from(*kind)),
        pack(input.index, input.generation),
        pack(input.len, output.len),
        pack(output.index, output.generation),
        args[0],
        args[1],
        0,
    ]
}

/// Takes any words apart; nothing is checked here.
pub(crate) fn decode(words: [u64; ENTRY_WORDS]) -> Entry {
    let [sequence, head, input, lens, output, arg0, arg1, last] = words;
    Entry {
        sequence,
        epoch: low(head),
        reserved: (head >> 48) | last,
        message: Message {
            kind: (head >> 32) as u16,
            input: SlotRef {
                index: low(input),
                generation: high(input),
                len: low(lens),
            },
            output: SlotRef {
                index: low(output),
                generation: high(output),
                len: high(lens),
            },
            args: [arg0, arg1],
        },
    }
}

pub(crate) fn pack(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

pub(crate) fn low(word: u64) -> u32 {
    word as u32
}

pub(crate) fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot() -> impl Strategy<Value = SlotRef> {
        any::<(u32, u32, u32)>().prop_map(|(index, generation, len)| SlotRef {
            index,
            generation,
            len,
        })
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
        fn every_message_survives_the_ring_format(
            sequence: u64, epoch: u32, kind: u16, input in slot(), output in slot(), args: [u64; 2],
        ) {
            let message = Message { kind, input, output, args };
            let entry = decode(encode(sequence, epoch, &message));
            prop_assert_eq!(entry, Entry { sequence, epoch, reserved: 0, message });
        }
    }

    #[test]
    fn unused_bits_show_up_as_reserved() {
        let valid = encode(7, 1, &Message::default());
        for bit in 48..64 {
            let mut words = valid;
            words[1] |= 1 << bit;
            assert_ne!(decode(words).reserved, 0);
        }
        let mut words = valid;
        words[7] = 1;
        assert_ne!(decode(words).reserved, 0);
    }
}
