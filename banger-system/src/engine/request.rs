//! What can be asked of the engine: owned, immutable and already parsed.

use std::{collections::BTreeMap, os::fd::OwnedFd, time::Duration};

use banger_domain::{
    id::Uid,
    name::{Name, Reference},
    net::nic::Nat,
    ssh::AuthorizedKey,
    timezone::Timezone,
    vm::{Init, Lifetime},
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;

use crate::ports::{images::Part, registry::Source};

/// Makes a machine. What is absent has the default of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVm {
    /// The owner.
    pub owner: Uid,
    /// Its name; a generated one when absent.
    pub name: Option<Name>,
    /// The image.
    pub image: Option<Reference>,
    /// The kernel; the image's own, else the default kernel, when absent.
    pub kernel: Option<Reference>,
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Memory.
    pub memory: Option<Bytes>,
    /// Size of the work disk.
    pub disk_size: Option<Bytes>,
    /// Size of the system disk.
    pub root_size: Option<Bytes>,
    /// Host name in the guest; the machine's name when absent.
    pub hostname: Option<Name>,
    /// What the agent hands over to.
    pub init: Init,
    /// The monitor that it is to run under.
    pub vmm: VmmChoice,
    /// Whether the guest reaches what lies beyond the host.
    pub nat: Nat,
    /// The guest's time zone; the image's own when absent.
    pub timezone: Option<Timezone>,
    /// Whom its ssh server lets in.
    pub authorized_keys: Vec<AuthorizedKey>,
    /// How long it is to be kept.
    pub lifetime: Lifetime,
    /// Words of the user's own.
    pub labels: BTreeMap<String, String>,
    /// Whether and how it is started at once.
    pub start: Option<Start>,
}

/// Boots a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// What the job waits for.
    pub wait_for: WaitFor,
    /// How long the guest may take to become ready; the default of the configuration when absent.
    pub ready_timeout: Option<Duration>,
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
    /// The monitor's process.
    Running,
    /// The guest's agent.
    #[default]
    Agent,
}

/// Shuts a machine down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stop {
    /// How long the guest may take; the default of the configuration when absent.
    pub timeout: Option<Duration>,
    /// Whether the guest is asked at all.
    pub manner: Manner,
}

/// How a machine is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// The guest writes its data and powers off; it is killed when that takes too long.
    #[default]
    Clean,
    /// The monitor is killed at once.
    Forced,
}

/// Makes an image of a user's file.
#[derive(Debug)]
pub struct ImportImage {
    /// The owner.
    pub owner: Uid,
    /// Its name.
    pub name: Name,
    /// Whether every user sees it.
    pub shared: bool,
    /// The kernel that its machines boot.
    pub kernel: Option<Reference>,
    /// What it is made of.
    pub content: Original,
}

/// A file of a user's with an image.
#[derive(Debug)]
pub enum Original {
    /// A raw ext4 file system, or an archive of a root file system.
    Rootfs(OwnedFd),
    /// An OCI image, and where its parts are: the manifest, the configuration, and each layer.
    Layout(OwnedFd, Vec<Part>),
}

/// Makes an image of a registry's.
#[derive(Debug)]
pub struct PullImage {
    /// The owner.
    pub owner: Uid,
    /// Where it is, and who asks for it.
    pub source: Source,
    /// Whether it is looked for in catalogs.
    pub whence: Whence,
    /// Its name; one after the reference when absent.
    pub name: Option<Name>,
    /// Whether every user sees it.
    pub shared: bool,
    /// The kernel that its machines boot.
    pub kernel: Option<Reference>,
    /// What becomes of an image of the same name that is not of the same reference.
    pub other: Other,
}

/// Where an image is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Whence {
    /// In its registry.
    #[default]
    Registry,
    /// By this name in catalogs, and in its registry when no catalog has it.
    CatalogElseRegistry(Name),
    /// By this name in catalogs alone.
    Catalog(Name),
}

/// Makes a kernel of a catalog's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullKernel {
    /// The owner.
    pub owner: Uid,
    /// What catalogs call it.
    pub entry: Name,
    /// Its name; that of the entry when absent.
    pub name: Option<Name>,
    /// Whether every user sees it.
    pub shared: bool,
    /// What becomes of another kernel of the same name.
    pub other: Other,
}

/// What becomes of something else that has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Other {
    /// It stays, and the request is refused.
    #[default]
    Stays,
    /// It goes, unless it is used.
    Goes,
}

/// Makes a kernel of a user's files.
#[derive(Debug)]
pub struct ImportKernel {
    /// The owner.
    pub owner: Uid,
    /// Its name.
    pub name: Name,
    /// Whether every user sees it.
    pub shared: bool,
    /// The distribution's `vmlinuz`, or an ELF `vmlinux`.
    pub vmlinuz: OwnedFd,
    /// A tar of the modules directory.
    pub modules: Option<OwnedFd>,
}

/// What is to be changed of a machine; what is absent stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Configure {
    /// Virtual processors, from the next start on.
    pub vcpus: Option<u32>,
    /// Memory, from the next start on.
    pub memory: Option<Bytes>,
    /// Size of the work disk, which only grows.
    pub disk_size: Option<Bytes>,
    /// Size of the system disk, which only grows.
    pub root_size: Option<Bytes>,
    /// Whether the guest reaches what lies beyond the host, at once.
    pub nat: Option<Nat>,
}
