//! What banger and its tests need of a Debian machine: one list, and one place that installs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::run::{cache, command, output, run, say};

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
    // What finds modules by our tables, and makes those to compare them with.
    "kmod",
    // Of the crates that speak to device-mapper.
    "libdevmapper-dev",
    "libclang-dev",
    "pkg-config",
    "openssh-client",
    "rsync",
    "curl",
    // A resolver that tests put in the place of the host's.
    "dnsmasq-base",
    // A terminal that tests type into.
    "tmux",
    // For completions and manual pages.
    "fish",
    "mandoc",
    "zsh",
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

/// The tree of systemd-resolved, which only the private host is to have: installed on this machine, its package
/// would take over how names are resolved here.
pub fn resolved() -> Result<PathBuf> {
    // It is of one piece with systemd.
    let version = output(&mut command("dpkg-query", ["-W", "-f", "${Version}", "systemd"]))?;
    let directory = cache().join(format!("systemd-resolved-{version}"));
    let root = directory.join("root");
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let unfinished = directory.join("unfinished");
    let package = format!("systemd-resolved={version}");
    if unpack(&package, &directory, &unfinished).is_err() {
        run(&mut apt(&["update", "-qq"]))?;
        unpack(&package, &directory, &unfinished)?;
    }
    // The package is older than the merger of /lib and /sbin with /usr.
    for merged in ["lib", "sbin"] {
        let tree = unfinished.join(merged);
        run(command("cp", ["-a"]).arg(tree.join(".")).arg(unfinished.join("usr").join(merged)))?;
        fs::remove_dir_all(tree)?;
    }
    fs::rename(&unfinished, &root).context("cannot put systemd-resolved in its place")?;
    Ok(root)
}

/// Fetches a package into `directory` and unpacks it there, as `root`. Nothing is installed.
pub fn unpack(package: &str, directory: &Path, root: &Path) -> Result<()> {
    say(&format!("fetching {package}"));
    // apt drops its privileges for a download where it can, and then cannot write here.
    let unsandboxed = "APT::Sandbox::User=root";
    run(command("apt-get", ["download", "-qq", "-o", unsandboxed, package]).current_dir(directory))?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(command("dpkg-deb", ["-x"]).arg(&path).arg(root))?;
            fs::remove_file(path)?;
        }
    }
    Ok(())
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
