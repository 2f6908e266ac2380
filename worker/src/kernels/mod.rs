//! The computations that libtorch lacks, or cannot do reproducibly, on a CPU. Every function that
//! this module exports is safe.
//!
//! All of them keep one rule: what is computed for a row (a token) is the same sequence of
//! floating-point operations whatever other rows share the call, however a prompt was cut into
//! chunks, and on however many threads. Sums run in a fixed order that depends on the row alone.
//! They accumulate in `f32` whatever the element type.

#![allow(unsafe_code)]

mod activation;
mod attention;
mod buffer;
mod cpu;
mod crew;
mod element;
mod gemm;
mod mapping;
mod norm;
mod operand;
mod parallel;
mod reduce;
mod rotary;
mod simd;
mod tiles;

pub use attention::{Attended, Attention, Span, attend};
pub use buffer::Buffer;
pub use element::Element;
pub use gemm::{Order, Packable, Packed};
pub use mapping::{Mapping, Zeroed};
pub use norm::rms_norm;
pub use operand::{Operand, Target};
pub use parallel::{Threads, cores};
pub use reduce::{log_sum_exp, max, sum_exp};
pub use rotary::{Place, Rotary, rotate_and_store};
pub use simd::capability;
