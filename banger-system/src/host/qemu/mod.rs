//! QEMU as the machine monitor: with KVM where the host has it, else with its own translator.

mod args;
mod qmp;
mod sockets;

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use banger_proto::size::Bytes;
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::net::UnixStream;

use self::{
    args::{Acceleration, CHANNELS},
    sockets::Sockets,
};
use super::{blocking::blocking, ring};
use crate::{
    domain::{
        id::VmId,
        machine::{Access, Machine},
        resource::Places,
    },
    ports::{Channel, Check, Error, Launch, Layers, Result, Status, Vmm},
};

/// Where distributions put it.
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
/// What QEMU begins with; distributions put it beside its other firmware.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
const KVM: &str = "/dev/kvm";
/// What a monitor needs beside the guest's memory: its own code, translated code, device buffers.
const OVERHEAD: Bytes = Bytes::mib(512);
/// The console of a guest: some thousand lines of a boot, and then the last of what it prints.
const CONSOLE_LOG: u64 = 16 << 20;
/// The monitor itself says little.
const MONITOR_LOG: u64 = 1 << 20;

/// The monitor.
pub struct Qemu {
    places: Places,
    acceleration: Acceleration,
    sockets: Arc<Sockets>,
}

impl Qemu {
    /// QEMU on this host.
    pub fn new(places: Places) -> Self {
        let sockets = Arc::new(Sockets::new(places.clone()));
        let acceleration = if kvm_works() { Acceleration::Kvm } else { Acceleration::Tcg };
        Self { places, acceleration, sockets }
    }
}

/// Whether guests of any kernel run under KVM here: the device can be opened, and the processor has
/// virtualisation of its own. Some hosts offer the device without it, for guests that are made for them.
fn kvm_works() -> bool {
    let opens = OpenOptions::new().read(true).write(true).open(KVM).is_ok();
    opens && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualisation(&text))
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    flags.unwrap_or_default().split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

#[async_trait]
impl Vmm for Qemu {
    fn layers(&self) -> Layers {
        Layers::Monitor
    }

    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn prepare(&self, machine: &Machine) -> Result<Launch> {
        if !Path::new(PROGRAM).exists() {
            return Err(Error::HostNotReady {
                message: format!("{PROGRAM} is missing; install the package qemu-system-x86"),
            });
        }
        let (machine, places) = (machine.clone(), self.places.clone());
        let (acceleration, sockets) = (self.acceleration, Arc::clone(&self.sockets));
        blocking("prepare a machine", move || prepare(&machine, &places, acceleration, &sockets)).await
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> Result<UnixStream> {
        self.sockets.connect(vm, channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        self.sockets.remove(vm)
    }

    async fn checks(&self) -> Vec<Check> {
        let missing = [PROGRAM, FIRMWARE].into_iter().find(|file| !Path::new(file).exists());
        let program = match missing {
            None => check("qemu", Status::Pass, format!("{PROGRAM} is there"), ""),
            Some(file) => {
                let hint = "install QEMU for this processor (Debian: qemu-system-x86)";
                check("qemu", Status::Fail, format!("{file} is missing"), hint)
            }
        };
        let kvm = match self.acceleration {
            Acceleration::Kvm => check("kvm", Status::Pass, "machines run under KVM".to_owned(), ""),
            Acceleration::Tcg => check(
                "kvm",
                Status::Warn,
                "there is no usable KVM: machines are emulated, and slow".to_owned(),
                "turn on virtualisation in the firmware, or nested virtualisation on the outer host",
            ),
        };
        vec![program, kvm]
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        self.sockets.found()
    }
}

fn check(name: &'static str, status: Status, message: String, hint: &str) -> Check {
    Check { name, status, message, hint: hint.to_owned() }
}

fn prepare(
    machine: &Machine,
    places: &Places,
    acceleration: Acceleration,
    sockets: &Sockets,
) -> Result<Launch> {
    let mut files = vec![("kernel".to_owned(), open(&machine.kernel, Access::ReadOnly)?)];
    files.push(("initrd".to_owned(), initrd(machine)?));
    for (index, drive) in machine.drives.iter().enumerate() {
        files.push((args::drive_name(index), open(&drive.path, drive.access)?));
        if let Some(base) = &drive.base {
            files.push((args::base_name(index), open(base, Access::ReadOnly)?));
        }
    }
    for (name, listener) in sockets.bind(machine.vm)? {
        files.push((name, listener));
    }
    let devices = match acceleration {
        Acceleration::Kvm => vec![PathBuf::from(KVM)],
        Acceleration::Tcg => Vec::new(),
    };
    Ok(Launch {
        vm: machine.vm,
        owner: machine.owner,
        description: format!("banger machine {} of user {}", machine.name, machine.owner),
        argv: args::of(PROGRAM, machine, acceleration),
        files,
        console: log(&places.console_log(machine.vm), CONSOLE_LOG)?,
        log: log(&places.vmm_log(machine.vm), MONITOR_LOG)?,
        memory_max: Bytes(machine.memory.0.saturating_add(OVERHEAD.0)),
        cpu_percent: machine.vcpus * 100,
        devices,
    })
}

fn open(path: &Path, access: Access) -> Result<OwnedFd> {
    let write = access == Access::ReadWrite;
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map(OwnedFd::from).map_err(|error| Error::os(format!("open {}", path.display()), error))
}

/// The archives of the initramfs behind each other, in memory that can no longer be changed.
fn initrd(machine: &Machine) -> Result<OwnedFd> {
    let os = |error: io::Error| Error::os("put the initramfs together", error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("banger-initrd", flags).map_err(|error| os(error.into()))?;
    let mut memory = File::from(memory);
    for path in &machine.initramfs {
        let mut archive =
            File::open(path).map_err(|error| Error::os(format!("open {}", path.display()), error))?;
        io::copy(&mut archive, &mut memory).map_err(os)?;
    }
    memory.write_all(&machine.guest_archive).map_err(os)?;
    // The monitor opens it again by its number in /proc, as a user that does not own it.
    memory.set_permissions(std::fs::Permissions::from_mode(0o444)).map_err(os)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(|error| os(error.into()))?;
    Ok(memory.into())
}

/// Begins a log anew, one for each boot.
fn log(path: &Path, capacity: u64) -> Result<OwnedFd> {
    let os = |error| Error::os(format!("make the log {}", path.display()), error);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).clone();
    let file = options.open(path).map_err(os)?;
    ring::Writer::create(file.try_clone().map_err(os)?, capacity).map_err(os)?;
    Ok(file.into())
}

/// The path of a channel's socket.
fn channel_path(directory: &Path, channel: usize) -> PathBuf {
    debug_assert!(channel < CHANNELS);
    directory.join(format!("agent-{channel}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_a_flag_of_the_processor() {
        assert!(has_virtualisation("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags\t\t: svm\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\nbugs : vmx\n"));
        assert!(!has_virtualisation(""));
    }
}
