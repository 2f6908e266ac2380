//! The process that computes tokens: one model on one device.
//!
//! A gateway has started it, or connects to it where it listens. [`serve`] takes messages from the
//! ring and hands them to an [`engine::Engine`], which checks a step ([`batch`]), runs it through the
//! model ([`decoder`], built from [`config`] and [`weights`], with its KV cache in an [`arena`]) and
//! draws tokens ([`sampler`]), as the code of [`tenant`]s says. What libtorch does not offer is in
//! [`kernels`].

pub mod arena;
pub mod batch;
pub mod compilers;
pub mod config;
#[cfg(debug_assertions)]
mod crash;
pub mod decoder;
pub mod embedded;
pub mod engine;
pub mod kernels;
pub mod linear;
mod listen;
mod manager;
pub mod memory;
pub mod sampler;
pub mod sandbox;
pub mod serve;
mod slot;
pub mod tenant;
pub mod weights;
