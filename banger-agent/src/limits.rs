//! Limits on what commands may open and watch: those of systemd services, and what editors and bundlers need. The
//! kernel's defaults are outdated (4096 files, 128 inotify instances).

use std::fs;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{log, stats};

/// Limit on the open files of a process: what select(2) supports, and what a program may raise it to
/// (systemd-system.conf(5), "DefaultLimitNOFILE=").
const OPEN_FILES: (u64, u64) = (1024, 512 << 10);
/// Limit on the memory that a process may lock, in bytes (systemd-system.conf(5), "DefaultLimitMEMLOCK=").
const LOCKED: u64 = 8 << 20;
/// Enough for the files and directories of a large repository.
const WATCHES: u64 = 512 << 10;
/// Kernel memory for each watch.
const WATCH_SIZE: u64 = 1 << 10;
/// Programs of one user that watch something.
const INSTANCES: u64 = 1024;

/// Sets the limits of this process and its children, and raises those of the guest.
pub fn begin() {
    let most = read("/proc/sys/fs/nr_open").unwrap_or(OPEN_FILES.1);
    for (resource, soft, hard) in
        [(Resource::Nofile, OPEN_FILES.0, OPEN_FILES.1.min(most)), (Resource::Memlock, LOCKED, LOCKED)]
    {
        if let Err(error) = setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) }) {
            log::error(&format!("cannot set the limit {resource:?}: {error}"));
        }
    }
    for (name, value) in
        [("max_user_watches", watches(stats::memory_total())), ("max_user_instances", INSTANCES)]
    {
        let path = format!("/proc/sys/fs/inotify/{name}");
        // The image may set its own value, which its init applies.
        if read(&path).is_some_and(|now| now < value)
            && let Err(error) = fs::write(&path, value.to_string())
        {
            log::error(&format!("cannot set {path}: {error}"));
        }
    }
}

/// Returns how many watches a user may have in a guest with this memory, in bytes: they take a quarter at most.
fn watches(memory: u64) -> u64 {
    WATCHES.min(memory / 4 / WATCH_SIZE)
}

fn read(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_take_a_quarter_of_the_memory_at_most() {
        for (mib, expect) in [(256, 64 << 10), (2048, WATCHES), (65_536, WATCHES), (0, 0)] {
            assert_eq!(watches(mib << 20), expect, "{mib} MiB");
        }
    }
}
