//! `cargo xtask try`: builds banger and runs a command in a sandbox.

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::{
    build::{self, install},
    host::{self, Host},
    image::{self, kernel},
    packages,
    run::{command, run as shell, say},
};

/// Arguments of `cargo xtask try`.
#[derive(Parser)]
pub struct Arguments {
    /// Install banger on this host instead of a private host; needs systemd
    #[arg(long)]
    install: bool,
    /// Command to run in the sandbox
    #[arg(last = true, default_values_t = ["uname".to_owned(), "-sr".to_owned()])]
    command: Vec<String>,
}

/// The default kernel of sandboxes in private hosts, which have no kernel of their own.
pub const KERNEL: &str = "debian";
/// The default image of sandboxes.
pub const IMAGE: &str = "debian-bookworm";
/// The same image without its init: under emulation, systemd takes half a minute of processor time at each boot.
pub const QUICK: &str = "quick";

/// Runs the command in a new sandbox and returns its exit status.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.install {
        return install_for_real();
    }
    let host = host::up(&host::Up::default())?;
    provide(&host)?;
    let mut words: Vec<String> = ["banger", "vm", "run", "--rm", "--"].map(str::to_owned).to_vec();
    words.extend(arguments.command.iter().cloned());
    let status = host.session("alice", false, &words)?.status().context("cannot run banger")?;
    Ok(host::exit_code(status))
}

/// Imports a shared kernel and a shared image, if the service has none.
pub fn provide(host: &Host) -> Result<()> {
    let has = |words: &[&str]| host.enter(words).output().is_ok_and(|output| output.status.success());
    if !has(&["banger", "kernel", "show", KERNEL]) {
        let kernel = kernel::ensure()?;
        let mut import = host.enter(&["banger", "kernel", "import", "--shared", "--name", KERNEL]);
        import.arg("--vmlinuz").arg(host::inside(&kernel.vmlinuz)?);
        import.arg("--modules").arg(host::inside(&kernel.modules)?);
        say("importing the kernel");
        shell(&mut import)?;
    }
    set_default_kernel(host, KERNEL)?;
    if !has(&["banger", "image", "show", IMAGE]) {
        let rootfs = host::inside(&image::ensure(IMAGE)?)?;
        say("registering the image");
        let mut register = host.enter(&["banger", "image", "register", "--shared", "--name", IMAGE]);
        shell(register.arg("--rootfs").arg(rootfs))?;
    }
    Ok(())
}

/// Makes the image without an init the default.
pub fn make_quick(host: &Host) -> Result<()> {
    if !host.enter(&["banger", "image", "show", QUICK]).output().is_ok_and(|output| output.status.success()) {
        let rootfs = host::inside(&image::without_init(IMAGE)?)?;
        let mut register =
            host.enter(&["banger", "image", "register", "--quiet", "--shared", "--name", QUICK]);
        shell(register.arg("--rootfs").arg(rootfs))?;
    }
    set_default_image(host, QUICK)
}

/// Sets the default image in the configuration of the host.
pub fn set_default_image(host: &Host, image: &str) -> Result<()> {
    shell(&mut host.enter(&script!("host/set_default_image.sh", image = image)))
}

/// Sets the default kernel in the configuration of the host; an empty name means the host's own.
pub fn set_default_kernel(host: &Host, kernel: &str) -> Result<()> {
    shell(&mut host.enter(&script!("host/set_default_kernel.sh", kernel = kernel)))
}

fn install_for_real() -> Result<ExitCode> {
    ensure!(rustix::process::geteuid().is_root(), "installing needs root");
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        bail!("systemd is not running on this host; omit --install to use a private host");
    }
    packages::ensure()?;
    let programs = build::ensure()?;
    install::into(std::path::Path::new("/"), &programs)?;
    shell(&mut command("systemd-sysusers", ["banger.conf"]))?;
    shell(&mut command("systemd-tmpfiles", ["--create", "banger.conf"]))?;
    shell(&mut command("systemctl", ["daemon-reload"]))?;
    shell(&mut command("systemctl", ["reload", "dbus.service"]))?;
    shell(&mut command("systemctl", ["restart", "banger-system.service"]))?;
    say("installed; add yourself to the group banger, then run: banger doctor");
    Ok(ExitCode::SUCCESS)
}
