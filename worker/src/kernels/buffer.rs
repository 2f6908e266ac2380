//! Activations: memory that both our kernels and libtorch's operations see.

use std::marker::PhantomData;

use super::element::Element;

/// Room for `[rows, width]` values, allocated once and used from the front by every step.
pub struct Buffer<T> {
    tensor: tch::Tensor,
    rows: usize,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// Zeros.
    pub fn new(rows: usize, width: usize) -> Buffer<T> {
        let options = (T::KIND, tch::Device::Cpu);
        let tensor = tch::Tensor::zeros([rows as i64, width as i64], options);
        Buffer {
            tensor,
            rows,
            width,
            element: PhantomData,
        }
    }

    /// Rows there is room for.
    pub fn height(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The first `rows` rows as a tensor `[rows, width]` that shares this memory.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn view(&self, rows: usize) -> tch::Tensor {
        self.tensor.narrow(0, 0, rows as i64)
    }

    /// The first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn rows(&self, rows: usize) -> &[T] {
        assert!(rows <= self.rows);
        // SAFETY: the tensor is a contiguous CPU tensor of rows * width elements of T, made in
        // `new` and never resized; views of it are only passed to operations that end before
        // this borrow is taken.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), rows * self.width) }
    }

    /// The first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn rows_mut(&mut self, rows: usize) -> &mut [T] {
        assert!(rows <= self.rows);
        // SAFETY: as in `rows`; `&mut self` makes it the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast(), rows * self.width) }
    }
}
