//! Sizes in bytes as people write them: `512MiB`, `4G`, `1.5GiB`.
//!
//! Units are binary whichever way they are written (`4G` = `4GiB` = 4 × 1024³ bytes), and a bare number
//! means MiB, as it always did in banger's configuration.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text does not begin with a number.
    #[error("{0:?} is not a size; write a number and a unit, such as 512MiB or 4GiB")]
    NotANumber(String),
    /// The letters after the number are not a known unit.
    #[error("{0:?} is not a unit of size; use KiB, MiB, GiB or TiB")]
    UnknownUnit(String),
    /// The size does not fit into 64 bits, or is not a whole number of bytes.
    #[error("{0:?} is not a valid size")]
    OutOfRange(String),
}

impl Bytes {
    /// Returns `n` × 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// Returns `n` × 1024² bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Returns `n` × 1024³ bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Returns the size in MiB, rounded down.
    pub const fn in_mib(self) -> u64 {
        self.0 >> 20
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let has_dot = number.contains('.');
        if whole.is_empty() || (has_dot && fraction.is_empty()) || fraction.contains('.') {
            return Err(Error::NotANumber(text.to_owned()));
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "b" => 0,
            "k" | "kb" | "kib" => 10,
            "" | "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(Error::UnknownUnit(unit.to_owned())),
        };
        let out_of_range = || Error::OutOfRange(text.to_owned());
        let whole: u64 = whole.parse().map_err(|_| out_of_range())?;
        let bytes = u128::from(whole) << shift;
        let part = if fraction.is_empty() {
            0
        } else {
            let scale = u32::try_from(fraction.len()).ok().and_then(|n| 10u128.checked_pow(n));
            let scale = scale.filter(|_| fraction.len() <= 18).ok_or_else(out_of_range)?;
            let numerator: u128 = fraction.parse().map_err(|_| out_of_range())?;
            (numerator << shift) / scale
        };
        u64::try_from(bytes + part).map(Bytes).map_err(|_| out_of_range())
    }
}

impl fmt::Display for Bytes {
    /// Prints the shortest exact form, else one decimal: `4 GiB`, `1.5 GiB`, `700 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = match self.0 {
            0..=0x3ff => return write!(f, "{} B", self.0),
            0x400..=0xf_ffff => ("KiB", 10),
            0x10_0000..=0x3fff_ffff => ("MiB", 20),
            0x4000_0000..=0xff_ffff_ffff => ("GiB", 30),
            _ => ("TiB", 40),
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(f, "{whole} {unit}"),
            (whole, tenth) => write!(f, "{whole}.{tenth} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<u64, Error>) {
        assert_eq!(text.parse::<Bytes>().map(|b| b.0), expect, "{text:?}");
    }

    #[test]
    fn sizes_parse_in_every_usual_spelling() {
        check("4GiB", Ok(4 << 30));
        check("4G", Ok(4 << 30));
        check("4gb", Ok(4 << 30));
        check("512MiB", Ok(512 << 20));
        check("512 MiB", Ok(512 << 20));
        check(" 4KiB ", Ok(4 << 10));
        check("1.5G", Ok(3 << 29));
        check("2048", Ok(2048 << 20));
        check("7B", Ok(7));
        check("1t", Ok(1 << 40));
    }

    #[test]
    fn invalid_sizes_are_refused_with_a_reason() {
        check("", Err(Error::NotANumber(String::new())));
        check("GiB", Err(Error::NotANumber("GiB".into())));
        check("-1G", Err(Error::NotANumber("-1G".into())));
        check("1.G", Err(Error::NotANumber("1.G".into())));
        check("1.2.3G", Err(Error::NotANumber("1.2.3G".into())));
        check("4 parsecs", Err(Error::UnknownUnit("parsecs".into())));
        check("99999999999T", Err(Error::OutOfRange("99999999999T".into())));
        check("184467440737095516150", Err(Error::OutOfRange("184467440737095516150".into())));
    }

    #[test]
    fn sizes_print_short_and_parse_back() {
        for (bytes, text) in
            [(0, "0 B"), (700, "700 B"), (4 << 30, "4 GiB"), (3 << 29, "1.5 GiB"), (8 << 40, "8 TiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
            check(text, Ok(bytes));
        }
    }
}
