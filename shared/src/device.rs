//! Where a model is computed.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::Deserialize;

/// A device, written `cpu`, or `cuda:1` for one of the NVIDIA GPUs by the driver's number; `cuda` is the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// The processors of this machine.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda(usize),
}

impl Device {
    /// Numbers of GPUs are below it: what libtorch can count.
    pub const MOST: usize = 64;
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{s}` is no device: there are cpu, cuda and cuda:N, with N below {}",
                Self::MOST
            )
        };
        match s {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => return Ok(Device::Cuda(0)),
            _ => {}
        }
        let number = s.strip_prefix("cuda:").ok_or_else(expected)?;
        let number = number.parse().ok().filter(|n| *n < Self::MOST);
        // Only as it is written below.
        let device = number.map(Device::Cuda).ok_or_else(expected)?;
        match device.to_string() == s {
            true => Ok(device),
            false => Err(expected()),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device, written) in [
            ("cpu", Device::Cpu, "cpu"),
            ("cuda", Device::Cuda(0), "cuda:0"),
            ("cuda:0", Device::Cuda(0), "cuda:0"),
            ("cuda:63", Device::Cuda(63), "cuda:63"),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), written);
        }
        for bad in [
            "", "CPU", "gpu", "cuda:", "cuda:64", "cuda:-1", "cuda:+1", "cuda:01", "cuda:0,1",
            "cuda0",
        ] {
            let why = bad.parse::<Device>().expect_err(bad);
            assert!(why.contains("cuda:N"), "{why}");
        }
    }
}
