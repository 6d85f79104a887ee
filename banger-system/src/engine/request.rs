//! Requests to the engine: owned, immutable and already parsed.

use std::{collections::BTreeMap, os::fd::OwnedFd, time::Duration};

use banger_domain::{
    egress::Egress,
    id::Uid,
    idle::{IdleAction, IdlePolicy},
    name::{Name, Reference},
    net::port::Port,
    restart::RestartPolicy,
    ssh::AuthorizedKey,
    timezone::Timezone,
    vm::{Init, Lifetime},
    vmm::VmmChoice,
};
use banger_image::oci::{config::ConfigChange, platform::Platform};
use banger_proto::size::Bytes;

use crate::ports::{image_files::FileRange, registry::Source, wake::Cause};

/// Creates a sandbox. Absent fields have the configured default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVm {
    /// The owner.
    pub owner: Uid,
    /// Its name; generated if absent.
    pub name: Option<Name>,
    /// The image.
    pub image: Option<Reference>,
    /// The kernel; if absent, the image's own, else the default kernel.
    pub kernel: Option<Reference>,
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Memory.
    pub memory: Option<Bytes>,
    /// Size of the work disk.
    pub disk_size: Option<Bytes>,
    /// Size of the system disk.
    pub root_size: Option<Bytes>,
    /// Host name in the guest; the sandbox's name if absent.
    pub hostname: Option<Name>,
    /// The program that the agent hands over to.
    pub init: Init,
    /// The VMM to use.
    pub vmm: VmmChoice,
    /// What the guest reaches beyond the host.
    pub egress: Egress,
    /// The guest's time zone; the image's own if absent.
    pub timezone: Option<Timezone>,
    /// Keys that may log in by SSH.
    pub authorized_keys: Vec<AuthorizedKey>,
    /// How long the sandbox is kept.
    pub lifetime: Lifetime,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// What happens when it idles, if anything.
    pub idle: Option<IdlePolicy>,
    /// Which ends start it again.
    pub restart: RestartPolicy,
    /// Whether it starts when the host boots.
    pub autostart: bool,
    /// The ports to publish; those without a number of the host get a free one.
    pub ports: Vec<Port>,
    /// How to start it; not started if absent.
    pub start: Option<Start>,
}

/// Starts a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// What the job waits for.
    pub wait_for: WaitFor,
    /// How long the guest may take to become ready; the configured default if absent.
    pub ready_timeout: Option<Duration>,
    /// What happens to the memory of a suspended guest.
    pub memory: KeepMemory,
    /// Why it starts.
    pub cause: StartCause,
}

/// Why a sandbox starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartCause {
    /// A user asked for it.
    #[default]
    User,
    /// The host has booted.
    HostBoot,
    /// It has ended, and its restart policy starts it again.
    Restart,
    /// Something uses it while it sleeps.
    Wake(Cause),
}

/// What happens to the memory of a suspended guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepMemory {
    /// The guest continues with it.
    #[default]
    Yes,
    /// It is discarded, and the guest boots.
    No,
}

/// What happens to a sandbox whose guest reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReboot {
    /// It boots again.
    #[default]
    Boot,
    /// It stops.
    Stop,
}

/// What a start waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitFor {
    /// The VMM's process.
    Running,
    /// The guest's agent.
    #[default]
    Agent,
}

/// Stops a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stop {
    /// How long the guest may take; the configured default if absent.
    pub timeout: Option<Duration>,
    /// Whether the guest takes part.
    pub mode: StopMode,
}

/// How a sandbox is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopMode {
    /// The guest syncs its disks and powers off; it is killed if that takes too long.
    #[default]
    Graceful,
    /// The VMM is killed at once.
    Forced,
}

/// Imports an image from a user's file.
#[derive(Debug)]
pub struct ImportImage {
    /// The owner.
    pub owner: Uid,
    /// Its name.
    pub name: Name,
    /// Whether it is shared with all users.
    pub shared: bool,
    /// The kernel that its sandboxes boot.
    pub kernel: Option<Reference>,
    /// The file.
    pub content: ImportSource,
}

/// Makes an image of a sandbox's system disk.
#[derive(Debug)]
pub struct CommitVm {
    /// The owner of the image.
    pub owner: Uid,
    /// Its name.
    pub name: Name,
    /// How its programs run, where that differs from the sandbox's image.
    pub config: ConfigChange,
    /// What to do about another image of the same name.
    pub on_conflict: OnConflict,
}

/// Makes new sandboxes with the disks of another one, and with its memory if it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkVm {
    /// How many.
    pub count: u32,
    /// Their names, as many as sandboxes; if there are none, the sandbox's own name with numbers.
    pub names: Vec<Name>,
    /// The snapshot of the sandbox that they are made of, instead of what the sandbox is now.
    pub snapshot: Option<Name>,
    /// How long they stay.
    pub lifetime: Lifetime,
}

/// A user's file with an image.
#[derive(Debug)]
pub enum ImportSource {
    /// A raw ext4 file system, or a tar archive of a root file system.
    Rootfs(OwnedFd),
    /// An image in a file, where its parts are (the manifest, the configuration, and each layer), and for which
    /// platform it has to be.
    Layout(OwnedFd, Vec<FileRange>, Platform),
}

/// Pulls an image.
#[derive(Debug)]
pub struct PullImage {
    /// The owner.
    pub owner: Uid,
    /// The image's address, platform and credentials.
    pub source: Source,
    /// Where to look for it.
    pub from: PullSource,
    /// Its name; derived from the reference if absent.
    pub name: Option<Name>,
    /// Whether it is shared with all users.
    pub shared: bool,
    /// The kernel that its sandboxes boot.
    pub kernel: Option<Reference>,
    /// What to do about another image of the same name.
    pub on_conflict: OnConflict,
}

/// Where an image is pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PullSource {
    /// Its registry.
    #[default]
    Registry,
    /// The catalogs by this name, else its registry.
    CatalogElseRegistry(Name),
    /// The catalogs by this name only.
    Catalog(Name),
}

/// Pulls a kernel from a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullKernel {
    /// The owner.
    pub owner: Uid,
    /// Its name in the catalog.
    pub entry: Name,
    /// Its name; the entry's if absent.
    pub name: Option<Name>,
    /// Whether it is shared with all users.
    pub shared: bool,
    /// What to do about another kernel of the same name.
    pub on_conflict: OnConflict,
}

/// What to do about another object of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// The request is refused.
    #[default]
    Fail,
    /// It is replaced, unless it is used.
    Replace,
}

/// Imports a kernel from a user's files.
#[derive(Debug)]
pub struct ImportKernel {
    /// The owner.
    pub owner: Uid,
    /// Its name.
    pub name: Name,
    /// Whether it is shared with all users.
    pub shared: bool,
    /// The distribution's `vmlinuz`, or an ELF `vmlinux`.
    pub vmlinuz: OwnedFd,
    /// A tar of the modules directory.
    pub modules: Option<OwnedFd>,
}

/// A change of what a sandbox may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressChange {
    /// Another policy.
    Replace(Egress),
    /// Entries to add, then entries to remove.
    Entries {
        /// What is added.
        allow: Egress,
        /// What is removed.
        deny: Egress,
    },
}

impl EgressChange {
    /// Returns whether the sandbox may reach something that it may not reach yet.
    pub fn adds(&self) -> bool {
        let (Self::Replace(added) | Self::Entries { allow: added, .. }) = self;
        *added != Egress::Nothing
    }
}

impl From<Egress> for EgressChange {
    fn from(policy: Egress) -> Self {
        Self::Replace(policy)
    }
}

/// Changes the settings of a sandbox; absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configure {
    /// Virtual processors, from the next start on.
    pub vcpus: Option<u32>,
    /// Memory, from the next start on.
    pub memory: Option<Bytes>,
    /// Size of the work disk, which only grows.
    pub disk_size: Option<Bytes>,
    /// Size of the system disk, which only grows.
    pub root_size: Option<Bytes>,
    /// What the guest reaches beyond the host. Applies at once.
    pub egress: Option<EgressChange>,
    /// Which ends start it again.
    pub restart: Option<RestartPolicy>,
    /// Whether it starts when the host boots.
    pub autostart: Option<bool>,
    /// Labels to set. Others stay.
    pub labels: BTreeMap<String, String>,
    /// Keys of labels to remove first.
    pub removed_labels: Vec<String>,
    /// What happens when it idles: another policy, or none.
    pub idle: Option<Option<IdlePolicy>>,
}

impl Configure {
    /// Returns whether the sandbox gets resources that it does not have yet, or starts by itself.
    pub fn adds_resources(&self) -> bool {
        let sizes = [self.memory, self.disk_size, self.root_size];
        let wakes = self.idle.flatten().is_some_and(|policy| policy.action == IdleAction::Suspend);
        let restarts = self.restart.is_some_and(|policy| policy != RestartPolicy::No);
        let starts = restarts || wakes || self.autostart == Some(true);
        let reaches_out = self.egress.as_ref().is_some_and(EgressChange::adds);
        self.vcpus.is_some() || sizes.iter().any(Option::is_some) || reaches_out || starts
    }
}
