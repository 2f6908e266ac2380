//! The process that computes tokens: one model on one device.
//!
//! A gateway has started it, or connects to it where it listens. [`serve`] takes messages from the
//! ring and hands them to an [`engine::Engine`], which checks a step ([`batch`]), runs it through the
//! model and draws tokens ([`sampler`]), as the code of [`tenant`]s says. The model is built from
//! [`config`], [`weights`] and [`parameters`]: on the CPU as a [`decoder`], with its KV cache in an
//! [`arena`], on a GPU as that of [`mod@cuda`]. What libtorch does not offer on a CPU is in [`kernels`].
//! [`selfcheck`] holds a GPU against all of that.

pub mod arena;
pub mod batch;
pub mod compilers;
pub mod config;
#[cfg(debug_assertions)]
mod crash;
pub mod cuda;
pub mod decoder;
pub mod embedded;
pub mod engine;
pub mod kernels;
mod listen;
mod manager;
pub mod memory;
pub mod parameters;
pub mod sampler;
pub mod sandbox;
pub mod selfcheck;
pub mod serve;
mod slot;
pub mod tenant;
pub mod weights;
