//! Brings the guest up, as the first process. Failures are recorded as problems, which the host can query. The boot
//! stops only if the host cannot send a configuration.

use std::{ffi::CStr, fs, io, process::ExitCode};

use rustix::{
    mount::{MountFlags, mount},
    time::{ClockId, Timespec, clock_settime},
};

use crate::{
    apply, boot_config, commit, disks, handover, identity, log, modprobe, module_tree,
    modules::{self, Stage},
    network, ssh, timezone, unmanaged_interface,
};

/// Where the root file system is mounted until the root is switched.
pub const NEW_ROOT: &str = "/newroot";

/// Brings the guest up. Returns only on failure.
pub fn run() -> ExitCode {
    let mut problems = Vec::new();
    for (kind, target, flags, data) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, None),
        ("proc", "/proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None),
        ("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None),
        // The image's init keeps these options. By default, everyone could write there.
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755")),
    ] {
        note(&mut problems, mount_fresh(kind, target, flags, data), || format!("cannot mount {target}"));
    }
    note(&mut problems, mount_devpts(), || "cannot mount /dev/pts".to_owned());
    problems.extend(modules::load(Stage::Common));

    let (config, control) = match boot_config::receive(&problems) {
        Ok(received) => received,
        Err(error) => {
            log::error(&format!("cannot receive the configuration: {error}"));
            return ExitCode::FAILURE;
        }
    };
    problems.extend(modules::load(Stage::Devices));
    let hostname = rustix::system::sethostname(config.hostname.as_bytes());
    note(&mut problems, hostname.map_err(io::Error::from), || "cannot set the host name".to_owned());

    let interface = match config.network.as_ref().map(|network| (network, network::set_up(network))) {
        Some((network, Ok(name))) => Some((name, network.mac)),
        Some((_, Err(error))) => {
            note(&mut problems, Err(error), || "cannot set up the network".to_owned());
            None
        }
        None => None,
    };

    match disks::mount_root(&config.root_device, NEW_ROOT) {
        Ok(()) => {
            let filled = disks::fill_device(&config.root_device, NEW_ROOT);
            note(&mut problems, filled, || "cannot grow the root file system".to_owned());
            if let Some(work) = &config.work_disk {
                let mounted = disks::mount_work(work, NEW_ROOT, &mut problems);
                note(&mut problems, mounted, || {
                    format!("cannot mount the work disk at {}", work.mount_point)
                });
            }
            if let Some(device) = &config.module_disk {
                let mounted = module_tree::mount_at(device, NEW_ROOT);
                note(&mut problems, mounted, || "cannot mount the modules of the kernel".to_owned());
                let installed = modprobe::install_helper(NEW_ROOT);
                note(&mut problems, installed, || {
                    "cannot serve the kernel's requests for modules".to_owned()
                });
            }
            problems.extend(apply::files(
                NEW_ROOT,
                &identity::files(&config.hostname, &config.names, config.network.as_ref()),
            ));
            problems.extend(apply::files(NEW_ROOT, &config.files));
            if let Some(zone) = &config.timezone {
                problems.extend(timezone::apply(NEW_ROOT, zone));
            }
            if let Some((name, mac)) = &interface {
                problems.extend(unmanaged_interface::apply(
                    NEW_ROOT,
                    "/",
                    &unmanaged_interface::Interface { name, mac: *mac },
                ));
            }
            if let Some(settings) = &config.ssh {
                // A fork has the disks of its parent.
                if ssh::is_of_another(NEW_ROOT, settings) {
                    let forgotten = commit::forget_ids(NEW_ROOT);
                    note(&mut problems, forgotten, || "cannot remove the ids of another guest".to_owned());
                }
                problems.extend(ssh::apply(NEW_ROOT, "/", settings));
            }
        }
        Err(error) => {
            problems.push(format!("cannot mount the root file system: {error}"));
            log::error(&problems[problems.len() - 1]);
        }
    }
    let Err(error) = handover::run(config, control, problems);
    log::error(&format!("cannot hand over: {error}"));
    ExitCode::FAILURE
}

fn note(problems: &mut Vec<String>, result: io::Result<()>, what: impl FnOnce() -> String) {
    if let Err(error) = result {
        let problem = format!("{}: {error}", what());
        log::error(&problem);
        problems.push(problem);
    }
}

fn mount_fresh(kind: &str, target: &str, flags: MountFlags, data: Option<&CStr>) -> io::Result<()> {
    fs::create_dir_all(target)?;
    match mount(kind, target, kind, flags, data) {
        // The kernel mounts devtmpfs itself if it is configured to.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Mounts devpts. The guest's init mounts it again and finds it there.
fn mount_devpts() -> io::Result<()> {
    fs::create_dir_all("/dev/pts")?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    match mount("devpts", "/dev/pts", "devpts", flags, Some(c"mode=620,gid=5,ptmxmode=666")) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets the clock to this number of microseconds since the epoch.
pub fn set_time(unix_usec: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_usec / 1_000_000).map_err(|_| io::ErrorKind::InvalidInput)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: ((unix_usec % 1_000_000) * 1000) as _ };
    Ok(clock_settime(ClockId::Realtime, time)?)
}
