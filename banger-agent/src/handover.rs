//! Hands over from the initramfs to the image: switches the root, starts the serving process, and turns the first
//! process into the image's init, or into a reaper.

use std::{
    convert::Infallible,
    fs, io,
    io::{Seek, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use banger_proto::guest::config::{GuestConfig, Init};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, ResolveFlags},
    mount::mount_move,
    process::{WaitOptions, chdir, chroot, waitpid},
};

use crate::{
    SERVE,
    boot::NEW_ROOT,
    boot_config::ControlPort,
    cgroups,
    channels::{InitKind, ServerConfig},
    log,
    phases::InitSystem,
    power, stopping,
};

/// Where an image may have its init, in order of preference.
const INITS: [&str; 5] =
    ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init"];
/// Process name of the serving process. systemd spares processes whose names begin with `@` when it kills everything
/// before power-off (systemd.io, "Root storage daemons").
const SERVER_NAME: &str = "@banger-agent";

/// Hands over. Returns only if that is impossible.
pub fn run(
    config: GuestConfig,
    control: Option<ControlPort>,
    mut problems: Vec<String>,
) -> io::Result<Infallible> {
    let has_root = fs::read_dir(NEW_ROOT).is_ok_and(|mut entries| entries.next().is_some());
    if has_root {
        switch_root()?;
    }
    let init = if has_root { choose_init(&config.init) } else { None };
    let kind = if init.is_some() { InitKind::Image } else { InitKind::Agent };
    if let Err(error) = power::prepare() {
        problems.push(format!("cannot prepare for powering off: {error}"));
    }
    if kind == InitKind::Agent
        && let Err(error) = cgroups::mount_for_programs()
    {
        problems.push(format!("cannot mount the control groups: {error}"));
    }
    let init_system = init.as_ref().map_or(InitSystem::Other, |init| InitSystem::of(Path::new("/"), init));
    let (token, programs) = (config.token, config.programs);
    let (control, channel) = control.map(|control| (control.path, control.fd)).unzip();
    let server = ServerConfig { token, problems, init: kind, init_system, programs, control };
    let server = start_server(&server, channel)?;
    // Programs detect systemd by the directory of this unit, so no other init gets it.
    if init_system == InitSystem::Systemd
        && let Err(error) = stopping::prepare(server)
    {
        log::error(&format!("commands will not end before the guest's disks are unmounted: {error}"));
    }
    match init {
        Some(init) => {
            log::info(&format!("handing over to {init}"));
            let error = Command::new(&init).arg0(&init).env_clear().exec();
            log::error(&format!("cannot run {init}: {error}"));
            reap()
        }
        None => reap(),
    }
}

/// Makes the image's file system the root, together with its mounts, and frees the initramfs.
fn switch_root() -> io::Result<()> {
    for inner in ["dev", "proc", "sys", "run"] {
        let target = format!("{NEW_ROOT}/{inner}");
        fs::create_dir_all(&target)?;
        mount_move(format!("/{inner}"), target)?;
    }
    for garbage in ["/lib", "/banger"] {
        // This only frees memory, so a failure does not matter.
        let _ = fs::remove_dir_all(garbage);
    }
    chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn choose_init(init: &Init) -> Option<String> {
    match init {
        Init::Agent => None,
        Init::Path(path) => Some(path.clone()),
        Init::Auto => INITS.into_iter().find(|path| is_program(path)).map(str::to_owned),
    }
}

/// Returns whether this is a program, with links resolved inside the root.
fn is_program(path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::empty());
    let Ok(file) = opened else { return false };
    rustix::fs::fstat(&file).is_ok_and(|stat| {
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
        is_file && stat.st_mode & 0o111 != 0
    })
}

/// Starts the serving process and returns its process id. It reads its configuration from an unnamed file on its
/// standard input, and has the control channel on its standard output.
fn start_server(config: &ServerConfig, channel: Option<OwnedFd>) -> io::Result<u32> {
    let mut file = fs::File::from(rustix::fs::memfd_create("banger-agent", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&mut file, config)?;
    file.flush()?;
    file.rewind()?;
    // The program is in the initramfs, which no longer has a path.
    let mut server = Command::new(Path::new("/proc/self/exe"));
    server.arg0(SERVER_NAME).arg(SERVE).env_clear().stdin(Stdio::from(file));
    if let Some(channel) = channel {
        server.stdout(Stdio::from(channel));
    }
    cgroups::protect(&mut server);
    server.spawn().map(|server| server.id())
}

/// Does the duty of a first process without an init: waits for orphaned children.
fn reap() -> io::Result<Infallible> {
    loop {
        match waitpid(None, WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // No child is left, not even the serving process, so the guest has no purpose any more.
            Err(error) => return Err(error.into()),
        }
    }
}
