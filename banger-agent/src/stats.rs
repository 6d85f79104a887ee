//! Reads the resource usage of the guest from proc(5).

use std::fs;

use banger_proto::guest::facts::{Disk, Process, Stats};

use crate::account;

/// The file systems that banger provides.
const MOUNT_POINTS: [&str; 2] = ["/", "/root"];
/// Microseconds per clock tick, the unit of times in proc(5) on all our architectures (time(7)).
const USEC_PER_TICK: u64 = 1_000_000 / 100;
const PAGE: u64 = 4096;

/// Reads the current values. Unreadable ones are 0.
pub fn now() -> Stats {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (memory, cpu, network) = (read("/proc/meminfo"), read("/proc/stat"), read("/proc/net/dev"));
    let kib = |name: &str| field(&memory, name) * 1024;
    let (received, sent) = traffic(&network);
    Stats {
        uptime_msec: decimal(&read("/proc/uptime"), 1000),
        processors: cpu.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count()
            as u32,
        cpu_usec: busy(&cpu) * USEC_PER_TICK,
        load_hundredths: decimal(&read("/proc/loadavg"), 100),
        memory_total: kib("MemTotal:"),
        memory_available: kib("MemAvailable:"),
        received,
        sent,
        disks: MOUNT_POINTS.iter().filter_map(|point| disk(point)).collect(),
        processes: with_users(processes().into_iter().filter_map(process).collect()),
    }
}

/// Returns the time that all processors together have spent working since the boot, in microseconds.
pub fn busy_usec() -> u64 {
    busy(&fs::read_to_string("/proc/stat").unwrap_or_default()) * USEC_PER_TICK
}

/// Returns the memory of the guest in bytes.
pub fn memory_total() -> u64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") * 1024
}

/// Returns the ids of all processes.
pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The flag of a thread of the kernel, `PF_KTHREAD` of `include/linux/sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Returns whether a process is a thread of the kernel.
pub fn is_kernel_thread(pid: u32) -> bool {
    stat_field(pid, 6)
        .and_then(|flags| flags.parse::<u64>().ok())
        .is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// Returns the state letter of a process.
pub fn state_of(pid: u32) -> Option<char> {
    stat_field(pid, 0)?.chars().next()
}

/// Returns a field of proc_pid_stat(5), counted from the one after the name, which may contain anything.
fn stat_field(pid: u32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split_whitespace().nth(index)?.to_owned())
}

/// Returns the number after a name.
fn field(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Returns the first number, which has two decimals, in units of 1/`scale` (100 or more).
fn decimal(text: &str, scale: u64) -> u64 {
    let word = text.split_whitespace().next().unwrap_or_default();
    let (whole, hundredths) = word.split_once('.').unwrap_or((word, "0"));
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    number(whole) * scale + number(hundredths) * (scale / 100)
}

/// Returns the ticks in which the processors were busy: all but idle and iowait, with guest time counted once.
fn busy(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap_or_default()).collect();
    fields
        .iter()
        .take(8)
        .enumerate()
        .filter(|(index, _)| !matches!(index, 3 | 4))
        .map(|(_, ticks)| ticks)
        .sum()
}

/// Returns the bytes received and sent on all interfaces except the loopback.
fn traffic(text: &str) -> (u64, u64) {
    let rows = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    rows.fold((0, 0), |(received, sent), (_, fields)| {
        let fields: Vec<u64> =
            fields.split_whitespace().map(|word| word.parse().unwrap_or_default()).collect();
        let at = |index: usize| fields.get(index).copied().unwrap_or_default();
        (received + at(0), sent + at(8))
    })
}

fn disk(mount_point: &str) -> Option<Disk> {
    let stat = rustix::fs::statvfs(mount_point).ok()?;
    let mount_point = mount_point.to_owned();
    Some(Disk { mount_point, size: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
}

/// Adds the names of the users.
fn with_users(mut processes: Vec<Process>) -> Vec<Process> {
    let names = account::names();
    for process in &mut processes {
        process.user = names.get(&process.uid).cloned().unwrap_or_default();
    }
    processes
}

/// Reads a process that has a program; kernel threads have none.
fn process(pid: u32) -> Option<Process> {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let arguments = read("cmdline").filter(|bytes| !bytes.is_empty())?;
    let command = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
    let (stat, status) = (read("stat")?, read("status")?);
    let (stat, status) = (String::from_utf8_lossy(&stat), String::from_utf8_lossy(&status));
    // The second field is the name in parentheses, which may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number =
        |index: usize| fields.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
    Some(Process {
        pid,
        uid: u32::try_from(field(&status, "Uid:")).ok()?,
        user: String::new(),
        state: fields.first()?.chars().next()?,
        cpu_usec: (number(11) + number(12)) * USEC_PER_TICK,
        memory: number(21) * PAGE,
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_kernel_are_parsed() {
        assert_eq!(decimal("123.45 6.7\n", 1000), 123_450);
        assert_eq!(decimal("0.07 0.01", 100), 7);
        assert_eq!(decimal("", 100), 0);
        assert_eq!(field("MemTotal:  2048 kB\nMemFree: 1 kB\n", "MemTotal:"), 2048);
        assert_eq!(busy("cpu  1 2 4 800 1600 8 16 32 64 128\ncpu0 1 2\n"), 63);
        let text = "Inter-| x\n face |bytes\n  lo: 9 0 0 0 0 0 0 0 9 0\neth0: 5 0 0 0 0 0 0 0 7 0\n";
        assert_eq!(traffic(text), (5, 7));
    }

    #[test]
    fn threads_of_the_kernel_are_told_apart() {
        assert!(!is_kernel_thread(std::process::id()) && !is_kernel_thread(1) && !is_kernel_thread(u32::MAX));
        assert!(matches!(state_of(std::process::id()), Some('R' | 'S')));
        let threads = processes().into_iter().filter(|pid| is_kernel_thread(*pid));
        assert!(threads.into_iter().all(|pid| process(pid).is_none()));
    }

    #[test]
    fn this_system_has_plausible_stats() {
        let stats = now();
        assert!(stats.uptime_msec > 0 && stats.processors > 0 && stats.memory_total > stats.memory_available);
        assert_eq!(stats.disks.first().map(|disk| disk.mount_point.as_str()), Some("/"));
        let me = stats.processes.iter().find(|process| process.pid == std::process::id());
        assert!(me.is_some_and(|me| me.memory > 0 && !me.command.is_empty()), "{me:?}");
    }
}
