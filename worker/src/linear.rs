//! Weight matrices with their biases.

use crate::kernels::{Buffer, Packable, Packed, Threads};

/// A weight matrix `[outputs, inputs]` with an optional bias. Activations are `f32` whatever its elements are;
/// products of `bf16` on matrix units, or by dot products, round them first.
pub struct Linear<T> {
    matrix: Packed<T>,
    bias: Option<Vec<f32>>,
}

/// Cores that the system lets us use.
pub fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.clamp(1, 1024) as u32
}

impl<T: Packable> Linear<T> {
    /// Takes a matrix in. `read(row, column, into)` fills `into` with the values of `row` from
    /// `column` on, and is called on any thread.
    pub fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        read: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Self {
        Linear {
            matrix: Packed::new(threads, outputs, inputs, read),
            bias,
        }
    }

    /// `out[r] = weight * x[r] + bias` for the first `rows` rows.
    pub fn multiply(&self, threads: &Threads, rows: usize, x: &Buffer, out: &mut Buffer) {
        self.matrix.multiply(
            threads,
            x.rows(rows),
            self.bias.as_deref(),
            out.rows_mut(rows),
        );
    }

    /// The same where the first half of the outputs are gates of the second half; `activated` is what comes of both.
    pub fn multiply_gated(
        &self,
        threads: &Threads,
        rows: usize,
        x: &Buffer,
        out: &mut Buffer,
        activated: &mut Buffer,
    ) {
        self.matrix.multiply_gated(
            threads,
            x.rows(rows),
            self.bias.as_deref(),
            out.rows_mut(rows),
            activated.rows_mut(rows),
        );
    }

    /// Copies rows of the matrix, one after the other.
    pub fn gather(&self, threads: &Threads, rows: &[u32], into: &mut [f32]) {
        self.matrix.gather(threads, rows, into);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.matrix.bytes() + self.bias.as_deref().map_or(0, size_of_val)
    }
}
