//! SHA-256 digests.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, as 64 hexadecimal digits in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// Its 64 hexadecimal digits, in lower case.
    pub fn hex(&self) -> String {
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            hex.push_str(&format!("{byte:02x}"));
        }
        hex
    }

    /// Reads them.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let (pairs, []) = hex.as_bytes().as_chunks::<2>() else {
            return None;
        };
        let bytes = pairs.iter().map(|pair| {
            let digit = |c: u8| char::from(c).to_digit(16);
            let byte = digit(pair[0])? << 4 | digit(pair[1])?;
            u8::try_from(byte).ok()
        });
        let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
        Some(Digest(bytes.try_into().ok()?))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let hex = String::deserialize(d)?;
        Digest::from_hex(&hex)
            .ok_or_else(|| serde::de::Error::custom("expected 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest::of(b"abc");
        assert!(digest.hex().starts_with("ba7816bf"));
        assert_eq!(Digest::from_hex(&digest.hex()), Some(digest));
        for bad in [
            "",
            "ba78",
            &"+a".repeat(32),
            &"zz".repeat(32),
            &"00".repeat(33),
        ] {
            assert_eq!(Digest::from_hex(bad), None, "{bad}");
        }
    }
}
