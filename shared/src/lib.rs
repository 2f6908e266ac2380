//! What a gateway and its workers must agree on: message kinds, the tensors of a step, the
//! description of a model, the control messages that travel beside the rings, what programs say, what
//! grammars are, what tokens spell, the contract with the code of tenants (`wit/`), how devices and
//! CPUs are named, and how errors are told.
//!
//! Nothing here does I/O. A change to a type in [`wire`] is a change of protocol: raise
//! [`ABI_VERSION`] with it, so that a gateway and a worker of different builds refuse each other
//! in words instead of misreading tensors.

pub mod causes;
pub mod control;
pub mod cpus;
pub mod detokenize;
pub mod device;
pub mod grammar;
pub mod run;
mod spelling;
pub mod tokenizer;
pub mod wire;

/// Version of everything in [`wire`], [`control`], [`run`] and [`grammar`].
pub const ABI_VERSION: u32 = 9;
