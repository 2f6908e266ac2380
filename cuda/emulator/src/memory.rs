//! Memory that stands for that of a device.

use std::marker::PhantomData;
use std::ptr::NonNull;

use bytemuck::Pod;
use realm_cuda::Memory;

const PAGE: usize = 4096;

/// An array that ends where memory begins that cannot be touched: a kernel that reads or writes beyond it ends the
/// test at once. It may end up to 15 bytes later than the array, for it begins at a multiple of 16.
#[derive(Debug)]
pub struct Buffer<T> {
    mapping: NonNull<u8>,
    mapped: usize,
    at: usize,
    len: usize,
    holds: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// A copy of `values`.
    pub fn of(values: &[T]) -> Buffer<T> {
        let mut buffer = Buffer::new(values.len());
        buffer.values_mut().copy_from_slice(values);
        buffer
    }

    /// One of `len` values that nobody has written: all bits are set, which as a number is NaN.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn new(len: usize) -> Buffer<T> {
        let bytes = (len * size_of::<T>()).next_multiple_of(16);
        let mapped = bytes.next_multiple_of(PAGE) + PAGE;
        // SAFETY: a mapping of its own, of which the last page is made to stop accesses.
        let mapping = unsafe {
            let address = libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert!(address != libc::MAP_FAILED, "no memory for {mapped} bytes");
            let address = address.cast::<u8>();
            let guard = address.add(mapped - PAGE).cast();
            assert_eq!(libc::mprotect(guard, PAGE, libc::PROT_NONE), 0);
            std::ptr::write_bytes(address, 0xff, mapped - PAGE);
            address
        };
        Buffer {
            mapping: NonNull::new(mapping).expect("an address"),
            mapped,
            at: mapped - PAGE - bytes,
            len,
            holds: PhantomData,
        }
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        // SAFETY: within the mapping, aligned to 16 bytes, and written when it was made.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().add(self.at).cast(), self.len) }
    }

    /// The values, to be changed.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(self.mapping.as_ptr().add(self.at).cast(), self.len)
        }
    }

    /// What kernels are given. It is theirs while they run, and no longer valid once this is dropped.
    pub fn memory(&self) -> Memory {
        let address = self.mapping.as_ptr() as u64 + self.at as u64;
        // SAFETY: kernels run on the CPU, within the call that launches them. That a test keeps the buffer until
        // then is up to it.
        unsafe { Memory::new(address, self.len * size_of::<T>()) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this buffer's own.
        unsafe {
            libc::munmap(self.mapping.as_ptr().cast(), self.mapped);
        }
    }
}

// SAFETY: owns its memory, like a `Vec`.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}
