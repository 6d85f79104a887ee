//! Firecracker as the VMM: small and fast to start, but only with KVM.
//!
//! It is started with nothing but the socket of its API, configured over it, and then told to boot. In between, its
//! user gets access to the sandbox's disks and interfaces.

mod api;
mod grant;
mod requests;
mod sockets;

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    architecture::Architecture,
    id::VmId,
    launch_spec::{Access, LaunchSpec},
    resource::Paths,
    vmm::{FIRECRACKER_VCPUS, VmmChoice},
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
    files::{self, CONSOLE_LOG, VMM_LOG},
    kvm,
};
use crate::{
    host::{blocking::blocking, programs::FIRECRACKER},
    ports::{
        Check, FromHost as _, Status,
        disks::OverlayBy,
        guest_link::{self, Channel},
        supervisor::Started,
        vmm::{Error, JailSpec, NetworkNamespace, Result, Vmm, VmmCommand},
    },
};

const TUN: &str = "/dev/net/tun";
/// What the VMM needs beside the guest's memory: page tables, queues, its own code.
const OVERHEAD: Bytes = Bytes::mib(128);
/// How long its API may take to appear, on a busy host.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look for the API, which appears after some 10 ms.
const POLL: Duration = Duration::from_millis(2);
/// How long the boot request may take: it reads kernel and initramfs into the guest's memory.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of the VMM's last log line goes into an error.
const MAX_LAST_LINE: usize = 300;

/// Firecracker on this host.
pub struct Firecracker {
    paths: Paths,
    /// Its path in the configuration.
    configured: Option<PathBuf>,
}

impl Firecracker {
    /// Returns the Firecracker at this path, or else at the usual ones.
    pub fn new(paths: Paths, configured: Option<PathBuf>) -> Self {
        Self { paths, configured }
    }

    /// Returns its path, if it is installed.
    pub fn program(&self) -> Option<PathBuf> {
        let candidates = match &self.configured {
            Some(path) => vec![path.clone()],
            None => FIRECRACKER.map(PathBuf::from).into(),
        };
        candidates.into_iter().find(|path| path.is_file())
    }

    fn require(&self) -> Result<PathBuf> {
        self.program().ok_or_else(|| {
            Error::not_ready(
                "Firecracker is not installed; install it as /usr/bin/firecracker, or use --vmm qemu",
            )
        })
    }

    /// Returns whether a sandbox has the sockets of this VMM.
    pub fn has(&self, vm: VmId) -> bool {
        self.paths.vmm_dir(vm).is_dir()
    }

    /// Connects to the API as soon as it exists.
    async fn reach(&self, vm: VmId, pid: u32) -> Result<UnixStream> {
        let socket = self.paths.vmm_dir(vm).join(requests::API_SOCKET);
        let reached = async {
            loop {
                // Checked first: a VMM that ends after it made its socket would be waited for in vain.
                let ended = has_ended(pid);
                match sockets::connect(&socket).await {
                    Ok(stream) => return Ok(stream),
                    Err(_) if ended => return Err(self.ended(vm)),
                    Err(_) => tokio::time::sleep(POLL).await,
                }
            }
        };
        let late = |_| Error::timeout("waiting for Firecracker's API", API_TIMEOUT);
        tokio::time::timeout(API_TIMEOUT, reached).await.map_err(late)?
    }

    /// Returns the error of a VMM that ended before its guest ran, with the last line of its log.
    fn ended(&self, vm: VmId) -> Error {
        let said = last_log_line(&self.paths.vmm_log(vm)).unwrap_or_default();
        let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
        Error::Failed { message: format!("Firecracker ended at once: {said}") }
    }
}

#[async_trait]
impl Vmm for Firecracker {
    fn overlay_by(&self, _wish: VmmChoice, _vcpus: u32) -> OverlayBy {
        OverlayBy::Host
    }

    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec> {
        self.require()?;
        if spec.vcpus > FIRECRACKER_VCPUS {
            let refused = banger_domain::vmm::Refused::TooManyVcpus;
            return Err(Error::not_ready(refused.to_string()));
        }
        sockets::make(&self.paths, spec.vm)?;
        let mut devices = vec![PathBuf::from(kvm::DEVICE)];
        for drive in &spec.drives {
            if files::is_device(&drive.path)? {
                devices.push(drive.path.clone());
            }
        }
        let network = if spec.nics.is_empty() { NetworkNamespace::Private } else { NetworkNamespace::Host };
        if network == NetworkNamespace::Host {
            devices.push(TUN.into());
        }
        let directory = Some(self.paths.vmm_dir(spec.vm));
        Ok(JailSpec { directory, network, ..files::vmm_jail(spec, OVERHEAD, devices) })
    }

    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        let program = self.require()?;
        let (spec, paths) = (spec.clone(), self.paths.clone());
        blocking("prepare the VMM", move || prepare(&spec, &paths, &program)).await
    }

    async fn configure(&self, spec: &LaunchSpec, started: &Started) -> Result<()> {
        let mut api = Api::over(self.reach(spec.vm, started.pid).await?).await?;
        let told = async {
            api.check_version().await?;
            let (user, granted) = (started.user, spec.clone());
            blocking("give the VMM access to its disks", move || grant::to(user, &granted)).await?;
            for put in requests::of(Architecture::HOST, spec) {
                api.put(&put, api::TIMEOUT).await?;
            }
            api.put(&requests::START, START_TIMEOUT).await
        };
        match told.await {
            // Its last log line says more than a broken connection.
            Err(Error::Failed { .. }) if has_ended(started.pid) => Err(self.ended(spec.vm)),
            told => told,
        }
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<UnixStream> {
        sockets::connect_to_guest(&self.paths.vmm_dir(vm), channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        sockets::remove(&self.paths, vm)
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
        let all = files::socket_dirs(&self.paths)?;
        Ok(all.into_iter().filter(|vm| self.has(*vm)).collect())
    }
}

fn prepare(spec: &LaunchSpec, paths: &Paths, program: &Path) -> Result<VmmCommand> {
    let mut files = vec![
        (requests::KERNEL.to_owned(), files::open(&spec.kernel, Access::ReadOnly)?),
        (requests::INITRD.to_owned(), files::initrd(spec)?),
    ];
    for (index, drive) in spec.drives.iter().enumerate() {
        files.push((requests::drive_name(index), files::open(&drive.path, drive.access)?));
    }
    Ok(VmmCommand {
        argv: requests::argv(&program.display().to_string(), spec),
        files,
        console: files::log(&paths.console_log(spec.vm), CONSOLE_LOG)?,
        log: files::log(&paths.vmm_log(spec.vm), VMM_LOG)?,
    })
}

/// Returns whether a process is gone or a zombie. `/proc` may hide processes of other users.
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

/// Returns the last line of a VMM's log.
fn last_log_line(log: &Path) -> Option<String> {
    let mut reader = ring::Reader::new(File::open(log).ok()?).ok()?;
    let mut bytes = Vec::new();
    while reader.read(&mut bytes).ok()? {}
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(MAX_LAST_LINE).collect())
}
