//! What differs between processor architectures in packages.

use anyhow::{Result, bail};

/// An architecture, by its names in packages.
#[derive(Debug, PartialEq, Eq)]
pub struct Platform {
    /// Debian's name, which is also OCI's.
    pub deb: &'static str,
    /// RPM's name, which is also the kernel's.
    pub rpm: &'static str,
    /// Rust's target with glibc.
    pub rust: &'static str,
    /// Debian's package of QEMU.
    pub deb_qemu: &'static str,
    /// Fedora's package of QEMU.
    pub rpm_qemu: &'static str,
}

/// Returns the names of an architecture of Rust.
pub fn of(architecture: &str) -> Result<Platform> {
    Ok(match architecture {
        "x86_64" => Platform {
            deb: "amd64",
            rpm: "x86_64",
            rust: "x86_64-unknown-linux-gnu",
            deb_qemu: "qemu-system-x86",
            rpm_qemu: "qemu-system-x86-core",
        },
        "aarch64" => Platform {
            deb: "arm64",
            rpm: "aarch64",
            rust: "aarch64-unknown-linux-gnu",
            deb_qemu: "qemu-system-arm",
            rpm_qemu: "qemu-system-aarch64-core",
        },
        other => bail!("no packages are built for {other}"),
    })
}

/// Returns the architecture that xtask runs on, and builds for.
pub fn here() -> Result<Platform> {
    of(std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_distribution_has_its_own_names() {
        assert_eq!(of("x86_64").unwrap().deb, "amd64");
        let arm = of("aarch64").unwrap();
        assert_eq!((arm.deb, arm.deb_qemu), ("arm64", "qemu-system-arm"));
        assert_eq!((arm.rpm, arm.rpm_qemu), ("aarch64", "qemu-system-aarch64-core"));
        assert_eq!(arm.rust, "aarch64-unknown-linux-gnu");
        assert!(of("riscv64").is_err());
    }
}
