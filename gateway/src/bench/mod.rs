//! Load on an OpenAI-compatible server, and how it bears it.
//!
//! The same requests go to whatever serves at the address: completions of prompts given as token
//! ids, streamed, greedy, of a fixed length. Each prompt is another one, so that no server answers
//! from a cache of prefixes what it should compute.

mod client;
mod load;
mod summary;

pub use client::Client;
pub(crate) use client::place;
pub use load::{Arrivals, Work, run};
pub use summary::{Percentiles, Summary, header};
