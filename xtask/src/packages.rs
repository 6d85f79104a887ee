//! What banger and its tests need of a Debian machine: one list, and one place that installs it.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::run::{command, run, say};

/// Of Debian's packages: what runs machines, what a host of banger has, what makes images, and what the
/// tests ask.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "systemd",
    "libpam-systemd",
    "dbus",
    "polkitd",
    "pkexec",
    "sudo",
    "nftables",
    "iproute2",
    "util-linux",
    "passwd",
    "mmdebstrap",
    "e2fsprogs",
    "zstd",
    "python3-gi",
    "gir1.2-glib-2.0",
    "gcc",
    "libc6-dev",
    "sqlite3",
    "cpio",
    "xfsprogs",
    // Of the crates that speak to device-mapper.
    "libdevmapper-dev",
    "libclang-dev",
    "pkg-config",
    "openssh-client",
    "rsync",
    "curl",
];

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "these packages are missing; install them: {}",
        missing.join(" ")
    );
    say(&format!("installing {}", missing.join(" ")));
    run(&mut apt(&["update", "-qq"]))?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(missing);
    run(&mut apt(&install))
}

fn is_installed(package: &str) -> bool {
    let query = command("dpkg-query", ["-W", "-f", "${Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"install ok installed")
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = command("apt-get", arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
