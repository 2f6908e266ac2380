//! Weight matrices: how each element type holds and multiplies them.

use half::{bf16, f16};

use crate::kernels::{Buffer, Element, Packed, Threads};

/// A weight matrix `[outputs, inputs]` with an optional bias.
pub trait Linear<T: Element>: Sized + Send {
    /// Takes a matrix in. `read(row, column, into)` fills `into` with the values of `row` from
    /// `column` on, and is called on any thread.
    fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<T>>,
        read: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Self;

    /// `out[r] = weight * x[r] + bias` for the first `rows` rows.
    fn multiply(&self, threads: &Threads, rows: usize, x: &Buffer<T>, out: &mut Buffer<T>);

    /// Copies a row of the matrix.
    fn row(&self, row: usize, into: &mut [T]);

    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// An element type that a decoder can run in.
pub trait Compute: Element {
    /// How it holds matrices.
    type Linear: Linear<Self>;

    /// The threads that suit them.
    fn threads(count: u32) -> Threads;
}

impl Compute for f32 {
    type Linear = Exact;

    fn threads(count: u32) -> Threads {
        Threads::own(count)
    }
}

impl Compute for bf16 {
    type Linear = Torch<bf16>;

    fn threads(count: u32) -> Threads {
        Threads::of_libtorch(count)
    }
}

impl Compute for f16 {
    type Linear = Torch<f16>;

    fn threads(count: u32) -> Threads {
        Threads::of_libtorch(count)
    }
}

/// Multiplied by our own kernel, reproducibly.
pub struct Exact {
    matrix: Packed,
    bias: Option<Vec<f32>>,
}

impl Linear<f32> for Exact {
    fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        read: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Self {
        Exact {
            matrix: Packed::new(threads, outputs, inputs, read),
            bias,
        }
    }

    fn multiply(&self, threads: &Threads, rows: usize, x: &Buffer<f32>, out: &mut Buffer<f32>) {
        self.matrix.multiply(
            threads,
            x.rows(rows),
            self.bias.as_deref(),
            out.rows_mut(rows),
        );
    }

    fn row(&self, row: usize, into: &mut [f32]) {
        self.matrix.row(row, into);
    }

    fn bytes(&self) -> usize {
        self.matrix.bytes() + self.bias.as_deref().map_or(0, size_of_val)
    }
}

/// Multiplied by libtorch, which has oneDNN use the CPU's matrix units.
pub struct Torch<T> {
    weight: Buffer<T>,
    outputs: usize,
    bias: Option<Buffer<T>>,
}

impl<T: Element> Linear<T> for Torch<T> {
    fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<T>>,
        read: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Self {
        let mut weight = Buffer::new(outputs, inputs);
        let mut rows: Vec<_> = weight
            .rows_mut(outputs)
            .chunks_mut(inputs)
            .enumerate()
            .collect();
        threads.for_each(&mut rows, |(row, values)| read(*row, 0, values));
        let bias = bias.map(|values| {
            let mut bias = Buffer::new(1, outputs);
            bias.rows_mut(1).copy_from_slice(&values);
            bias
        });
        Torch {
            weight,
            outputs,
            bias,
        }
    }

    fn multiply(&self, _: &Threads, rows: usize, x: &Buffer<T>, out: &mut Buffer<T>) {
        let bias = self.bias.as_ref().map(|bias| bias.view(1).squeeze_dim(0));
        let weight = self.weight.view(self.outputs);
        let _ = x.view(rows).linear_out(&out.view(rows), &weight, bias);
    }

    fn row(&self, row: usize, into: &mut [T]) {
        let width = self.weight.width();
        into.copy_from_slice(&self.weight.rows(self.outputs)[row * width..][..width]);
    }

    fn bytes(&self) -> usize {
        let bias = if self.bias.is_some() { self.outputs } else { 0 };
        (self.outputs * self.weight.width() + bias) * size_of::<T>()
    }
}
