//! Runs VMMs as plain processes on hosts without systemd. Each has a shim as its parent, which outlives this service
//! and builds the jail that systemd would.
//!
//! A record of the shim is stored beside the sandbox's sockets. It is written before the shim gets its order, and a
//! shim that loses the service before its order ends, so every running VMM has a record. The shim writes the VMM's
//! exit status into a second file, since only the parent of a process can ask the kernel for it. Limits of memory and
//! processor time are not enforced here: they need a control group.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    id::{Uid, VmId},
    resource::Paths,
};
use banger_jail::jail::Jail;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use super::shim::{self, Reply};
use crate::{
    host::{blocking::blocking, programs},
    ports::{
        FromHost as _,
        supervisor::{EmptyJail, Ended, Error, Result, Started, Supervisor, Usage},
        vmm::{JailSpec, NetworkNamespace, VmmCommand},
    },
};

/// The uids of sandboxes. systemd reserves these numbers for dynamic users (its docs/UIDS-GIDS.md), and without
/// systemd nothing else uses them. The last ones are for import workers ([`super::worker_process`]).
const USERS: std::ops::RangeInclusive<u32> = 61_184..=65_263;
/// How long a shim may take to write its VMM's last output after that was killed.
const SHIM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the kernel may take to end a killed process.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
const RECORD: &str = "process.json";
const END: &str = "ended";
/// Longer than any exit status in words.
const MAX_END: u64 = 32;
/// There are no limits of memory here, so the guest's memory counts against it.
const OOM_SCORE: u16 = 200;
const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// The supervisor.
#[derive(Clone)]
pub struct ProcessSupervisor {
    paths: Paths,
    /// Held from the choice of a uid until it is in a record.
    users: Arc<Mutex<()>>,
}

/// Identifies a sandbox's shim. The kernel reuses pids, but a pid, the start time of the process and the boot to
/// which that time belongs are unique.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    boot: String,
    pid: i32,
    began: u64,
    user: u32,
}

impl ProcessSupervisor {
    /// Returns a supervisor that keeps its records below these paths.
    pub fn new(paths: Paths) -> Self {
        Self { paths, users: Arc::default() }
    }

    fn start_shim(&self, wanted: JailSpec) -> Result<Shim> {
        let directory = self.paths.socket_dir(wanted.vm);
        let os = |error| Error::os(format!("make the record of a process in {}", directory.display()), error);
        if self.shim(wanted.vm)?.is_some_and(|shim| shim.lives()) {
            return Err(Error::Exited {
                message: format!("the sandbox {} already has a process", wanted.vm),
            });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(os)?;
        let jail = self.paths.jail();
        DirBuilder::new().recursive(true).mode(0o700).create(&jail).map_err(os)?;
        let end = new_file(&directory.join(END)).map_err(os)?;

        let (ours, theirs) = shim::socket_pair()?;
        let (child, user) = {
            let _choosing = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let user = self.free_user(wanted.vm)?;
            let mut child = programs::start(&programs::shim(&self.paths), theirs)?;
            if let Err(error) = Record::of(&child, user).and_then(|record| record.write(&directory)) {
                end_child(&mut child);
                return Err(os(error));
            }
            (child, user)
        };
        let jail = Jail {
            root: jail,
            visible: shim::visible(&self.paths),
            groups: wanted
                .devices
                .iter()
                .filter_map(|device| fs::metadata(device).ok())
                .map(|m| m.gid())
                .collect(),
            devices: wanted.devices,
            directory: wanted.directory,
            keeps_network: wanted.network == NetworkNamespace::Host,
            oom_score: OOM_SCORE,
            user,
        };
        Ok(Shim { child, socket: ours, jail, end, directory })
    }

    /// Returns a uid that no other sandbox and no account has.
    fn free_user(&self, vm: VmId) -> Result<u32> {
        let taken: HashSet<u32> = self.records()?.into_iter().map(|(_, record)| record.user).collect();
        let count = USERS.end() - USERS.start() + 1;
        // Each sandbox begins at another number, so that a uid is not reused at once.
        let first =
            vm.to_string().bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let mut users = (0..count).map(|step| USERS.start() + (first % count + step) % count);
        let free = users.find(|user| !taken.contains(user) && uzers::get_user_by_uid(*user).is_none());
        free.ok_or_else(|| Error::not_ready("all user ids for sandboxes are in use"))
    }

    /// Returns the sandboxes with a record, whether or not their processes exist.
    fn records(&self) -> Result<Vec<(VmId, Record)>> {
        let directory = self.paths.sockets();
        let os = |error| Error::os(format!("read {}", directory.display()), error);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(os)?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let name = entry.map_err(os)?.file_name();
            let Some(vm) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            records.extend(self.record(vm)?.map(|record| (vm, record)));
        }
        Ok(records)
    }

    fn record(&self, vm: VmId) -> Result<Option<Record>> {
        let path = self.paths.socket_dir(vm).join(RECORD);
        let doing = || format!("read {}", path.display());
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::os(doing(), error)),
            // Records appear whole, so an unreadable one is not banger's, and must not hide the others.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .inspect_err(|error| tracing::warn!(%vm, %error, "the record of a process is damaged"))
                .ok()),
        }
    }

    /// Returns a sandbox's shim. It may have ended if nobody has waited for it.
    fn shim(&self, vm: VmId) -> Result<Option<Process>> {
        let Some(record) = self.record(vm)? else { return Ok(None) };
        let os = |error| Error::os("look at the process of a sandbox", error);
        if record.boot != boot_id().map_err(os)? {
            return Ok(None);
        }
        let process = Process::open(record.pid).map_err(os)?;
        Ok(process.filter(|process| Stat::read(process.pid).is_some_and(|stat| stat.began == record.began)))
    }
}

/// A shim that waits for its order, which describes the jail to build.
struct Shim {
    child: Child,
    socket: OwnedFd,
    jail: Jail,
    end: File,
    directory: PathBuf,
}

impl Shim {
    fn run_now(mut self, launch: VmmCommand) -> Result<Started> {
        let (pid, user) = (self.child.id(), self.jail.user);
        let told = match shim::order(&self.socket, launch, Some((self.jail, self.end.into()))) {
            // It is in a namespace of its own by then, and its answer has the pid of that namespace.
            Ok(Reply::Started { .. }) => return Ok(Started { unit: String::new(), pid, user }),
            Ok(Reply::Ended) => Error::Exited { message: "the shim ended before the VMM started".to_owned() },
            Err(error) => error,
        };
        end_child(&mut self.child);
        remove_files(&self.directory)?;
        Err(told)
    }
}

impl ProcessSupervisor {
    fn signal_vmm(&self, vm: VmId, signal: i32) -> Result<()> {
        let vmm = self.shim(vm)?.map(|shim| shim.child()).transpose()?.flatten();
        vmm.map_or(Ok(()), |vmm| vmm.send(signal))
    }
}

#[async_trait]
impl EmptyJail for Shim {
    async fn run(self: Box<Self>, launch: VmmCommand) -> Result<Started> {
        blocking("start the process of a sandbox", move || self.run_now(launch)).await
    }
}

#[async_trait]
impl Supervisor for ProcessSupervisor {
    async fn start_jail(&self, wanted: JailSpec) -> Result<Box<dyn EmptyJail>> {
        let supervisor = self.clone();
        let shim = blocking("start the process of a sandbox", move || supervisor.start_shim(wanted)).await?;
        Ok(Box::new(shim))
    }

    async fn kill(&self, vm: VmId, signal: i32) -> Result<()> {
        let Some(shim) = self.shim(vm)? else { return Ok(()) };
        let vmm = if signal == SIGKILL { shim.child()? } else { None };
        // The shim forwards every signal but SIGKILL, which it cannot catch.
        vmm.unwrap_or(shim).send(signal)
    }

    /// Stops the VMM by SIGSTOP: without systemd it has no control group of its own.
    async fn freeze(&self, vm: VmId) -> Result<()> {
        self.signal_vmm(vm, SIGSTOP)
    }

    async fn thaw(&self, vm: VmId) -> Result<()> {
        self.signal_vmm(vm, SIGCONT)
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        if let Some(shim) = self.shim(vm)? {
            let vmm = shim.child()?;
            if let Some(vmm) = &vmm {
                vmm.send(SIGKILL)?;
            }
            if vmm.is_none() || tokio::time::timeout(SHIM_TIMEOUT, shim.ended()).await.is_err() {
                shim.send(SIGKILL)?;
            }
            let late = |_| Error::timeout("ending the process of a sandbox", KILL_TIMEOUT);
            for process in [Some(shim), vmm].into_iter().flatten() {
                tokio::time::timeout(KILL_TIMEOUT, process.ended()).await.map_err(late)??;
            }
        }
        remove_files(&self.paths.socket_dir(vm))
    }

    async fn ended(&self, vm: VmId) -> Result<Ended> {
        if let Some(shim) = self.shim(vm)? {
            shim.ended().await?;
        }
        let path = self.paths.socket_dir(vm).join(END);
        let mut words = String::new();
        match File::open(&path).and_then(|file| file.take(MAX_END).read_to_string(&mut words)) {
            Ok(_) => Ok(end_of(&words)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ended::Unknown),
            Err(error) => Err(Error::os(format!("read {}", path.display()), error)),
        }
    }

    async fn found(&self) -> Result<Vec<(VmId, Started)>> {
        let mut found = Vec::new();
        for (vm, record) in self.records()? {
            if self.shim(vm)?.is_some_and(|shim| shim.lives()) {
                let (pid, user) = (record.pid.unsigned_abs(), record.user);
                found.push((vm, Started { unit: String::new(), pid, user }));
            }
        }
        Ok(found)
    }

    /// Returns nothing: without systemd, a sandbox has no control group of its own.
    async fn usage(&self, _vms: Vec<(VmId, Uid)>) -> HashMap<VmId, Usage> {
        HashMap::new()
    }
}

impl Record {
    fn of(child: &Child, user: u32) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?;
        let stat = Stat::read(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { boot: boot_id()?, pid, began: stat.began, user })
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let partial = directory.join(format!("{RECORD}.new"));
        new_file(&partial)?.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(partial, directory.join(RECORD))
    }
}

/// A process that keeps its pid as long as this exists.
struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// Opens a process. `None` if it does not exist.
    fn open(pid: i32) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(Self { pid: pid.as_raw_nonzero().get(), fd })),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn lives(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.lives)
    }

    /// Returns the VMM of a shim, its only child.
    fn child(&self) -> Result<Option<Self>> {
        let os = |error| Error::os("look for the VMM of a sandbox", error);
        for entry in fs::read_dir("/proc").map_err(os)? {
            let name = entry.map_err(os)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let is_child = || Stat::read(pid).is_some_and(|stat| stat.lives && stat.parent == self.pid);
            if is_child()
                && let Some(process) = Self::open(pid).map_err(os)?
                // The pid may have been reused before it was opened.
                && is_child()
            {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    fn send(&self, signal: i32) -> Result<()> {
        let doing = || format!("send signal {signal} to the process of a sandbox");
        let signal = Signal::from_named_raw(signal)
            .ok_or_else(|| Error::os(doing(), io::Error::from(io::ErrorKind::InvalidInput)))?;
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::os(doing(), error)),
        }
    }

    /// Waits until it has ended. A child of this service is reaped then.
    async fn ended(&self) -> Result<()> {
        let os = |error: io::Error| Error::os("wait for the process of a sandbox", error);
        // SAFETY: the descriptor is borrowed from `self`, which keeps it open for longer than this lives.
        #[expect(unsafe_code, reason = "tokio cannot see that a descriptor stays open")]
        let fd = unsafe { AsyncFd::register_with_interest(self.fd.as_fd(), Interest::READABLE) };
        let fd = fd.map_err(|error| os(error.into()))?;
        fd.readable().await.map_err(os)?.retain_ready();
        match waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(_) | Err(Errno::CHILD) => Ok(()),
            Err(error) => Err(os(error.into())),
        }
    }
}

/// Fields of `/proc/PID/stat` (proc(5)).
struct Stat {
    lives: bool,
    parent: i32,
    began: u64,
}

impl Stat {
    /// Reads the file. `None` if there is no such process.
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may contain anything.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            lives: !matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            began: fields.get(19)?.parse().ok()?,
        })
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn new_file(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Parses the exit status that the shim wrote. A killed shim wrote nothing.
fn end_of(words: &str) -> Ended {
    let number = |prefix| words.strip_prefix(prefix).and_then(|number: &str| number.parse::<u8>().ok());
    match (number("exited:"), number("killed:")) {
        (Some(0), _) => Ended::Clean,
        (Some(status), _) => Ended::Failed(format!("exited:{status}")),
        (_, Some(signal)) => Ended::Failed(format!("killed:{signal}")),
        (None, None) => Ended::Unknown,
    }
}

fn end_child(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// Removes the files of a process that is gone.
fn remove_files(directory: &Path) -> Result<()> {
    for name in [RECORD, END] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::os(format!("remove {}", path.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_began() {
        let own = Stat::read(std::process::id().cast_signed()).unwrap();
        assert!(own.lives && own.began > 0);
        let hostile = "7 (a) R 1 (b) Z) S 3 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 1";
        let stat = Stat::parse(hostile).unwrap();
        assert_eq!((stat.lives, stat.parent, stat.began), (true, 3, 12345));
        assert!(Stat::parse("7 (a) R 1").is_none());
    }

    #[test]
    fn only_the_words_of_a_shim_are_an_exit_status() {
        let check = |words: &str, expect| assert_eq!(end_of(words), expect, "{words:?}");
        check("exited:0", Ended::Clean);
        check("exited:1", Ended::Failed("exited:1".into()));
        check("killed:9", Ended::Failed("killed:9".into()));
        for wrong in ["", "exited:", "exited:-1", "exited:0\n", "killed:9x", "exited:4096"] {
            check(wrong, Ended::Unknown);
        }
    }
}
