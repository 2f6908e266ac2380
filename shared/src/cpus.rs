//! A set of CPUs, as the kernel writes them.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::Deserialize;

/// CPUs by number, written `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// Numbers are below it: what the kernel's masks hold.
    pub const MOST: usize = 1024;

    /// Their numbers, at least one, in ascending order.
    pub fn numbers(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{s}` is no list of CPUs such as 0-3,8, with numbers below {}",
                Self::MOST
            )
        };
        let mut numbers = Vec::new();
        for part in s.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |s: &str| s.trim().parse().ok().filter(|&n: &usize| n < Self::MOST);
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(expected());
            };
            if first > last {
                return Err(expected());
            }
            numbers.extend(first..=last);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Cpus(numbers))
    }
}

impl TryFrom<String> for Cpus {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl Display for Cpus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (i, run) in runs.enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match run {
                [one] => write!(f, "{comma}{one}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        let cpus = |s: &str| s.parse::<Cpus>();
        assert_eq!(cpus("8,0-3").expect("valid").numbers(), [0, 1, 2, 3, 8]);
        assert_eq!(cpus(" 2, 1-2 ").expect("valid").to_string(), "1-2");
        assert_eq!(cpus("0,2,4-6").expect("valid").to_string(), "0,2,4-6");
        for bad in [
            "",
            ",",
            "a",
            "-1",
            "3-1",
            "1024",
            "0-9999999999999999999999",
            "1,",
        ] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
