//! Weight matrices: how each element type holds and multiplies them.

use half::bf16;

use crate::kernels::{Buffer, Element, Packable, Packed, Reordered, Threads};

/// A weight matrix `[outputs, inputs]` with an optional bias. Activations are `f32` whatever its
/// elements are; products of `bf16` on matrix units, or by dot products, round them first.
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
    weight: Weight,
    bias: Option<Vec<f32>>,
}

/// The matrix is held once: as oneDNN wants it, or plainly where that cannot be had.
enum Weight {
    Reordered(Reordered),
    Plain(Buffer<bf16>),
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
        let weight = match Reordered::new(threads, &weight) {
            Some(reordered) => Weight::Reordered(reordered),
            None => Weight::Plain(weight),
        };
        Torch { weight, bias }
    }

    fn multiply(&self, _: &Threads, rows: usize, x: &Buffer<f32>, out: &mut Buffer<f32>) {
        let x = x.view(rows).to_kind(<bf16 as Element>::KIND);
        let product = match &self.weight {
            Weight::Reordered(weight) => weight.linear(&x),
            Weight::Plain(weight) => x.linear(&weight.view(weight.height()), None::<tch::Tensor>),
        };
        out.view(rows).copy_(&product);
        if let Some(bias) = &self.bias {
            for out in out.rows_mut(rows).chunks_exact_mut(bias.len()) {
                for (out, bias) in out.iter_mut().zip(bias) {
                    *out += bias;
                }
            }
        }
    }

    fn gather(&self, _: &Threads, rows: &[u32], into: &mut [f32]) {
        match &self.weight {
            Weight::Reordered(weight) => weight.gather(rows, into),
            Weight::Plain(weight) => {
                let (width, weight) = (weight.width(), weight.rows(weight.height()));
                for (row, into) in rows.iter().zip(into.chunks_exact_mut(width)) {
                    let values = &weight[*row as usize * width..][..width];
                    for (to, value) in into.iter_mut().zip(values) {
                        *to = value.to_f32();
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Reordered(weight) => weight.bytes(),
            Weight::Plain(weight) => size_of_val(weight.rows(weight.height())),
        };
        weight + self.bias.as_deref().map_or(0, size_of_val)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The products of a matrix that is not the same forwards and backwards, and two of its rows.
    fn products<L: Linear<Element = bf16>>(
        rows: usize,
        outputs: usize,
        inputs: usize,
        biased: bool,
    ) -> (Vec<f32>, Vec<f32>) {
        let threads = Threads::own(1);
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let mut x = Buffer::new(rows, inputs);
        for (i, x) in x.rows_mut(rows).iter_mut().enumerate() {
            // Exact in either type.
            *x = bf16::from_f32(value(i)).to_f32();
        }
        let bias = biased.then(|| (0..outputs).map(value).collect());
        let matrix = L::new(&threads, outputs, inputs, bias, |row, column, into| {
            for (i, into) in into.iter_mut().enumerate() {
                *into = bf16::from_f32(value(row * inputs + column + i));
            }
        });
        let mut out = Buffer::new(rows, outputs);
        tch::no_grad(|| matrix.multiply(&threads, rows, &x, &mut out));
        let mut some = vec![0.0; 2 * inputs];
        matrix.gather(&threads, &[outputs as u32 - 1, 0], &mut some);
        (out.rows(rows).to_vec(), some)
    }

    #[test]
    fn either_way_gives_the_same_within_rounding() {
        for (outputs, inputs) in [(70, 96), (1, 3), (33, 50), (192, 576), (257, 31)] {
            for rows in [1, 2, 4, 5, 17, 64] {
                for biased in [false, true] {
                    let (torch, some) = products::<Torch>(rows, outputs, inputs, biased);
                    let (exact, same) = products::<Exact<bf16>>(rows, outputs, inputs, biased);
                    assert_eq!(some, same, "rows of [{outputs}, {inputs}]");
                    for (a, b) in torch.iter().zip(&exact) {
                        assert!(
                            (a - b).abs() <= 0.01 * b.abs().max(1.0),
                            "{a} and {b}: {rows} rows, [{outputs}, {inputs}]"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_unpacked_copy_is_dropped() {
        let threads = Threads::own(1);
        let matrix = Torch::new(&threads, 128, 64, None, |row, column, into| {
            for (i, into) in into.iter_mut().enumerate() {
                *into = bf16::from_f32((row + 3 * (column + i)) as f32);
            }
        });
        // Elsewhere oneDNN may lack the type.
        if is_x86_feature_detected!("avx512bf16") {
            assert!(matches!(matrix.weight, Weight::Reordered(_)));
        }
        assert_eq!(matrix.bytes(), 128 * 64 * size_of::<bf16>());
    }
}
