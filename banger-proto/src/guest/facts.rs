//! What the agent tells about the guest. The host trusts none of it.

use serde::{Deserialize, Serialize};

use super::message::Exit;

/// A command that was detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Its number.
    pub id: u64,
    /// Its command line, or the beginning of that.
    pub command: String,
    /// The user that it runs as, as it was asked for.
    pub user: String,
    /// Whether it has not ended.
    pub running: bool,
    /// When it was started, in microseconds since the Unix epoch.
    pub started_usec: u64,
    /// When it ended; 0 where that is not known.
    pub ended_usec: u64,
    /// How it ended; absent while it runs, and where the guest went off before.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Bytes that it has written.
    pub written: u64,
    /// How many of them are kept.
    pub kept: u64,
}

/// Something that listens in the guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListeningPort {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// The address on which it listens; `0.0.0.0` or `::` is every one.
    pub address: String,
    /// The process that listens; 0 where it is not known.
    #[serde(default)]
    pub pid: u32,
    /// The name of its program.
    #[serde(default)]
    pub program: String,
}

/// How the guest is, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Since the boot, in milliseconds.
    pub uptime_msec: u64,
    /// Processors.
    pub processors: u32,
    /// What all processors together have worked since the boot, in microseconds.
    pub cpu_usec: u64,
    /// The load of the last minute, in hundredths.
    pub load_hundredths: u64,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that programs could still have, in bytes.
    pub memory_available: u64,
    /// What came over the network, in bytes.
    pub received: u64,
    /// What went over it, in bytes.
    pub sent: u64,
    /// File systems.
    pub disks: Vec<Disk>,
    /// Processes, but for those of the kernel.
    pub processes: Vec<Process>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount_point: String,
    /// Its size in bytes.
    pub size: u64,
    /// What is left, in bytes.
    pub free: u64,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// The letter of proc_pid_stat(5).
    pub state: char,
    /// What it has worked, in microseconds.
    pub cpu_usec: u64,
    /// Memory that it occupies, in bytes.
    pub memory: u64,
    /// Its command line, or its name in brackets.
    pub command: String,
}
