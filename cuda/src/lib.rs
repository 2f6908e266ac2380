//! The worker's kernels for NVIDIA GPUs.
//!
//! Kernels are CUDA C++ in `kernels/`; [`catalogue`] lists their variants. NVRTC compiles them at run time
//! ([`compile`]), without headers or a toolkit, and the driver launches them ([`driver`]). Both are loaded when
//! they are needed: a build needs neither, and nor does a machine without a GPU. Tests launch the same sources in
//! `realm-cuda-emulator`, which runs them on the CPU.
//!
//! The worker calls what lies on top: a struct per operation, such as [`norm::AddRmsNorm`], which checks its
//! shapes against the memory that it is given and launches itself on any [`Launcher`].

// Launches kernels, and loads what compiles and runs them.
#![allow(unsafe_code)]

pub mod activation;
pub mod attention;
pub mod catalogue;
pub mod check;
pub mod compile;
mod device;
pub mod driver;
mod launch;
pub mod norm;
pub mod quantize;
pub mod rotary;
pub mod rows;
pub mod sample;

pub use device::{Device, DeviceError, Product, Scales};
pub use launch::{
    Element, HEAD_DIMS, KV_BLOCK, Kernel, Launch, LaunchError, Launcher, Memory, Unit,
};
