//! The listeners: the API behind its tower stack, and the admin endpoints beside it.

mod accept;
mod access;
mod admin;
mod api;
mod listen;

pub use listen::{BindError, Bound, serve};
