//! Tensors inside a slot.
//!
//! ```text
//! u32   count
//! u32   dtype, rank, dims[4], offset, bytes     once per tensor; dims beyond rank are 0
//! …     data of each tensor, row-major, from a multiple of 64 bytes on
//! ```
//!
//! Works on plain byte slices that start at a multiple of 64 bytes. [`TensorReader`] checks every
//! field before it hands anything out, so it may be given bytes of any origin, as long as nobody
//! changes them meanwhile.

use bytemuck::Pod;
use half::{bf16, f16};

use crate::layout::ALIGNMENT;

/// Number of the format above; part of the layout hash. Raised when the format changes.
pub(crate) const FORMAT: u64 = 1;

/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 4;
/// 32-bit words that describe one tensor.
const DESCRIPTOR: usize = 4 + MAX_RANK;

/// Type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DType {
    /// Unsigned, 8 bits.
    U8 = 1,
    /// Signed, 32 bits.
    I32 = 2,
    /// Signed, 64 bits.
    I64 = 3,
    /// Unsigned, 32 bits.
    U32 = 4,
    /// Unsigned, 64 bits.
    U64 = 5,
    /// IEEE, 32 bits.
    F32 = 6,
    /// bfloat16.
    BF16 = 7,
    /// IEEE, 16 bits.
    F16 = 8,
}

impl DType {
    const ALL: [Self; 8] = [
        Self::U8,
        Self::I32,
        Self::I64,
        Self::U32,
        Self::U64,
        Self::F32,
        Self::BF16,
        Self::F16,
    ];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::BF16 | Self::F16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 => 8,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as u32 == code)
    }
}

/// A Rust type that is the element of a tensor.
pub trait Scalar: Pod {
    /// Its name in the slot.
    const DTYPE: DType;
}

macro_rules! scalars {
    ($($scalar:ty => $dtype:ident),*) => {$(
        impl Scalar for $scalar {
            const DTYPE: DType = DType::$dtype;
        }
        const _: () = assert!(size_of::<$scalar>() == DType::$dtype.bytes());
    )*};
}
scalars!(u8 => U8, i32 => I32, i64 => I64, u32 => U32, u64 => U64, f32 => F32, bf16 => BF16, f16 => F16);

/// Tensors that cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The bytes do not start at a multiple of 64, so elements could not be read in place.
    #[error("the bytes of the tensors do not start at a multiple of {ALIGNMENT}")]
    Misaligned,
    /// The slot is too small.
    #[error("{needed} bytes of tensors do not fit in a slot of {len}")]
    Room {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        len: usize,
    },
    /// More tensors than the writer was made for.
    #[error("there is room for the descriptions of {0} tensors only")]
    Capacity(usize),
    /// A shape that cannot be described.
    #[error("a tensor of shape {0:?} cannot be described (rank up to {MAX_RANK}, 32-bit sizes)")]
    Shape(Vec<usize>),
    /// The count in the slot is larger than the slot.
    #[error("the slot says it holds {count} tensors, for which its {len} bytes have no room")]
    Count {
        /// Tensors announced.
        count: u32,
        /// Bytes there are.
        len: usize,
    },
    /// A description contradicts itself or points outside the slot.
    #[error("tensor {index}: {reason}")]
    Invalid {
        /// Position of the tensor.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such tensor.
    #[error("tensor {index} does not exist, there are {count}")]
    Missing {
        /// Position asked for.
        index: usize,
        /// Number of tensors.
        count: usize,
    },
    /// The tensor has another type.
    #[error("tensor {index} is of type {found:?}, expected {expected:?}")]
    Type {
        /// Position of the tensor.
        index: usize,
        /// Its type.
        found: DType,
        /// The type asked for.
        expected: DType,
    },
}

/// Bytes in front of the data of `tensors` tensors. Saturates, so that an absurd number is refused
/// for want of room.
fn header_bytes(tensors: usize) -> usize {
    align(tensors.saturating_mul(DESCRIPTOR * 4).saturating_add(4))
}

fn align(offset: usize) -> usize {
    offset
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(usize::MAX)
}

/// Bytes needed to write `tensors`, each a type and a number of elements, by a writer made for
/// exactly that many. `usize::MAX` if no machine has so many.
pub fn required(tensors: &[(DType, usize)]) -> usize {
    tensors
        .iter()
        .fold(header_bytes(tensors.len()), |end, (dtype, elements)| {
            align(end).saturating_add(elements.saturating_mul(dtype.bytes()))
        })
}

/// Writes tensors one after the other.
#[derive(Debug)]
pub struct TensorWriter<'a> {
    bytes: &'a mut [u8],
    capacity: usize,
    count: usize,
    /// End of what is written.
    end: usize,
}

impl<'a> TensorWriter<'a> {
    /// Starts in `bytes`, with room for the descriptions of `capacity` tensors.
    pub fn new(bytes: &'a mut [u8], capacity: usize) -> Result<Self, TensorError> {
        if !(bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            return Err(TensorError::Misaligned);
        }
        let (end, len) = (header_bytes(capacity), bytes.len());
        match bytes.get_mut(..end) {
            Some(header) => header.fill(0),
            None => return Err(TensorError::Room { needed: end, len }),
        }
        Ok(Self {
            bytes,
            capacity,
            count: 0,
            end,
        })
    }

    /// Appends a tensor and returns its elements, row-major, to be filled in. They hold whatever
    /// was there before.
    pub fn tensor<T: Scalar>(&mut self, shape: &[usize]) -> Result<&mut [T], TensorError> {
        if self.count == self.capacity {
            return Err(TensorError::Capacity(self.capacity));
        }
        let undescribable = || TensorError::Shape(shape.to_vec());
        let mut dims = [0u32; MAX_RANK];
        if shape.len() > MAX_RANK {
            return Err(undescribable());
        }
        for (dim, size) in dims.iter_mut().zip(shape) {
            *dim = u32::try_from(*size).map_err(|_| undescribable())?;
        }
        // In the order in which the reader multiplies, so that it finds in range what was so here.
        let bytes = shape
            .iter()
            .try_fold(size_of::<T>(), |n, size| n.checked_mul(*size));
        let bytes = bytes.ok_or_else(undescribable)?;
        let (start, len) = (align(self.end), self.bytes.len());
        let end = start.saturating_add(bytes);
        let room = TensorError::Room { needed: end, len };
        // The end of the last tensor may be past the last multiple of 64 that the slot reaches.
        let (Ok(offset), Ok(bytes32), true) =
            (u32::try_from(start), u32::try_from(bytes), end <= len)
        else {
            return Err(room);
        };

        let at = 4 + self.count * DESCRIPTOR * 4;
        let words = [T::DTYPE as u32, shape.len() as u32]
            .into_iter()
            .chain(dims)
            .chain([offset, bytes32])
            .flat_map(u32::to_le_bytes);
        let header = self
            .bytes
            .get_mut(at..at + DESCRIPTOR * 4)
            .ok_or(room.clone())?;
        header
            .iter_mut()
            .zip(words)
            .for_each(|(byte, value)| *byte = value);
        self.count += 1;
        let count = (self.count as u32).to_le_bytes();
        self.bytes
            .iter_mut()
            .zip(count)
            .for_each(|(byte, value)| *byte = value);
        self.end = end;

        let data = self.bytes.get_mut(start..end).ok_or(room)?;
        bytemuck::try_cast_slice_mut(data).map_err(|_| TensorError::Misaligned)
    }

    /// Bytes used, to be sent as the slot's length.
    pub fn finish(self) -> usize {
        self.end
    }
}

/// Reads tensors in place.
#[derive(Debug, Clone, Copy)]
pub struct TensorReader<'a> {
    bytes: &'a [u8],
    /// The checked descriptions, [`DESCRIPTOR`] words each.
    descriptors: &'a [u32],
}

impl<'a> TensorReader<'a> {
    /// Checks everything that `bytes` says about the tensors in it.
    pub fn new(bytes: &'a [u8]) -> Result<Self, TensorError> {
        let len = bytes.len();
        if !(bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            return Err(TensorError::Misaligned);
        }
        let words: &[u32] = bytemuck::try_cast_slice(&bytes[..len - len % 4])
            .map_err(|_| TensorError::Misaligned)?;
        let (&count, words) = words
            .split_first()
            .ok_or(TensorError::Room { needed: 4, len })?;
        let descriptors = (count as usize)
            .checked_mul(DESCRIPTOR)
            .and_then(|n| words.get(..n))
            .ok_or(TensorError::Count { count, len })?;
        let header = 4 + descriptors.len() * 4;
        for (index, descriptor) in descriptors.chunks_exact(DESCRIPTOR).enumerate() {
            check(descriptor, header, len)
                .map_err(|reason| TensorError::Invalid { index, reason })?;
        }
        Ok(Self { bytes, descriptors })
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.descriptors.len() / DESCRIPTOR
    }

    /// Elements, row-major, and shape of the tensor at position `index`.
    pub fn tensor<T: Scalar>(&self, index: usize) -> Result<(&'a [T], &'a [u32]), TensorError> {
        let missing = TensorError::Missing {
            index,
            count: self.count(),
        };
        let Some(&[dtype, rank, ref dims @ .., offset, bytes]) =
            self.descriptors.chunks_exact(DESCRIPTOR).nth(index)
        else {
            return Err(missing);
        };
        let expected = T::DTYPE;
        match DType::from_code(dtype) {
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(TensorError::Type {
                    index,
                    found,
                    expected,
                });
            }
            None => return Err(missing),
        }
        // All of it was checked in `new`.
        let data = self
            .bytes
            .get(offset as usize..)
            .and_then(|data| data.get(..bytes as usize));
        let (Some(data), Some(dims)) = (data, dims.get(..rank as usize)) else {
            return Err(missing);
        };
        let elements = bytemuck::try_cast_slice(data).map_err(|_| TensorError::Misaligned)?;
        Ok((elements, dims))
    }
}

/// Whether one description makes sense in a slot of `len` bytes whose data begins at or after
/// `header`; else what is wrong with it.
fn check(descriptor: &[u32], header: usize, len: usize) -> Result<(), &'static str> {
    let &[dtype, rank, ref dims @ .., offset, bytes] = descriptor else {
        return Err("its description is cut short");
    };
    let dtype = DType::from_code(dtype).ok_or("unknown type")?;
    let (shape, rest) = dims
        .split_at_checked(rank as usize)
        .ok_or("too many dimensions")?;
    if rest.iter().any(|dim| *dim != 0) {
        return Err("more sizes than dimensions");
    }
    let size = shape
        .iter()
        .try_fold(dtype.bytes(), |n, dim| n.checked_mul(*dim as usize))
        .ok_or("larger than any memory")?;
    let (offset, bytes) = (offset as usize, bytes as usize);
    if size != bytes {
        return Err("its shape and its number of bytes differ");
    }
    if !offset.is_multiple_of(ALIGNMENT) {
        return Err("its data is not aligned");
    }
    if offset < header || offset.checked_add(bytes).is_none_or(|end| end > len) {
        return Err("its data lies outside the slot");
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests;
