//! Platforms of images, in Go's names, which the OCI specification uses.

use std::{fmt, str::FromStr};

/// A platform: Linux, an architecture, and perhaps a variant of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    architecture: String,
    /// The variant, unless every processor of the architecture has it.
    variant: Option<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a platform looks like linux/amd64 or linux/arm64/v8")]
pub struct NotAPlatform;

/// What a document says about the platform of an image. Any part may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stated {
    /// The operating system.
    pub os: String,
    /// The architecture.
    pub architecture: String,
    /// The variant of the architecture.
    pub variant: String,
}

/// How well an image fits a platform, the lower the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fit(u32);

impl Fit {
    /// The image does not say for which platform it is.
    pub const UNSTATED: Self = Self(u32::MAX);
    /// For a variant without a number, that of every processor.
    const BASELINE: Self = Self(u32::MAX - 1);
}

impl Platform {
    /// Returns the platform for an architecture in Rust's names.
    pub fn of_host(arch: &str) -> Self {
        Self { architecture: normal_architecture(arch), variant: None }
    }

    /// Returns whether both are for the same kind of processor.
    pub fn runs_with(&self, other: &Platform) -> bool {
        self.architecture == other.architecture
    }

    /// Returns how well an image fits, of which this is stated. `None` if this platform does not run it. Like in
    /// containerd, a processor with a variant such as `v3` runs every lower one.
    pub fn fit(&self, stated: &Stated) -> Option<Fit> {
        let Stated { os, architecture, variant } = stated.normal();
        if os.is_empty() && architecture.is_empty() {
            return Some(Fit::UNSTATED);
        }
        if !matches!(os.as_str(), "" | "linux")
            || !(architecture.is_empty() || architecture == self.architecture)
        {
            return None;
        }
        if os.is_empty() || architecture.is_empty() {
            return Some(Fit::UNSTATED);
        }
        let offered = (!variant.is_empty()).then_some(variant.as_str());
        let wanted = self.variant.as_deref();
        match (wanted, offered) {
            (wanted, offered) if wanted == offered => Some(Fit(0)),
            (wanted, offered) => match (self.level(wanted), self.level(offered)) {
                (Some(wanted), Some(offered)) => wanted.checked_sub(offered).map(Fit),
                _ => offered.is_none().then_some(Fit::BASELINE),
            },
        }
    }

    /// Returns the number of a variant; without a variant, the number that every processor supports.
    fn level(&self, variant: Option<&str>) -> Option<u32> {
        match variant {
            Some(variant) => variant.strip_prefix('v')?.parse().ok(),
            None => baseline(&self.architecture)?.strip_prefix('v')?.parse().ok(),
        }
    }
}

impl Stated {
    /// Returns the parts in the specification's names, without the variant that every processor has.
    fn normal(&self) -> Self {
        let architecture = normal_architecture(&self.architecture);
        let variant = self.variant.to_ascii_lowercase();
        let variant = match variant.bytes().all(|byte| byte.is_ascii_digit()) && !variant.is_empty() {
            true => format!("v{variant}"),
            false => variant,
        };
        let is_baseline = baseline(&architecture) == Some(variant.as_str());
        let variant = if is_baseline { String::new() } else { variant };
        Self { os: self.os.to_ascii_lowercase(), architecture, variant }
    }

    /// Returns whether the system or the architecture is not stated.
    pub fn is_incomplete(&self) -> bool {
        self.os.is_empty() || self.architecture.is_empty()
    }

    /// Returns whether it is for no platform at all, like the attestations of an image.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

/// As in the document, but shortened and safe to display: `linux/arm64/v8`.
impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, architecture, variant } = self;
        let or_any = |part: &str| if part.is_empty() { "any".to_owned() } else { super::printable(part) };
        write!(f, "{}/{}", or_any(os), or_any(architecture))?;
        if variant.is_empty() { Ok(()) } else { write!(f, "/{}", super::printable(variant)) }
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
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["linux", architecture, variant @ ..] if variant.len() <= 1 => {
                if !word(architecture) || !variant.iter().all(|variant| word(variant)) {
                    return Err(NotAPlatform);
                }
                let variant = variant.first().map(|variant| (*variant).to_owned()).unwrap_or_default();
                let stated =
                    Stated { os: "linux".to_owned(), architecture: (*architecture).to_owned(), variant };
                let Stated { architecture, variant, .. } = stated.normal();
                Ok(Self { architecture, variant: (!variant.is_empty()).then_some(variant) })
            }
            _ => Err(NotAPlatform),
        }
    }
}

/// Returns an architecture by the name that the specification uses. Some programs write the kernel's.
fn normal_architecture(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

/// Returns the variant that every processor of an architecture has, if its variants have names.
fn baseline(architecture: &str) -> Option<&'static str> {
    match architecture {
        "amd64" => Some("v1"),
        "arm64" => Some("v8"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms_are_read_as_they_are_written() {
        for text in ["linux/amd64", "linux/amd64/v3", "linux/riscv64", "linux/arm64/v9"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/amd64/v1", "linux/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal);
        }
        for text in ["", "amd64", "windows/amd64", "linux/", "linux/amd64/", "linux/a/b/c", "linux/AMD64"] {
            assert_eq!(text.parse::<Platform>(), Err(NotAPlatform), "{text}");
        }
        assert_eq!(Platform::of_host("x86_64").to_string(), "linux/amd64");
    }

    #[test]
    fn a_processor_runs_its_variant_and_lower_ones() {
        let fit = |wanted: &str, os: &str, architecture: &str, variant: &str| {
            let [os, architecture, variant] = [os, architecture, variant].map(str::to_owned);
            wanted.parse::<Platform>().unwrap().fit(&Stated { os, architecture, variant }).map(|Fit(fit)| fit)
        };
        for (wanted, os, architecture, variant, expect) in [
            ("linux/amd64", "linux", "amd64", "", Some(0)),
            ("linux/amd64", "linux", "amd64", "v1", Some(0)),
            ("linux/amd64", "linux", "x86_64", "", Some(0)),
            ("linux/amd64", "Linux", "AMD64", "", Some(0)),
            ("linux/amd64", "linux", "amd64", "v2", None),
            ("linux/amd64", "windows", "amd64", "", None),
            ("linux/amd64", "", "arm64", "", None),
            ("linux/amd64", "", "amd64", "", Some(u32::MAX)),
            ("linux/amd64", "", "", "", Some(u32::MAX)),
            ("linux/amd64/v3", "linux", "amd64", "v3", Some(0)),
            ("linux/amd64/v3", "linux", "amd64", "v2", Some(1)),
            ("linux/amd64/v3", "linux", "amd64", "", Some(2)),
            ("linux/amd64/v3", "linux", "amd64", "v4", None),
            ("linux/arm64", "linux", "arm64", "v8", Some(0)),
            ("linux/arm64", "linux", "aarch64", "8", Some(0)),
            ("linux/arm64", "linux", "arm64", "v9", None),
            ("linux/arm64", "linux", "arm", "v7", None),
            ("linux/riscv64", "linux", "riscv64", "rva22", None),
            ("linux/riscv64/rva22", "linux", "riscv64", "", Some(u32::MAX - 1)),
        ] {
            assert_eq!(
                fit(wanted, os, architecture, variant),
                expect,
                "{wanted} {os}/{architecture}/{variant}"
            );
        }
    }
}
