//! The programs that run because of the service, each with the reason. There are no others: what the service changes
//! on the host, it changes with system calls, netlink and D-Bus. The architecture test enforces that.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use banger_domain::{architecture::Architecture, resource::Paths};

use crate::ports::{FromHost as _, HostError, host_error::Result};

/// Starts a VMM. A process can confine itself, and the service has to stay free.
pub const SHIM: &str = "banger-shim";
/// Unpacks images. What strangers made is read by a process without rights.
pub const WORKER: &str = "banger-import";
/// Runs guests. The shim starts it. Each architecture has a program of its own; only tests start that of another host.
pub const QEMU: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-aarch64"];
/// Runs guests. The shim starts it. Packages and people install it at one of these paths, and the configuration may
/// name another one.
pub const FIRECRACKER: [&str; 3] =
    ["/usr/bin/firecracker", "/usr/libexec/banger/firecracker", "/usr/local/bin/firecracker"];

/// Returns the QEMU for guests of an architecture.
pub fn qemu(architecture: Architecture) -> &'static str {
    let [x86_64, aarch64] = QEMU;
    match architecture {
        Architecture::X86_64 => x86_64,
        Architecture::Aarch64 => aarch64,
    }
}

/// Returns the path of the shim.
pub fn shim(paths: &Paths) -> PathBuf {
    paths.program(SHIM)
}

/// Returns the path of the import worker.
pub fn worker(paths: &Paths) -> PathBuf {
    paths.program(WORKER)
}

/// Starts the shim or the worker on a host without systemd. It gets a socket as its standard input, and nothing else.
pub(super) fn start(program: &Path, socket: OwnedFd) -> Result<Child> {
    let mut command = Command::new(program);
    command.env_clear().stdin(socket).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| HostError::os(format!("start {}", program.display()), error))
}
