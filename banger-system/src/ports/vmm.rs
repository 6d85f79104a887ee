//! The VMMs.

use std::{os::fd::OwnedFd, path::PathBuf};

use async_trait::async_trait;
use banger_domain::{
    id::{Uid, VmId},
    launch_spec::LaunchSpec,
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;

use super::{
    Check, FromHost as _, HostError,
    captures::HostFacts,
    disks::OverlayBy,
    guest_link::{self, Channel},
    supervisor::Started,
    templates::TemplateKey,
};

/// A VMM: its command, its configuration and its channels.
///
/// A start calls, in this order: [`Vmm::jail_spec`], [`Supervisor::start_jail`], [`Vmm::prepare_launch`],
/// [`EmptyJail::run`], [`Vmm::configure`].
///
/// [`Supervisor::start_jail`]: super::supervisor::Supervisor::start_jail
/// [`EmptyJail::run`]: super::supervisor::EmptyJail::run
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Returns who combines image and writes, for a VM with this choice of VMM and this many processors.
    fn overlay_by(&self, wish: VmmChoice, vcpus: u32) -> OverlayBy;
    /// Chooses the VMM, creates an empty directory for its sockets, and returns what its process needs from the host.
    /// Replaces an earlier directory, so a repeat is safe while no VMM runs. Fails with [`HostError::NotReady`] if no
    /// VMM can run this VM.
    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec>;
    /// Creates the sockets, opens the files, and returns the command to run. Must be called once, after
    /// [`Vmm::jail_spec`].
    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand>;
    /// Configures the running VMM as far as its arguments do not, and boots the guest. Must be called once. Creates
    /// nothing that outlives the process. Fails with [`Error::Failed`] if the VMM exits or refuses.
    async fn configure(&self, _spec: &LaunchSpec, _started: &Started) -> Result<()> {
        Ok(())
    }
    /// Returns the key of the template that a VM can start from; none if its VMM knows no templates. Must be called
    /// after [`Vmm::jail_spec`].
    async fn template_key(&self, _spec: &LaunchSpec) -> Result<Option<TemplateKey>> {
        Ok(None)
    }
    /// Like [`Vmm::prepare_launch`], for a VM that exists to be captured: its disks are empty, its interfaces lead
    /// nowhere, and it has no identity. It has as many of each as its description says.
    async fn prepare_template(&self, _spec: &LaunchSpec) -> Result<VmmCommand> {
        Err(no_captures())
    }
    /// Stops a VM that was started with [`Vmm::prepare_template`], and copies its memory and the state of its devices.
    /// Must be called once. The VM does not run again.
    async fn capture(&self, _vm: VmId) -> Result<Capture> {
        Err(no_captures())
    }
    /// Like [`Vmm::prepare_launch`], for a VM that continues from a capture. It must have the processors, the memory,
    /// and as many disks and interfaces as the captured VM. The guest finds its own disks, and interfaces with the
    /// captured VM's hardware address.
    async fn prepare_child(&self, _spec: &LaunchSpec, _capture: &Capture) -> Result<VmmCommand> {
        Err(no_captures())
    }
    /// Loads a capture into a VMM that was started with [`Vmm::prepare_child`], and lets the guest run. Replaces
    /// [`Vmm::configure`]. Must be called once. Fails with [`Error::Failed`] if the capture does not fit.
    async fn resume(&self, _vm: VmId, _capture: &Capture) -> Result<()> {
        Err(no_captures())
    }
    /// Returns what the state of a guest in this VMM depends on, on this host. Fails with [`HostError::NotReady`] if it
    /// cannot be saved.
    async fn facts(&self, _vm: VmId) -> Result<HostFacts> {
        Err(Error::not_ready("only QEMU can suspend sandboxes; create it again with --vmm qemu"))
    }
    /// Makes the guest of a running VM stand still until [`Vmm::go_on`]. Then its disks are complete on the host. A repeat
    /// is safe.
    async fn halt(&self, vm: VmId) -> Result<()> {
        self.facts(vm).await.map(drop)
    }
    /// Makes a VM whose guest stands still write to these layers, one for each disk, the system disk's first. What it has
    /// written before is only read from then on. Happens for all disks or for none.
    async fn switch_layers(&self, vm: VmId, _layers: Vec<OwnedFd>) -> Result<()> {
        self.facts(vm).await.map(drop)
    }
    /// Stops the guest of a running VM, and writes its memory and the state of its devices into a pipe. Then its disks
    /// are complete on the host. The VM stands still, also after a failure, until [`Vmm::go_on`].
    async fn save(&self, vm: VmId, _to: OwnedFd) -> Result<()> {
        self.facts(vm).await.map(drop)
    }
    /// Makes a guest run that stands still: after [`Vmm::halt`], [`Vmm::save`], whether that has ended or not, or [`Vmm::load`].
    /// A repeat is safe.
    async fn go_on(&self, vm: VmId) -> Result<()> {
        self.facts(vm).await.map(drop)
    }
    /// Like [`Vmm::prepare_launch`], for a VM that will [`Vmm::load`] what was saved.
    async fn prepare_resume(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        Err(self.facts(spec.vm).await.err().unwrap_or_else(no_captures))
    }
    /// Loads into a VMM of [`Vmm::prepare_resume`] what [`Vmm::save`] wrote. The guest stands still until
    /// [`Vmm::go_on`]. Must be called once. Fails with [`Error::Failed`] if it does not fit.
    async fn load(&self, vm: VmId, _from: OwnedFd) -> Result<()> {
        self.facts(vm).await.map(drop)
    }
    /// Returns whether the guest of a running VMM has begun to run. A service that ended between two steps of a start
    /// leaves a VMM whose guest never will.
    async fn has_begun(&self, _vm: VmId) -> Result<bool> {
        Ok(true)
    }
    /// Connects to the guest's agent, without a greeting. A stream is a free one for its purpose, else the call fails
    /// with [`guest_link::Error::NoFreeStream`]. Only the service uses the control channel.
    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<tokio::net::UnixStream>;
    /// Removes the sockets of a VM. A repeat is safe.
    async fn remove_sockets(&self, vm: VmId) -> Result<()>;
    /// Checks what this needs from the host.
    async fn checks(&self) -> Vec<Check>;
    /// Returns the VMs that have sockets.
    async fn found(&self) -> Result<Vec<VmId>>;
}

/// A stopped guest, from which any number of others continue. Both files are in memory, and cannot be changed.
#[derive(Debug)]
pub struct Capture {
    /// The state of the processors and devices.
    pub state: OwnedFd,
    /// The guest's memory.
    pub memory: OwnedFd,
}

fn no_captures() -> Error {
    Error::not_ready("this VMM cannot start sandboxes from templates; use QEMU")
}

/// What the process of a VM may use on the host: the result of [`Vmm::jail_spec`].
///
/// The jail is started before the rest of the VM is created, because starting it takes longer.
#[derive(Debug)]
pub struct JailSpec {
    /// The sandbox.
    pub vm: VmId,
    /// Its owner.
    pub owner: Uid,
    /// One line for people.
    pub description: String,
    /// The most memory that the process may use.
    pub memory_max: Bytes,
    /// Processors that the process may use, in percent of one.
    pub cpu_percent: u32,
    /// Devices that it may open, such as `/dev/kvm`.
    pub devices: Vec<PathBuf>,
    /// A directory that the process sees as `/machine` ([`VM_DIRECTORY`](banger_jail::jail::VM_DIRECTORY))
    /// and may write to. Files that it creates there are open to everybody who may pass the parent directory.
    pub directory: Option<PathBuf>,
    /// The network namespace of the process.
    pub network: NetworkNamespace,
}

/// The command to run in a jail: the result of [`Vmm::prepare_launch`].
#[derive(Debug)]
pub struct VmmCommand {
    /// Absolute path and arguments. `{fd:NAME}` stands for the number that the file NAME has in the process.
    pub argv: Vec<String>,
    /// Files that the process inherits, by name. They get the numbers from `banger_jail::message::FIRST_FILE` on.
    pub files: Vec<(String, OwnedFd)>,
    /// The ring file of the serial console, which is the process's standard output.
    pub console: OwnedFd,
    /// The ring file of the process's standard error.
    pub log: OwnedFd,
}

/// The network namespace of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// An empty one of its own.
    Private,
    /// The host's, where it may attach to a TAP that its user owns.
    Host,
}

/// Why a VMM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VMM exited, or refused a request.
    #[error("{message}")]
    Failed {
        /// What it said.
        message: String,
    },
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
