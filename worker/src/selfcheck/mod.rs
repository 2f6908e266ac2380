//! `realm-worker selfcheck`: whether a device computes what it should, and how quickly.
//!
//! Every kernel is held against a reference in double precision, whole models against the CPU; then a model of the
//! shape of Llama 3.1 8B is measured against what the device can read and multiply, and, if the gateway's program is there,
//! through HTTP. Nothing else is needed: models are made of random numbers.

mod bench;
mod fill;
mod http;
mod kernels;
mod models;
pub(crate) mod random;
mod report;

use std::time::{Duration, Instant};

use realm_cuda::check::Scale;
use realm_cuda::compile::FP8;
use realm_cuda::{Device, DeviceError};

pub use http::{Gateway, Streams};
pub use report::{Bench, Check, Measured, Report, Target};

/// What all parts take together, unless checks alone take longer: measuring stops then.
pub const WITHIN: Duration = Duration::from_secs(7 * 60 + 30);

/// Checks and measures a device that is called `name`. Each part opens it anew, so that it has all of its memory. The way
/// through a `gateway` is left out if there is none.
///
/// # Errors
/// If it cannot be opened.
pub fn run<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    name: &str,
    gateway: Option<&Gateway>,
    scale: Scale,
    within: Duration,
) -> Result<Report, DeviceError> {
    let start = Instant::now();
    let device = open()?;
    let fp8 = device.capability() >= FP8;
    let mut checks = kernels::check(&device, scale)?;
    drop(device);
    checks.extend(models::check(open, name, scale, fp8));
    let bench = bench::measure(open, gateway, scale, start + within);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Report::new(name, checks, bench, seconds))
}

/// Says on standard error what is going on.
fn progress(what: &str) {
    eprintln!("selfcheck: {what}");
}
