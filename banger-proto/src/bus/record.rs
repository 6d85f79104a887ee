//! The rows of the list methods, in the order of their D-Bus structures.

use serde::{Deserialize, Serialize};
use zbus::{OwnedObjectPath, Type};

/// A row of `ListVMs`, `(ssusso)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct VmRow {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// Unique per owner.
    pub name: String,
    /// The owner.
    pub owner_uid: u32,
    /// A state of the lifecycle.
    pub state: String,
    /// The guest's address; empty if it has none.
    pub address: String,
    /// The object.
    pub path: OwnedObjectPath,
}

/// A row of `ListImages`, `(sssutbo)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ImageRow {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// Unique per owner.
    pub name: String,
    /// Its source.
    pub source: String,
    /// The owner.
    pub owner_uid: u32,
    /// Size of the filesystem in bytes.
    pub virtual_size: u64,
    /// Whether every user sees it.
    pub shared: bool,
    /// The object.
    pub path: OwnedObjectPath,
}

/// A row of `ListKernels`, `(ssutbo)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct KernelRow {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// Unique per owner.
    pub name: String,
    /// The owner.
    pub owner_uid: u32,
    /// Bytes on disk.
    pub size: u64,
    /// Whether every user sees it.
    pub shared: bool,
    /// The object.
    pub path: OwnedObjectPath,
}

/// A row of `ListJobs`, `(ssusdo)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Type)]
pub struct JobRow {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// What it does, such as `vm-create`.
    pub kind: String,
    /// The owner.
    pub owner_uid: u32,
    /// `queued`, `running`, `done`, `failed` or `canceled`.
    pub state: String,
    /// 0 to 1, or -1 if unknown.
    pub progress: f64,
    /// The object.
    pub path: OwnedObjectPath,
}

/// A change of a sandbox in `GetHistory`, `(tsbs)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ChangeRow {
    /// When, in microseconds since the Unix epoch.
    pub at_usec: u64,
    /// A state of the lifecycle.
    pub state: String,
    /// Whether the guest answers.
    pub ready: bool,
    /// Why it is in this state.
    pub reason: String,
}

/// A phase of a sandbox's last boot in `GetHistory`, `(st)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PhaseRow {
    /// The name of the phase.
    pub phase: String,
    /// How long it took, in microseconds.
    pub usec: u64,
}

/// A check of `Diagnose` or `Repair`, `(ssss)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct CheckRow {
    /// The name of the check.
    pub check: String,
    /// `pass`, `warn` or `fail`; `fixed` for what `Repair` has done.
    pub status: String,
    /// The finding.
    pub message: String,
    /// How to fix it; empty if there is nothing to fix.
    pub hint: String,
}
