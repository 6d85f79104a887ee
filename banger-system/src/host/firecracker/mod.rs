//! Firecracker as the VMM: only under KVM, small, and fast to start.
//!
//! It is started with the socket of its API and nothing else, configured over it, and then told
//! to boot. In between, its user gets the machine's disks and interfaces.

mod api;
mod grant;
mod sockets;
mod words;

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    id::VmId,
    machine::{Access, Machine},
    monitor::{FIRECRACKER_VCPUS, Wish},
    resource::Places,
};
use banger_jail::ring;
use banger_proto::size::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::net::UnixStream;

use self::api::Api;
use super::{
    blocking::blocking,
    kvm,
    monitor_files::{self, CONSOLE_LOG, MONITOR_LOG},
};
use crate::ports::{
    Channel, Check, Error, JailSpec, NetworkNamespace, OverlayBy, Result, Started, Status, Vmm, VmmCommand,
};

/// Where packages and people put it.
const PROGRAMS: [&str; 3] =
    ["/usr/bin/firecracker", "/usr/libexec/banger/firecracker", "/usr/local/bin/firecracker"];
const TUN: &str = "/dev/net/tun";
/// What a monitor needs beside the guest's memory: page tables, queues, its own code.
const OVERHEAD: Bytes = Bytes::mib(128);
/// How long it may take from its start until its API can be reached, on a busy host.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks for the API. It is there after some 10 ms.
const LOOK: Duration = Duration::from_millis(2);
/// How long the boot may take: the kernel and the initramfs are read into the guest's memory.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of the monitor's last words goes into an error.
const MAX_LAST_WORDS: usize = 300;

/// The monitor.
pub struct Firecracker {
    places: Places,
    /// Where the configuration says that it is.
    configured: Option<PathBuf>,
}

impl Firecracker {
    /// The Firecracker at this path, else where packages put it.
    pub fn new(places: Places, configured: Option<PathBuf>) -> Self {
        Self { places, configured }
    }

    /// Where it is, when it is installed.
    pub fn program(&self) -> Option<PathBuf> {
        let candidates = match &self.configured {
            Some(path) => vec![path.clone()],
            None => PROGRAMS.map(PathBuf::from).into(),
        };
        candidates.into_iter().find(|path| path.is_file())
    }

    fn require(&self) -> Result<PathBuf> {
        self.program().ok_or_else(|| Error::HostNotReady {
            message: "Firecracker is not installed; install it as /usr/bin/firecracker, or use --vmm qemu"
                .to_owned(),
        })
    }

    /// Whether a machine has this monitor's sockets.
    pub fn has(&self, vm: VmId) -> bool {
        self.places.machine_dir(vm).is_dir()
    }

    /// A connection to the API, as soon as there is one to be had.
    async fn reach(&self, vm: VmId, pid: u32) -> Result<UnixStream> {
        let socket = self.places.machine_dir(vm).join(words::API_SOCKET);
        let reached = async {
            loop {
                // Looked at first: what ended after it has made its socket would be waited for in vain.
                let ended = has_ended(pid);
                match sockets::connect(&socket).await {
                    Ok(stream) => return Ok(stream),
                    Err(_) if ended => return Err(self.ended(vm)),
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            }
        };
        let late =
            |_| Error::Timeout { what: "waiting for Firecracker's API".to_owned(), after: API_TIMEOUT };
        tokio::time::timeout(API_TIMEOUT, reached).await.map_err(late)?
    }

    /// The error of a monitor that ended before it had a guest, with the last that it said.
    fn ended(&self, vm: VmId) -> Error {
        let said = last_words(&self.places.vmm_log(vm)).unwrap_or_default();
        let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
        Error::Vmm { message: format!("Firecracker ended at once: {said}") }
    }
}

#[async_trait]
impl Vmm for Firecracker {
    fn overlay_by(&self, _wish: Wish, _vcpus: u32) -> OverlayBy {
        OverlayBy::Host
    }

    async fn jail_spec(&self, machine: &Machine) -> Result<JailSpec> {
        self.require()?;
        if machine.vcpus > FIRECRACKER_VCPUS {
            let refused = banger_domain::monitor::Refused::TooManyVcpus;
            return Err(Error::HostNotReady { message: refused.to_string() });
        }
        sockets::make(&self.places, machine.vm)?;
        let mut devices = vec![PathBuf::from(kvm::DEVICE)];
        for drive in &machine.drives {
            if monitor_files::is_device(&drive.path)? {
                devices.push(drive.path.clone());
            }
        }
        let network =
            if machine.nics.is_empty() { NetworkNamespace::Private } else { NetworkNamespace::Host };
        if network == NetworkNamespace::Host {
            devices.push(TUN.into());
        }
        let directory = Some(self.places.machine_dir(machine.vm));
        Ok(JailSpec { directory, network, ..monitor_files::confinement(machine, OVERHEAD, devices) })
    }

    async fn prepare_launch(&self, machine: &Machine) -> Result<VmmCommand> {
        let program = self.require()?;
        let (machine, places) = (machine.clone(), self.places.clone());
        blocking("prepare the VMM", move || prepare(&machine, &places, &program)).await
    }

    async fn configure(&self, machine: &Machine, started: &Started) -> Result<()> {
        let mut api = Api::over(self.reach(machine.vm, started.pid).await?).await?;
        let told = async {
            api.check_version().await?;
            let (user, granted) = (started.user, machine.clone());
            blocking("give the VMM access to its disks", move || grant::to(user, &granted)).await?;
            for put in words::of(machine) {
                api.put(&put, api::TIMEOUT).await?;
            }
            api.put(&words::START, START_TIMEOUT).await
        };
        match told.await {
            // What it said before it went tells more than that the connection broke.
            Err(Error::Vmm { .. }) if has_ended(started.pid) => Err(self.ended(machine.vm)),
            told => told,
        }
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> Result<UnixStream> {
        sockets::connect_to_guest(&self.places.machine_dir(vm), channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        sockets::remove(&self.places, vm)
    }

    async fn checks(&self) -> Vec<Check> {
        let (status, message, hint) = match self.program() {
            Some(path) => (Status::Pass, format!("{} is installed", path.display()), ""),
            None => (
                Status::Warn,
                "Firecracker is not installed".to_owned(),
                "install it as /usr/bin/firecracker: sandboxes start faster and use less memory with it",
            ),
        };
        vec![Check { name: "firecracker", status, message, hint: hint.to_owned() }]
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let all = monitor_files::socket_dirs(&self.places)?;
        Ok(all.into_iter().filter(|vm| self.has(*vm)).collect())
    }
}

fn prepare(machine: &Machine, places: &Places, program: &Path) -> Result<VmmCommand> {
    let mut files = vec![
        (words::KERNEL.to_owned(), monitor_files::open(&machine.kernel, Access::ReadOnly)?),
        (words::INITRD.to_owned(), monitor_files::initrd(machine)?),
    ];
    for (index, drive) in machine.drives.iter().enumerate() {
        files.push((words::drive_name(index), monitor_files::open(&drive.path, drive.access)?));
    }
    Ok(VmmCommand {
        argv: words::argv(&program.display().to_string(), machine),
        files,
        console: monitor_files::log(&places.console_log(machine.vm), CONSOLE_LOG)?,
        log: monitor_files::log(&places.vmm_log(machine.vm), MONITOR_LOG)?,
    })
}

/// Whether a process is gone, or is there only for whoever waits for it. `/proc` would not tell: processes of
/// other users may be hidden.
fn has_ended(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => {
            let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
        }
        Err(error) => error == Errno::SRCH,
    }
}

/// The last line that a monitor wrote to its log.
fn last_words(log: &Path) -> Option<String> {
    let mut reader = ring::Reader::new(File::open(log).ok()?).ok()?;
    let mut bytes = Vec::new();
    while reader.read(&mut bytes).ok()? {}
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(MAX_LAST_WORDS).collect())
}
