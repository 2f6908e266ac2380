//! Weight matrices: how each element type holds and multiplies them.

use half::bf16;

use crate::kernels::{Buffer, Element, Packable, Packed, Threads};

/// A weight matrix `[outputs, inputs]` with an optional bias. Activations are `f32` whatever its
/// elements are, but for products on matrix units, which round them.
pub trait Linear: Sized + Send + 'static {
    /// What weights, keys and values are held in.
    type Element: Element;

    /// The threads that suit it: so many, or as many as suit this machine.
    fn threads(count: Option<u32>) -> Threads;

    /// Takes a matrix in. `read(row, column, into)` fills `into` with the values of `row` from
    /// `column` on, and is called on any thread.
    fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        read: impl Fn(usize, usize, &mut [Self::Element]) + Sync,
    ) -> Self;

    /// `out[r] = weight * x[r] + bias` for the first `rows` rows.
    fn multiply(&self, threads: &Threads, rows: usize, x: &Buffer<f32>, out: &mut Buffer<f32>);

    /// Copies rows of the matrix, one after the other.
    fn gather(&self, threads: &Threads, rows: &[u32], into: &mut [f32]);

    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// Cores that the system lets us use.
pub fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.clamp(1, 1024) as u32
}

/// Multiplied by our own kernel, reproducibly.
pub struct Exact<T> {
    matrix: Packed<T>,
    bias: Option<Vec<f32>>,
}

impl<T: Packable> Linear for Exact<T> {
    type Element = T;

    /// All cores: a thread that has to make way for the gateway holds nobody up for long.
    fn threads(count: Option<u32>) -> Threads {
        Threads::own(count.unwrap_or_else(cores))
    }

    fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        read: impl Fn(usize, usize, &mut [T]) + Sync,
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

    fn gather(&self, threads: &Threads, rows: &[u32], into: &mut [f32]) {
        self.matrix.gather(threads, rows, into);
    }

    fn bytes(&self) -> usize {
        self.matrix.bytes() + self.bias.as_deref().map_or(0, size_of_val)
    }
}

/// Multiplied by libtorch, which has oneDNN use the CPU's matrix units. What it computes for a
/// row depends in the last bits on the rows beside it.
pub struct Torch {
    weight: Buffer<bf16>,
    outputs: usize,
    bias: Option<tch::Tensor>,
}

impl Linear for Torch {
    type Element = bf16;

    /// One core is left to the gateway: all threads wait for one that has to make way.
    fn threads(count: Option<u32>) -> Threads {
        Threads::of_libtorch(count.unwrap_or_else(|| cores() - 1))
    }

    fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        read: impl Fn(usize, usize, &mut [bf16]) + Sync,
    ) -> Self {
        let mut weight = Buffer::new(outputs, inputs);
        let mut rows: Vec<_> = weight
            .rows_mut(outputs)
            .chunks_mut(inputs)
            .enumerate()
            .collect();
        threads.for_each(&mut rows, |(row, values)| read(*row, 0, values));
        Torch {
            weight,
            outputs,
            bias: bias.map(|bias| tch::Tensor::from_slice(&bias)),
        }
    }

    fn multiply(&self, _: &Threads, rows: usize, x: &Buffer<f32>, out: &mut Buffer<f32>) {
        let x = x.view(rows).to_kind(<bf16 as Element>::KIND);
        let product = x.linear(&self.weight.view(self.outputs), None::<tch::Tensor>);
        let mut out = out.view(rows);
        out.copy_(&product);
        if let Some(bias) = &self.bias {
            out += bias;
        }
    }

    fn gather(&self, _: &Threads, rows: &[u32], into: &mut [f32]) {
        let width = self.weight.width();
        let weight = self.weight.rows(self.outputs);
        for (row, into) in rows.iter().zip(into.chunks_exact_mut(width)) {
            let values = &weight[*row as usize * width..][..width];
            for (to, value) in into.iter_mut().zip(values) {
                *to = value.to_f32();
            }
        }
    }

    fn bytes(&self) -> usize {
        self.outputs * self.weight.width() * size_of::<bf16>()
            + self
                .bias
                .as_ref()
                .map_or(0, |_| self.outputs * size_of::<f32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The products of a matrix that is not the same forwards and backwards.
    fn products<L: Linear<Element = bf16>>() -> Vec<f32> {
        let (rows, outputs, inputs) = (5, 70, 96);
        let threads = Threads::own(1);
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let mut x = Buffer::new(rows, inputs);
        for (i, x) in x.rows_mut(rows).iter_mut().enumerate() {
            // Exact in either type.
            *x = bf16::from_f32(value(i)).to_f32();
        }
        let bias = (0..outputs).map(value).collect();
        let matrix = L::new(
            &threads,
            outputs,
            inputs,
            Some(bias),
            |row, column, into| {
                for (i, into) in into.iter_mut().enumerate() {
                    *into = bf16::from_f32(value(row * inputs + column + i));
                }
            },
        );
        let mut out = Buffer::new(rows, outputs);
        tch::no_grad(|| matrix.multiply(&threads, rows, &x, &mut out));
        let mut some = vec![0.0; 2 * inputs];
        matrix.gather(&threads, &[outputs as u32 - 1, 3], &mut some);
        [out.rows(rows), &some].concat()
    }

    #[test]
    fn either_way_gives_the_same_within_rounding() {
        let (torch, exact) = (products::<Torch>(), products::<Exact<bf16>>());
        for (a, b) in torch.iter().zip(&exact) {
            assert!((a - b).abs() <= 0.01 * b.abs().max(1.0), "{a} and {b}");
        }
    }
}
