//! A private byte buffer that tensors can lie in.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// A growable byte buffer aligned to 64 bytes, so that a slot copied into it can be read as
/// tensors. It never gives memory back, so a buffer kept for reuse stops allocating.
#[derive(Default, Clone)]
pub struct AlignedBuf {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the buffer `len` bytes long. What it holds is unspecified afterwards.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(size_of::<Line>());
        if lines > self.lines.len() {
            self.lines.resize(lines, Line::zeroed());
        }
        self.len = len;
    }

    /// The buffer as words; the last one reaches beyond `len` if that is no multiple of 8.
    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len.div_ceil(8)]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_and_exact_while_it_grows_and_shrinks() {
        let mut buffer = AlignedBuf::new();
        assert!(buffer.is_empty());
        for len in [1, 63, 64, 65, 4097, 8, 0, 100_000] {
            buffer.resize(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.words_mut().len(), len.div_ceil(8));
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
        }
    }
}
