//! Weights in the order that oneDNN's products want them in.
//!
//! Given plain weights, oneDNN reads them slowly where rows are few and reorders them in every
//! product where they are many. It alone knows the best order, and does not tell; but all those
//! it uses for `bf16` are panels of so many outputs, in which the weights of an output for two
//! inputs lie side by side. Which of them it is gets tried when a matrix is loaded, on all of its
//! values, so that rows can be read back and no plain copy is kept.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use half::bf16;
use tch::Tensor;

use super::buffer::Buffer;
use super::element::Element;
use super::parallel::Threads;

/// Rows of a product that oneDNN is told to expect. The order for 16 to 64 also suits 1 and 512.
const ROWS: i64 = 32;
/// Outputs that its panels have.
const PANELS: [usize; 4] = [64, 32, 48, 16];

/// An `at::Tensor`.
type Handle = c_void;

// `onednn.cpp`. `tch` has `at::Tensor`s behind its pointers, too.
unsafe extern "C" {
    fn realm_pack(
        weight: *const Handle,
        rows: i64,
        packed: *mut *mut Handle,
        data: *mut *const bf16,
        bytes: *mut i64,
    ) -> *mut c_char;
    fn realm_linear(x: *const Handle, weight: *const Handle, out: *mut *mut Handle) -> *mut c_char;
    fn free(text: *mut c_char);
}

/// A weight matrix `[outputs, inputs]` in oneDNN's order.
pub struct Reordered {
    tensor: Tensor,
    outputs: usize,
    inputs: usize,
    order: Order,
    /// The values, which `tensor` holds.
    values: *const bf16,
    len: usize,
}

// SAFETY: the values are only read, and `tensor`, which can be sent, keeps them.
unsafe impl Send for Reordered {}

/// How the values lie: panel after panel, with padding at both ends.
#[derive(Clone, Copy)]
struct Order {
    /// Outputs of a panel.
    panel: usize,
    /// Inputs with their padding.
    depth: usize,
}

impl Order {
    /// Where a weight is.
    fn place(self, output: usize, input: usize) -> usize {
        let Order { panel, depth } = self;
        let pair = output / panel * depth / 2 + input / 2;
        (pair * panel + output % panel) * 2 + input % 2
    }
}

impl Reordered {
    /// Reorders all of `weight`; none where oneDNN cannot, or in an order that is not known.
    pub fn new(threads: &Threads, weight: &Buffer<bf16>) -> Option<Reordered> {
        let (outputs, inputs) = (weight.height(), weight.width());
        let view = weight.view(outputs);
        let (mut tensor, mut values, mut bytes) = (null_mut(), std::ptr::null(), 0);
        // SAFETY: the tensors outlive the call, which writes to the other three.
        let error = unsafe {
            let view = view.as_ptr().cast();
            realm_pack(view, ROWS, &mut tensor, &mut values, &mut bytes)
        };
        message(error).ok()?;
        // SAFETY: without an error it is a new `at::Tensor`, and ours, with values in it.
        let tensor = unsafe { Tensor::from_ptr(tensor.cast()) };
        let mut reordered = Reordered {
            tensor,
            outputs,
            inputs,
            order: Order { panel: 1, depth: 0 },
            values,
            len: usize::try_from(bytes).ok()? / size_of::<bf16>(),
        };
        let all = reordered.values();
        let order = PANELS.into_iter().find_map(|panel| {
            let order = Order {
                panel,
                depth: all.len() / outputs.next_multiple_of(panel),
            };
            is_order(threads, order, weight, all).then_some(order)
        });
        reordered.order = order?;
        // So that a product that cannot be done is found here.
        let probe = Tensor::zeros([1, inputs as i64], (bf16::KIND, tch::Device::Cpu));
        drop(reordered.try_linear(&probe).ok()?);
        Some(reordered)
    }

    fn values(&self) -> &[bf16] {
        // SAFETY: oneDNN's buffer of so many bytes, which `tensor` keeps and nobody writes to.
        unsafe { std::slice::from_raw_parts(self.values, self.len) }
    }

    /// `x` (`bf16`) times the transposed matrix.
    ///
    /// # Panics
    /// If `x` does not fit, as operations of `tch` do.
    pub fn linear(&self, x: &Tensor) -> Tensor {
        match self.try_linear(x) {
            Ok(product) => product,
            Err(message) => panic!("a product on oneDNN: {message}"),
        }
    }

    fn try_linear(&self, x: &Tensor) -> Result<Tensor, String> {
        let mut out = null_mut();
        // SAFETY: the tensors outlive the call, which writes to `out`.
        let error = unsafe {
            let (x, weight) = (x.as_ptr().cast(), self.tensor.as_ptr().cast());
            realm_linear(x, weight, &mut out)
        };
        message(error)?;
        // SAFETY: without an error it is a new `at::Tensor`, and ours.
        Ok(unsafe { Tensor::from_ptr(out.cast()) })
    }

    /// Copies rows of the matrix, one after the other.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn gather(&self, rows: &[u32], into: &mut [f32]) {
        let values = self.values();
        for (row, into) in rows.iter().zip(into.chunks_exact_mut(self.inputs)) {
            assert!((*row as usize) < self.outputs);
            for (input, to) in into.iter_mut().enumerate() {
                *to = values[self.order.place(*row as usize, input)].to_f32();
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values())
    }
}

/// Whether `values` are those of `weight` in this order.
fn is_order(threads: &Threads, order: Order, weight: &Buffer<bf16>, values: &[bf16]) -> bool {
    let inputs = weight.width();
    if !order.depth.is_multiple_of(2) || order.depth < inputs {
        return false;
    }
    let rows = weight.rows(weight.height()).chunks_exact(inputs);
    let mut rows: Vec<_> = rows.map(|row| (row, true)).enumerate().collect();
    threads.for_each(&mut rows, |(output, (row, same))| {
        *same = row.iter().enumerate().all(|(input, value)| {
            let there = values.get(order.place(*output, input));
            there.is_some_and(|there| there.to_bits() == value.to_bits())
        });
    });
    rows.iter().all(|(_, (_, same))| *same)
}

/// What a function of `onednn.cpp` returned.
fn message(text: *mut c_char) -> Result<(), String> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: a string of `strdup`, which ends with a zero and is not used after it is freed.
    Err(unsafe {
        let message = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text);
        message
    })
}
