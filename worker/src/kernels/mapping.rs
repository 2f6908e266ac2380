//! Files and zeroed memory that the kernel brings in page by page, when first touched.

use std::fs::File;
use std::io;
use std::marker::PhantomData;

use memmap2::{Mmap, MmapMut};

use super::element::Element;

/// A file's contents.
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps a whole file.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn of(file: &File) -> io::Result<Mapping> {
        // SAFETY: the map is only read, as plain bytes without an invariant. Model files are
        // replaced, not edited, by every tool that fetches them; one that is cut short in place
        // while it is being read ends this process by SIGBUS, which its gateway survives.
        unsafe { Mmap::map(file) }.map(Mapping)
    }

    /// Them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// `len` times `zero`, in huge pages where the system has them: weights are read from end to end
/// in every step.
pub(super) fn zeros_in_huge_pages<T: Clone>(len: usize, zero: T) -> Vec<T> {
    let mut zeros = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        let room: &mut [std::mem::MaybeUninit<T>] = zeros.spare_capacity_mut();
        let (start, bytes) = (room.as_mut_ptr().cast::<u8>(), size_of_val(room));
        let skip = start.align_offset(PAGE);
        if let Some(whole) = bytes.checked_sub(skip) {
            let whole = whole / PAGE * PAGE;
            // SAFETY: whole pages inside of one allocation; the advice changes no contents. If it
            // is refused, small pages do as well.
            let _ = unsafe {
                rustix::mm::madvise(
                    start.wrapping_add(skip).cast(),
                    whole,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
        }
    }
    zeros.resize(len, zero);
    zeros
}

/// Bytes to which advice is aligned: a multiple of every page size in use.
const PAGE: usize = 64 << 10;

/// Zeros that take no memory before they are written to.
pub struct Zeroed<T> {
    map: MmapMut,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Zeroed<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// If the system has no address space for them.
    pub fn new(len: usize) -> io::Result<Zeroed<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Zeroed {
            map: MmapMut::map_anon(bytes.max(1))?,
            len,
            element: PhantomData,
        })
    }

    /// Makes them zeros again that take no memory.
    ///
    /// # Errors
    /// If the system has no address space for others beside them.
    pub fn clear(&mut self) -> io::Result<()> {
        *self = Zeroed::new(self.len)?;
        Ok(())
    }

    /// All of them.
    pub fn as_slice(&self) -> &[T] {
        &bytemuck::cast_slice(&self.map[..self.len * size_of::<T>()])[..self.len]
    }

    /// All of them.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.map[..self.len * size_of::<T>()])[..self.len]
    }
}
