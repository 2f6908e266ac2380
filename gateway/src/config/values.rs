//! The values that settings take, as they are written on the command line and in files.

use std::fmt::{Display, Formatter};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// Log line format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Readable on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Data type of the forward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// As the checkpoint says.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Dtype {
    /// The name that the worker's command line takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Dtype::Auto => "auto",
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        }
    }
}

/// What the matrices of a model are held in instead of the data type of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// e4m3, with a scale for each output.
    Fp8,
}

impl Quantization {
    /// The name that the worker's command line takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Quantization::Fp8 => "fp8",
        }
    }
}

/// How much longer than the shortest a step may take for what tenants get beyond their shares, as
/// a part of that: 0 or more.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Surplus(f64);

impl Surplus {
    /// Its value.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for Surplus {
    fn default() -> Self {
        Surplus(0.1)
    }
}

impl TryFrom<f64> for Surplus {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        match (0.0..=100.0).contains(&value) {
            true => Ok(Surplus(value)),
            false => Err("a surplus is between 0 and 100"),
        }
    }
}

impl FromStr for Surplus {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let value: f64 = s.parse().map_err(|e| format!("{e}"))?;
        Ok(Surplus::try_from(value)?)
    }
}

/// A number of bytes, written `123`, `64KiB`, `2GiB`, `500MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" | "K" => 1 << 10,
            "MiB" | "M" => 1 << 20,
            "GiB" | "G" => 1 << 30,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            other => {
                return Err(format!(
                    "unknown unit `{other}`: use B, KiB, MiB, GiB, KB, MB or GB"
                ));
            }
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("`{s}` is not a size like 512MiB"))?;
        number
            .checked_mul(factor)
            .map(ByteSize)
            .ok_or_else(|| format!("`{s}` is more than can be addressed"))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Number(n) => Ok(ByteSize(n)),
            Raw::Text(s) => s.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Where the admin listener is, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminAddr {
    /// No admin listener.
    Off,
    /// Listen here.
    At(SocketAddr),
}

impl Default for AdminAddr {
    fn default() -> Self {
        AdminAddr::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)))
    }
}

impl AdminAddr {
    /// The address, unless there is no listener.
    pub fn addr(self) -> Option<SocketAddr> {
        match self {
            AdminAddr::At(addr) => Some(addr),
            AdminAddr::Off => None,
        }
    }
}

impl FromStr for AdminAddr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "off" {
            return Ok(AdminAddr::Off);
        }
        s.parse()
            .map(AdminAddr::At)
            .map_err(|_| format!("`{s}` is neither HOST:PORT (127.0.0.1:9090) nor `off`"))
    }
}

impl<'de> Deserialize<'de> for AdminAddr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The model that is built in.
pub const EMBEDDED: &str = "embedded";
/// The name it is served under.
pub const EMBEDDED_NAME: &str = "realm-tiny";

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// Built into the binaries.
    Embedded,
    /// A directory as the Hugging Face hub lays it out.
    Directory(PathBuf),
}

impl From<&str> for ModelSource {
    fn from(place: &str) -> Self {
        match place {
            EMBEDDED => ModelSource::Embedded,
            dir => ModelSource::Directory(dir.into()),
        }
    }
}

impl ModelSource {
    /// What to give to a worker as `--model`.
    pub fn path(&self) -> &Path {
        match self {
            ModelSource::Embedded => Path::new(EMBEDDED),
            ModelSource::Directory(dir) => dir,
        }
    }
}

impl Display for ModelSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.path().display().fmt(f)
    }
}

/// A model to serve, written `DIR`, `NAME=DIR` or `embedded`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name that requests ask for.
    pub name: String,
    /// Where its files are.
    pub source: ModelSource,
    /// Socket at which a worker listens that somebody else started; without one, workers are
    /// spawned.
    pub attach: Option<PathBuf>,
}

impl ModelSpec {
    /// The built-in model under its own name.
    pub fn embedded() -> Self {
        ModelSpec {
            name: EMBEDDED_NAME.into(),
            source: ModelSource::Embedded,
            attach: None,
        }
    }
}

impl FromStr for ModelSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (name, place) = match s.split_once('=') {
            Some((name, place)) => (Some(name), place),
            None => (None, s),
        };
        if place.is_empty() || name == Some("") {
            return Err(format!("`{s}` is not DIR, NAME=DIR or `{EMBEDDED}`"));
        }
        let source = ModelSource::from(place);
        let name = match (name, &source) {
            (Some(name), _) => name.to_owned(),
            (None, ModelSource::Embedded) => EMBEDDED_NAME.to_owned(),
            (None, ModelSource::Directory(dir)) => {
                // `.` and `models/..` have no name of their own until resolved.
                let resolved = match dir.file_name() {
                    Some(_) => dir.clone(),
                    None => dir
                        .canonicalize()
                        .map_err(|e| format!("model directory `{place}`: {e}"))?,
                };
                let name = resolved.file_name().ok_or_else(|| {
                    format!("`{place}` has no last part to name the model by: use NAME=DIR")
                })?;
                name.to_string_lossy().into_owned()
            }
        };
        Ok(ModelSpec {
            name,
            source,
            attach: None,
        })
    }
}

impl<'de> Deserialize<'de> for ModelSpec {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Where the worker of a model listens, written `NAME=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The model.
    pub model: String,
    /// The socket's path.
    pub socket: PathBuf,
}

impl FromStr for Attach {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((model, socket)) if !model.is_empty() && !socket.is_empty() => Ok(Attach {
                model: model.to_owned(),
                socket: socket.into(),
            }),
            _ => Err(format!(
                "`{s}` is not NAME=SOCKET, a model's name and the path at which its worker listens"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Attach {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units() {
        assert_eq!("2GiB".parse(), Ok(ByteSize(2 << 30)));
        assert_eq!("12".parse(), Ok(ByteSize(12)));
        assert_eq!("5MB".parse(), Ok(ByteSize(5_000_000)));
        for bad in ["", "GiB", "-1", "1.5GiB", "9999999999999GiB", "3XB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
