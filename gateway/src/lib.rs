//! The gateway of Realm: an OpenAI-compatible server that owns every sequence and lets worker
//! processes compute.
//!
//! Data flows one way: [`http`] reads a request, [`tenants`] knows whose it is, [`api`] makes sense of it, [`text`] turns it into
//! tokens, [`batching`] plans steps, [`workers`] hands them to a worker over shared memory and
//! takes results back; from there tokens flow out through the same modules in reverse.

pub mod api;
pub mod batching;
pub mod bench;
pub mod cli;
pub mod config;
pub mod digest;
mod embedded;
pub mod http;
pub mod metrics;
pub mod programs;
mod readable;
mod stamp;
pub mod tenants;
pub mod text;
pub mod workers;
