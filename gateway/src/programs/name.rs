//! What programs are called.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest name of a program in characters.
const LONGEST: usize = 64;

/// The name of a program: 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, not beginning with `.`. So it is
/// the name of a file too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ProgramName(String);

impl ProgramName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for ProgramName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Something is no name of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a program's name is 1 to {LONGEST} of the characters a-z, 0-9, `-`, `_` and `.`, and does not begin with `.`"
)]
pub struct BadName;

impl FromStr for ProgramName {
    type Err = BadName;

    fn from_str(s: &str) -> Result<Self, BadName> {
        let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
        let right = (1..=LONGEST).contains(&s.len()) && s.bytes().all(fits) && !s.starts_with('.');
        right.then(|| ProgramName(s.to_owned())).ok_or(BadName)
    }
}

impl<'de> Deserialize<'de> for ProgramName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_file() {
        for good in ["a", "choice", "best-of-n.v2", "0_", &"x".repeat(64)] {
            assert_eq!(
                good.parse::<ProgramName>().map(|n| n.0).as_deref(),
                Ok(good)
            );
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "A",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(65),
        ] {
            assert_eq!(bad.parse::<ProgramName>(), Err(BadName), "{bad}");
        }
    }
}
