//! Facts that the agent reports about the guest. The host trusts none of them.

use serde::{Deserialize, Serialize};

use super::message::Exit;

/// A detached command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Its number.
    pub id: u64,
    /// Its command line, possibly truncated.
    pub command: String,
    /// The user, as given in the request.
    pub user: String,
    /// Whether it still runs.
    pub running: bool,
    /// When it was started, in microseconds since the Unix epoch.
    pub started_usec: u64,
    /// When it ended, in microseconds since the Unix epoch; 0 if unknown.
    pub ended_usec: u64,
    /// How it ended; absent while it runs, and if the guest was powered off before it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Bytes that it has written.
    pub written: u64,
    /// How many of them are kept.
    pub kept: u64,
    /// The name of the session that it runs in, if it does.
    #[serde(default)]
    pub session: Option<String>,
    /// Whether a client is attached to the session.
    #[serde(default)]
    pub attached: bool,
    /// Whether the session has a terminal.
    #[serde(default)]
    pub terminal: bool,
}

/// A listening socket in the guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListeningPort {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its port.
    pub port: u16,
    /// The local address; `0.0.0.0` or `::` stands for every address.
    pub address: String,
    /// The process that listens; 0 if unknown.
    #[serde(default)]
    pub pid: u32,
    /// The name of the process.
    #[serde(default)]
    pub program: String,
}

/// Resource usage of the guest at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Milliseconds since the boot.
    pub uptime_msec: u64,
    /// The number of processors.
    pub processors: u32,
    /// Time that all processors together have spent working since the boot, in microseconds.
    pub cpu_usec: u64,
    /// The load of the last minute, in hundredths.
    pub load_hundredths: u64,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that programs can still allocate, in bytes.
    pub memory_available: u64,
    /// Bytes received over the network.
    pub received: u64,
    /// Bytes sent over the network.
    pub sent: u64,
    /// File systems.
    pub disks: Vec<Disk>,
    /// Processes, without kernel threads.
    pub processes: Vec<Process>,
}

/// The use of the guest at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Use {
    /// Requests of clients that are being served: commands, shells, copies, forwards.
    pub streams: u32,
    /// Detached commands and sessions that run.
    pub commands: u32,
    /// Established TCP connections with others.
    pub connections: u32,
    /// Time that all processors together have spent working since the boot, in microseconds.
    pub cpu_usec: u64,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount_point: String,
    /// Its size in bytes.
    pub size: u64,
    /// Free space in bytes.
    pub free: u64,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// The name of its user; empty if it has none.
    #[serde(default)]
    pub user: String,
    /// The state letter of proc_pid_stat(5).
    pub state: char,
    /// Processor time that it has used, in microseconds.
    pub cpu_usec: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Its command line, or its name in brackets.
    pub command: String,
}
