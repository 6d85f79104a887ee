//! Shutdown of a guest: its commands end before file systems are unmounted, and the host learns that it is stopping.
//!
//! Commands belong to the agent and not to a service of the image's init. systemd would try to unmount the work disk
//! while they have files open there, report a failure, and kill them at the very end. So the agent creates a unit in
//! `/run` whose stop command runs this program again to end the commands, and systemd waits for it before it unmounts
//! anything.

use std::{
    collections::BTreeSet, fs, io, os::unix::fs::symlink, path::Path, process::ExitCode, thread,
    time::Duration,
};

use banger_proto::count::counted;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    STOPPING, cgroups, log, stats,
    systemd::{self, Systemd},
};

/// Where systemd looks for units of this boot (systemd.unit(5)).
const UNITS: &str = "/run/systemd/system";
const UNIT: &str = "banger-commands.service";
/// The target that starts the unit: early, and whatever the image boots into.
const TARGET: &str = "sysinit.target";
/// Exists once the guest is shutting down.
const MARK: &str = "/run/banger-stopping";
/// How long commands may take to end by themselves, and after they were killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Poll interval for the end of commands.
const POLL: Duration = Duration::from_millis(20);

/// Prefixes of systemd's names for the mounts of the kernel's modules. A drop-in in a directory with such a name
/// applies to all of them (systemd.unit(5)).
const MODULES: [&str; 2] = ["usr-lib-modules-.mount.d", "lib-modules-.mount.d"];
/// udev keeps the tables of the modules open until it is killed, so systemd cannot unmount them before.
const LEAVE_MOUNTED: &str = "[Unit]\nDefaultDependencies=no\n";

/// Makes systemd end the commands of the serving process before it unmounts, and unmount the kernel's modules last.
pub fn prepare(server: u32) -> io::Result<()> {
    for directory in MODULES {
        let directory = Path::new(UNITS).join(directory);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("banger.conf"), LEAVE_MOUNTED)?;
    }
    let wants = Path::new(UNITS).join(format!("{TARGET}.wants"));
    fs::create_dir_all(&wants)?;
    let unit = Path::new(UNITS).join(UNIT);
    fs::write(&unit, unit_text(server))?;
    symlink(&unit, wants.join(UNIT))
}

/// Returns the text of the unit. The program is in the initramfs, which is only reachable through a process that runs
/// it. The start command does nothing; it must be there for the stop command to run (systemd.service(5),
/// "Type=oneshot").
fn unit_text(server: u32) -> String {
    format!(
        "[Unit]\n\
         Description=Commands of banger\n\
         DefaultDependencies=no\n\
         After=root.mount local-fs.target\n\
         Conflicts=shutdown.target\n\
         Before=shutdown.target\n\n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStop=/proc/{server}/exe {STOPPING} {server}\n\
         TimeoutStopSec=10\n"
    )
}

/// Returns whether the guest is shutting down.
pub fn has_begun() -> bool {
    Path::new(MARK).exists()
        // The last process of systemd, which has replaced the first.
        || fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.starts_with("systemd-shutdow"))
        || systemd_is_stopping()
}

/// Returns whether systemd was asked to shut down, but has not stopped our unit yet.
fn systemd_is_stopping() -> bool {
    // While systemd does not answer, it cannot be asked to shut down either.
    systemd::is_available()
        && Systemd::connect().is_ok_and(|mut systemd| systemd.is_stopping().unwrap_or(false))
}

/// Marks the guest as shutting down.
pub fn begin() {
    // Without the mark, the host learns of it a little later.
    let _ = fs::write(MARK, "");
}

/// Ends the commands of the serving process: signals them first, and kills those that do not end.
pub fn run(server: &str) -> ExitCode {
    begin();
    let Ok(server) = server.parse() else { return ExitCode::FAILURE };
    for signal in [Signal::TERM, Signal::HUP, Signal::CONT, Signal::KILL] {
        for pid in commands(server) {
            let _ = kill_process(pid, signal);
        }
        // An interactive shell ignores the first of them.
        if !matches!(signal, Signal::CONT | Signal::KILL) {
            continue;
        }
        let mut waited = Duration::ZERO;
        while waited < STOP_TIMEOUT && !commands(server).is_empty() {
            thread::sleep(POLL);
            waited += POLL;
        }
    }
    match commands(server).len() {
        0 => ExitCode::SUCCESS,
        left => {
            log::error(&format!("cannot stop {} of commands in time", counted(left, "process")));
            ExitCode::FAILURE
        }
    }
}

/// Returns the processes of commands: those in their control groups, and the descendants of the serving process.
fn commands(server: i32) -> Vec<Pid> {
    let all = stats::processes().into_iter().filter_map(|pid| i32::try_from(pid).ok());
    let mut found: BTreeSet<i32> = all.filter(|pid| cgroups::is_command(*pid)).collect();
    let mut parents = vec![server];
    while let Some(parent) = parents.pop() {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for child in threads.flat_map(|thread| numbers(&thread.path().join("children"))) {
            if found.insert(child) {
                parents.push(child);
            }
        }
    }
    // A zombie has no open files.
    found.into_iter().filter(|pid| !is_zombie(*pid)).filter_map(Pid::from_raw).collect()
}

fn numbers(file: &Path) -> Vec<i32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// Returns whether a process is a zombie. In proc_pid_stat(5), the state follows the name, which may contain anything.
fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    #[test]
    fn commands_are_found_with_their_descendants() {
        let mut child = Command::new("sh").args(["-c", "sleep 1000 & wait"]).spawn().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        // The shell and its child.
        while commands(own).len() < 2 {
            thread::sleep(POLL);
        }
        for pid in commands(own) {
            kill_process(pid, Signal::KILL).unwrap();
        }
        child.wait().unwrap();
        while !commands(own).is_empty() {
            thread::sleep(POLL);
        }
    }

    #[test]
    fn systemd_stops_the_commands_before_it_unmounts_their_disk() {
        let text = unit_text(77);
        for line in [
            "After=root.mount local-fs.target",
            "DefaultDependencies=no",
            "Before=shutdown.target",
            "ExecStop=/proc/77/exe stopping 77",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }
}
