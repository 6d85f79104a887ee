//! Platforms of images, in Go's names, which the OCI specification uses.

use std::{fmt, str::FromStr};

/// A platform: Linux, an architecture, and perhaps a variant of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    architecture: String,
    variant: Option<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a platform looks like linux/amd64 or linux/arm64/v8")]
pub struct NotAPlatform;

impl Platform {
    /// Returns the platform for an architecture in Rust's names.
    pub fn of_host(arch: &str) -> Self {
        let architecture = match arch {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), variant: None }
    }

    /// Returns whether both are for the same kind of processor.
    pub fn runs_with(&self, other: &Platform) -> bool {
        self.architecture == other.architecture
    }

    /// Returns how well a platform of an index fits, the lower the better; `None` if it does not.
    pub(super) fn fits(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u32> {
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        let variant = variant.filter(|variant| !variant.is_empty());
        match (self.variant.as_deref(), variant) {
            (wanted, offered) if wanted == offered => Some(0),
            // Every processor of the architecture runs this one.
            (_, None) => Some(1),
            (None, Some("v8")) if self.architecture == "arm64" => Some(1),
            (None, Some("v1")) if self.architecture == "amd64" => Some(1),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = NotAPlatform;

    fn from_str(text: &str) -> Result<Self, NotAPlatform> {
        let word = |part: &str| {
            (1..=16).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["linux", architecture, variant @ ..] if variant.len() <= 1 => {
                if !word(architecture) || !variant.iter().all(|variant| word(variant)) {
                    return Err(NotAPlatform);
                }
                let variant = variant.first().map(|variant| (*variant).to_owned());
                Ok(Self { architecture: (*architecture).to_owned(), variant })
            }
            _ => Err(NotAPlatform),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms_are_read_as_they_are_written() {
        for text in ["linux/amd64", "linux/arm64/v8", "linux/riscv64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "amd64", "windows/amd64", "linux/", "linux/amd64/", "linux/a/b/c", "linux/AMD64"] {
            assert_eq!(text.parse::<Platform>(), Err(NotAPlatform), "{text}");
        }
        assert_eq!(Platform::of_host("x86_64").to_string(), "linux/amd64");
    }

    #[test]
    fn the_variant_that_every_processor_runs_is_chosen() {
        let amd64 = Platform::of_host("x86_64");
        assert_eq!(amd64.fits("linux", "amd64", None), Some(0));
        assert_eq!(amd64.fits("linux", "amd64", Some("v1")), Some(1));
        assert_eq!(amd64.fits("linux", "amd64", Some("v3")), None);
        assert_eq!(amd64.fits("windows", "amd64", None), None);
        let arm64 = Platform::of_host("aarch64");
        assert_eq!(arm64.fits("linux", "arm64", Some("v8")), Some(1));
        let v3: Platform = "linux/amd64/v3".parse().unwrap();
        assert_eq!(v3.fits("linux", "amd64", Some("v3")), Some(0));
        assert_eq!(v3.fits("linux", "amd64", None), Some(1));
    }
}
