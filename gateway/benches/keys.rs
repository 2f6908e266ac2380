//! What it costs a request to show its key, among 10,000 others.
//!
//! ```sh
//! cargo bench -p realm-gateway --bench keys
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use realm_gateway::config::TenantTable;
use realm_gateway::tenants::{Access, KeyFile, Keys, Ledger};

const KEYS: usize = 10_000;
const TENANTS: usize = 100;
const ROUNDS: usize = 20;

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("keys.json");
    let keys = KeyFile::edit(&path, |file| {
        let made = (0..KEYS).map(|i| file.add(&format!("tenant {}", i % TENANTS), "bench", None));
        made.collect::<Result<Vec<_>, _>>()
            .context("random numbers")
    })?;
    let access = Access::new(
        Some(Keys::open(&path)?),
        TenantTable::default(),
        Arc::new(Ledger::new(None)?),
    );
    let shown = keys.iter().map(|key| {
        let value = format!("Bearer {}", key.reveal()).parse()?;
        anyhow::Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
    });
    let shown: Vec<_> = shown.collect::<Result<_, _>>()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for headers in &shown {
            black_box(access.caller(black_box(headers)))?;
        }
        times.push(start.elapsed().as_secs_f64() / KEYS as f64 * 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!("{:.2} µs a request, of {KEYS} keys", times[ROUNDS / 2]);
    Ok(())
}
