//! The serving process: it watches the channels and holds a conversation on each that the host opens. The kind of
//! channel depends on the VMM: ports of virtio consoles, or connections of a vsock.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
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
    cgroups,
    conversation::{self, Guest},
    detached, limits, log,
    phases::{InitSystem, PhaseTracker},
    port::Port,
    uevents::Uevents,
    vsock,
};

/// Where the kernel lists its virtio ports, and their subsystem in its events.
const PORTS: &str = "/sys/class/virtio-ports";
const SUBSYSTEM: &str = "virtio-ports";
/// Stack size of a conversation, which keeps its buffers on the heap.
pub const THREAD_STACK: usize = 256 << 10;

/// State that the first process passes to the serving process.
#[derive(Serialize, Deserialize)]
pub struct ServerConfig {
    pub token: String,
    pub problems: Vec<String>,
    pub init: InitKind,
    pub init_system: InitSystem,
    pub programs: Programs,
}

/// Which program is the first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitKind {
    /// The image's init.
    Image,
    /// The agent.
    Agent,
}

/// Serves until the guest is powered off.
pub fn serve() -> io::Result<Infallible> {
    let config = serde_json::from_reader(io::stdin().lock())?;
    let ServerConfig { token, problems, init, init_system, programs } = config;
    cgroups::begin();
    detached::begin(init)?;
    limits::begin();
    let phases = PhaseTracker::begin(init_system);
    let guest = Arc::new(Guest { token, problems, init, programs, phases });
    let vsock = Arc::clone(&guest);
    thread::Builder::new().stack_size(THREAD_STACK).spawn(move || {
        if let Err(error) = vsock::serve(&vsock) {
            log::error(&format!("cannot serve on the vsock: {error}"));
        }
    })?;
    watch_ports(&guest)
}

/// Holds one conversation on the standard input, which is a socket.
pub fn serve_input(token: &str) -> io::Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    let (problems, programs) = (Vec::new(), Programs::default());
    let phases = PhaseTracker::begin(InitSystem::Other);
    let guest = Guest { token: token.to_owned(), problems, init: InitKind::Agent, programs, phases };
    let held = conversation::hold(&mut Port::new(fd), &guest);
    detached::wait();
    held
}

/// Serves every port as it appears. The kernel creates ports one by one, names each a while later, and sends an event
/// for both. Waiting for events uses no processor time.
fn watch_ports(guest: &Arc<Guest>) -> io::Result<Infallible> {
    // Opened before the first listing, so that no name is missed in between.
    let events = Uevents::of(SUBSYSTEM)?;
    let mut known = BTreeSet::new();
    loop {
        for path in find_ports(Path::new(PORTS))? {
            if known.insert(path.clone()) {
                let guest = Arc::clone(guest);
                thread::Builder::new().stack_size(THREAD_STACK).spawn(move || watch(&path, &guest))?;
            }
        }
        events.wait()?;
    }
}

/// Returns the devices of the agent's ports that have their names already.
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
    let Err(error) = serve_port(path, guest);
    log::error(&format!("{}: {error}", path.display()));
}

/// Holds one conversation after another on a channel.
fn serve_port(path: &Path, guest: &Guest) -> io::Result<Infallible> {
    let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let doorbell = Doorbell::of(&fd)?;
    let mut port = Port::new(fd);
    loop {
        doorbell.wait(&port)?;
        if let Err(error) = conversation::hold(&mut port, guest) {
            // The host is at fault, or hung up in the middle of a frame: the next greeting starts over.
            log::info(&format!("a conversation ended early: {error}"));
        }
    }
}

/// Waits until the host has opened a channel. Before that, a level-triggered poll would return at once with a hangup;
/// edges are reported only for changes. The kernel marks the port as open before it wakes the waiters
/// (`handle_control_message` in `drivers/char/virtio_console.c`), so no edge is lost and the wait needs no timeout.
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
            // A port without a host is readable, too, but only returns the end of the stream.
            if !fds[0].revents().contains(PollFlags::HUP) {
                return Ok(());
            }
            let mut events = Vec::with_capacity(1);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
