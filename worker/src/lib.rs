//! The process that computes tokens.
