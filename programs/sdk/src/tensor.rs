//! Tensors on the device that computes the model, and what can be done with them there.
//!
//! What the host refuses traps: shapes that do not fit, an index outside, more than there may be. How much
//! that is, and what each function does, is said in the contract, `shared/wit/realm.wit`.
//!
//! ```no_run
//! use realm_program::tensor::Tensor;
//!
//! /// How far two distributions are apart: the sum of p log(p / q).
//! fn divergence(p: &Tensor, q: &Tensor) -> f32 {
//!     let (log_p, log_q) = (p.log_softmax(), q.log_softmax());
//!     (&log_p.exp() * &(&log_p - &log_q)).sum().read()[0]
//! }
//! ```

use std::ops::{Add, Div, Mul, Sub};

use crate::Token;
use crate::bindings::answering::realm::program::tensors::{self, Operation};

/// Numbers on the device: rows of `f32` in one to four dimensions. They never change.
#[derive(Debug)]
pub struct Tensor(pub(crate) tensors::Tensor);

impl Tensor {
    /// Takes numbers in, the last dimension's one after the other.
    #[must_use]
    pub fn new(shape: &[u32], values: &[f32]) -> Self {
        Tensor(tensors::Tensor::new(shape, values))
    }

    /// The extent of each dimension.
    #[must_use]
    pub fn shape(&self) -> Vec<u32> {
        self.0.shape()
    }

    /// All numbers, at most 65,536.
    #[must_use]
    pub fn read(&self) -> Vec<f32> {
        self.0.read()
    }

    /// The largest numbers, at most 1,024, with where they stand, the largest first.
    #[must_use]
    pub fn top(&self, count: u32) -> Vec<(u32, f32)> {
        self.0.top(count)
    }

    /// Where its largest number stands: of logits, the likeliest token.
    #[must_use]
    pub fn arg_max(&self) -> Token {
        self.top(1).first().map_or(0, |(place, _)| *place)
    }

    /// The larger of two numbers.
    #[must_use]
    pub fn maximum(&self, other: &Tensor) -> Self {
        self.with(other, &Operation::Maximum)
    }

    /// The smaller of two numbers.
    #[must_use]
    pub fn minimum(&self, other: &Tensor) -> Self {
        self.with(other, &Operation::Minimum)
    }

    /// Keeps numbers where `condition` is 0 or more; elsewhere there is negative infinity.
    #[must_use]
    pub fn where_not_negative(&self, condition: &Tensor) -> Self {
        condition.with(self, &Operation::Where)
    }

    /// The product of two matrices.
    #[must_use]
    pub fn matmul(&self, other: &Tensor) -> Self {
        self.with(other, &Operation::Matmul)
    }

    /// Exponentials.
    #[must_use]
    pub fn exp(&self) -> Self {
        self.apply(&Operation::Exp)
    }

    /// Natural logarithms.
    #[must_use]
    pub fn log(&self) -> Self {
        self.apply(&Operation::Log)
    }

    /// Exponentials, divided by their sum along the last dimension.
    #[must_use]
    pub fn softmax(&self) -> Self {
        self.apply(&Operation::Softmax)
    }

    /// Logarithms of [`softmax`](Self::softmax).
    #[must_use]
    pub fn log_softmax(&self) -> Self {
        self.apply(&Operation::LogSoftmax)
    }

    /// The sum along the last dimension, which has extent 1 then.
    #[must_use]
    pub fn sum(&self) -> Self {
        self.apply(&Operation::Sum)
    }

    /// The mean along the last dimension, which has extent 1 then.
    #[must_use]
    pub fn mean(&self) -> Self {
        self.apply(&Operation::Mean)
    }

    /// The largest along the last dimension, which has extent 1 then.
    #[must_use]
    pub fn max(&self) -> Self {
        self.apply(&Operation::Max)
    }

    /// The root of the sum of squares along the last dimension, which has extent 1 then.
    #[must_use]
    pub fn norm(&self) -> Self {
        self.apply(&Operation::Norm)
    }

    /// Numbers at these places of the last dimension.
    #[must_use]
    pub fn gather(&self, places: impl Into<Vec<u32>>) -> Self {
        self.apply(&Operation::Gather(places.into()))
    }

    /// Negative infinity along the last dimension wherever bit `i % 32` of word `i / 32` is not set.
    #[must_use]
    pub fn mask(&self, words: impl Into<Vec<u32>>) -> Self {
        self.apply(&Operation::Mask(words.into()))
    }

    /// The same numbers in another shape.
    #[must_use]
    pub fn reshape(&self, shape: impl Into<Vec<u32>>) -> Self {
        self.apply(&Operation::Reshape(shape.into()))
    }

    /// A matrix with its rows as columns.
    #[must_use]
    pub fn transpose(&self) -> Self {
        self.apply(&Operation::Transpose)
    }

    /// So many from a place of a dimension on.
    #[must_use]
    pub fn slice(&self, dimension: u32, place: u32, count: u32) -> Self {
        self.apply(&Operation::Slice((dimension, place, count)))
    }

    /// One after the other in a dimension: at least one, at most 64.
    #[must_use]
    pub fn concat(tensors: &[&Tensor], dimension: u32) -> Self {
        let tensors: Vec<_> = tensors.iter().map(|tensor| &tensor.0).collect();
        Tensor(tensors::apply(&Operation::Concat(dimension), &tensors))
    }

    fn apply(&self, operation: &Operation) -> Self {
        Tensor(tensors::apply(operation, &[&self.0]))
    }

    fn with(&self, other: &Tensor, operation: &Operation) -> Self {
        Tensor(tensors::apply(operation, &[&self.0, &other.0]))
    }
}

macro_rules! of_two {
    ($($trait:ident $function:ident $operation:ident),*) => {$(
        /// Number by number; dimensions of extent 1, and those that are missing at the front, are repeated.
        impl $trait for &Tensor {
            type Output = Tensor;

            fn $function(self, other: &Tensor) -> Tensor {
                self.with(other, &Operation::$operation)
            }
        }
    )*};
}

of_two!(Add add Add, Sub sub Subtract, Mul mul Multiply, Div div Divide);

impl Mul<f32> for &Tensor {
    type Output = Tensor;

    fn mul(self, by: f32) -> Tensor {
        self.apply(&Operation::Scale(by))
    }
}

impl Add<f32> for &Tensor {
    type Output = Tensor;

    fn add(self, by: f32) -> Tensor {
        self.apply(&Operation::Shift(by))
    }
}
