//! The serving process: it watches the channels and holds a conversation on each that the host opens.
//! Which channels there are depends on the monitor: ports of virtio consoles, or connections of a vsock.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use banger_proto::guest::{CHANNEL_PREFIX, config::Programs};
use rustix::{
    event::{
        PollFd, PollFlags, Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
    fs::{Mode, OFlags},
};
use serde::{Deserialize, Serialize};

use crate::{
    conversation::{self, Guest},
    log,
    port::Port,
    vsock,
};

/// Where the kernel lists its virtio ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// After so long without a new port, there will be no other.
const QUIET: Duration = Duration::from_secs(20);
/// Between two looks for them.
const LOOK: Duration = Duration::from_millis(5);
/// A host that opened a channel is seen by the event of the kernel. Should one be lost, this is how long it
/// takes to be seen all the same.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The stack of a conversation: it keeps its buffers on the heap.
pub const STACK: usize = 256 << 10;

/// What the first process tells the serving one.
#[derive(Serialize, Deserialize)]
pub struct Inheritance {
    pub token: String,
    pub problems: Vec<String>,
    pub init: InitKind,
    pub programs: Programs,
}

/// Who the first process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitKind {
    /// The image's init.
    Image,
    /// The agent.
    Agent,
}

/// Serves until the machine is off.
pub fn serve() -> io::Result<Infallible> {
    let Inheritance { token, problems, init, programs } = serde_json::from_reader(io::stdin().lock())?;
    let guest = Arc::new(Guest { token, problems, init, programs });
    let vsock = Arc::clone(&guest);
    thread::Builder::new().stack_size(STACK).spawn(move || {
        if let Err(error) = vsock::serve(&vsock) {
            log::error(&format!("cannot serve on the vsock: {error}"));
        }
    })?;
    watch_ports(&guest)
}

/// Holds one conversation on the standard input, which is a socket.
pub fn converse_on_input(token: &str) -> io::Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    let (problems, programs) = (Vec::new(), Programs::default());
    let guest = Guest { token: token.to_owned(), problems, init: InitKind::Agent, programs };
    conversation::hold(&mut Port::new(fd), &guest)
}

/// Serves every port as it appears. The kernel makes them one after the other, and names each a while after
/// it has made it; long after the last one there is nothing left to look for.
fn watch_ports(guest: &Arc<Guest>) -> io::Result<Infallible> {
    let mut known = BTreeSet::new();
    let mut quiet = Duration::ZERO;
    while quiet < QUIET {
        let mut has_grown = false;
        for path in find_ports(Path::new(PORTS))? {
            if known.insert(path.clone()) {
                has_grown = true;
                let guest = Arc::clone(guest);
                thread::Builder::new().stack_size(STACK).spawn(move || watch(&path, &guest))?;
            }
        }
        quiet = if has_grown { Duration::ZERO } else { quiet + LOOK };
        thread::sleep(LOOK);
    }
    log::info(&format!("serving on {} channels", known.len()));
    loop {
        thread::park();
    }
}

/// The devices of the ports that are ours and have their names.
fn find_ports(list: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut ports = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end().starts_with(CHANNEL_PREFIX) {
            ports.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(ports)
}

fn watch(path: &Path, guest: &Guest) {
    let Err(error) = converse(path, guest);
    log::error(&format!("{}: {error}", path.display()));
}

/// Holds one conversation after the other on a channel.
fn converse(path: &Path, guest: &Guest) -> io::Result<Infallible> {
    let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let doorbell = Doorbell::of(&fd)?;
    let mut port = Port::new(fd);
    loop {
        doorbell.wait(&port)?;
        if let Err(error) = conversation::hold(&mut port, guest) {
            // The host is at fault, or gone in the middle of a frame: the next greeting begins anew.
            log::info(&format!("a conversation ended early: {error}"));
        }
    }
}

/// Tells when the host has opened a channel. While it has not, a plain poll would return at once and say
/// that it hung up; edges are reported only when that changes.
struct Doorbell {
    epoll: OwnedFd,
}

impl Doorbell {
    fn of(fd: &OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::HUP | EventFlags::ET;
        epoll::add(&epoll, fd, EventData::new_u64(0), flags)?;
        Ok(Self { epoll })
    }

    fn wait(&self, port: &Port) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(port, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
            // A port without a host is readable, too: what is read there is an end.
            if !fds[0].revents().contains(PollFlags::HUP) {
                return Ok(());
            }
            let mut events = Vec::with_capacity(1);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&LOOK_AGAIN)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
