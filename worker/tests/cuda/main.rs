//! The decoder of a device, on the emulator of one, against the one of the CPU.

mod asked;
mod draws;
mod engine;
mod failures;
mod model;
mod pass;
mod quantization;
