//! Every kernel beside its reference.

use std::time::Instant;

use realm_cuda::check::{Scale, Scratch, cases};
use realm_cuda::{Device, DeviceError};

use super::progress;
use super::report::Check;

/// Runs all cases.
///
/// # Errors
/// If the device has no memory to run them in.
pub(super) fn check<D: Device>(device: &D, scale: Scale) -> Result<Vec<Check>, DeviceError> {
    let scratch = Scratch::within(device, scale.scratch_bytes())?;
    let cases = cases::<D>();
    let count = cases.len();
    let mut checks = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        progress(&format!("kernels, {} of {count}: {}", i + 1, case.name));
        let start = Instant::now();
        let outcome = case.run(&scratch, scale);
        let seconds = start.elapsed().as_secs_f64();
        checks.push(Check::new(
            "kernels",
            case.name,
            case.compares,
            outcome,
            seconds,
        ));
    }
    Ok(checks)
}
