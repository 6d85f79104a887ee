//! The serving process: it watches the channels and holds a conversation on each that the host opens. The kind of
//! channel depends on the VMM: ports of virtio consoles, or connections of a vsock.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
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
    conversation::{self, Guest, Token},
    detached, limits, log,
    phases::{InitSystem, PhaseTracker},
    port::Port,
    uevents::Uevents,
    vsock,
};

/// Where the kernel lists its virtio ports, and their subsystem in its events.
pub const PORTS: &str = "/sys/class/virtio-ports";
pub const SUBSYSTEM: &str = "virtio-ports";
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
    /// The device of the control channel, which is open on the standard output. Absent with a vsock.
    pub control: Option<PathBuf>,
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
    let ServerConfig { token, problems, init, init_system, programs, control } = config;
    let control = control.map(|path| take_standard_output().map(|fd| (path, fd))).transpose()?;
    cgroups::begin();
    detached::begin(init)?;
    limits::begin();
    let phases = PhaseTracker::begin(init_system);
    let token = Token::new(token);
    let guest = Arc::new(Guest { token, problems, init, programs, phases });
    let vsock = Arc::clone(&guest);
    thread::Builder::new().stack_size(THREAD_STACK).spawn(move || {
        if let Err(error) = vsock::serve(&vsock) {
            log::error(&format!("cannot serve on the vsock: {error}"));
        }
    })?;
    watch_ports(&guest, control)
}

/// Takes the control channel from the standard output, which becomes the standard error.
fn take_standard_output() -> io::Result<OwnedFd> {
    let fd = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(fd)
}

/// Holds a conversation on the standard input, which is a socket; one for each connection if it listens.
pub fn serve_input(token: &str) -> io::Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    let (problems, programs) = (Vec::new(), Programs::default());
    let phases = PhaseTracker::begin(InitSystem::Other);
    let guest =
        Guest { token: Token::new(token.to_owned()), problems, init: InitKind::Agent, programs, phases };
    if rustix::net::sockopt::socket_acceptconn(&fd)? {
        return serve_connections(&UnixListener::from(fd), &Arc::new(guest));
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    let held = conversation::hold(&mut Port::new(fd), &guest);
    detached::wait();
    held
}

fn serve_connections(listener: &UnixListener, guest: &Arc<Guest>) -> io::Result<()> {
    for connection in listener.incoming() {
        let connection = connection?;
        connection.set_nonblocking(true)?;
        let guest = Arc::clone(guest);
        thread::Builder::new().stack_size(THREAD_STACK).spawn(move || {
            if let Err(error) = conversation::hold(&mut Port::new(connection.into()), &guest) {
                log::info(&format!("a conversation ended early: {error}"));
            }
        })?;
    }
    Ok(())
}

/// Serves every port as it appears. The kernel creates ports one by one, names each a while later, and sends an event
/// for both. Waiting for events uses no processor time.
fn watch_ports(guest: &Arc<Guest>, control: Option<(PathBuf, OwnedFd)>) -> io::Result<Infallible> {
    // Opened before the first listing, so that no name is missed in between.
    let events = Uevents::of(SUBSYSTEM)?;
    let mut known = BTreeSet::new();
    if let Some((path, fd)) = control {
        known.insert(path.clone());
        spawn_watch(path, Some(fd), guest)?;
    }
    loop {
        for path in find_ports(Path::new(PORTS), |name| name.starts_with(CHANNEL_PREFIX))? {
            if known.insert(path.clone()) {
                spawn_watch(path, None, guest)?;
            }
        }
        events.wait()?;
    }
}

/// Returns the devices of the ports whose names are wanted, as far as they have their names already.
pub fn find_ports(list: &Path, is_wanted: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut ports = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if is_wanted(name.trim_end()) {
            ports.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(ports)
}

/// Serves a port in a thread of its own; `opened` if it is open already.
fn spawn_watch(path: PathBuf, opened: Option<OwnedFd>, guest: &Arc<Guest>) -> io::Result<()> {
    let guest = Arc::clone(guest);
    thread::Builder::new().stack_size(THREAD_STACK).spawn(move || {
        let fd = opened.map_or_else(|| open_port(&path), Ok);
        let Err(error) = fd.and_then(|fd| serve_port(fd, &guest));
        log::error(&format!("{}: {error}", path.display()));
    })?;
    Ok(())
}

/// Opens a port. Only one process can have it open.
pub fn open_port(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// Holds one conversation after another on a channel.
fn serve_port(fd: OwnedFd, guest: &Guest) -> io::Result<Infallible> {
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

/// The events of a port when the host opens or closes it.
pub const CONNECTION_CHANGES: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::HUP).union(EventFlags::ET);

/// Returns whether the host has a port open. A port without a host is readable, too, but only returns the end of the
/// stream.
pub fn is_connected(port: &Port) -> io::Result<bool> {
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(!fds[0].revents().contains(PollFlags::HUP))
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
        epoll::add(&epoll, fd, EventData::new_u64(0), CONNECTION_CHANGES)?;
        Ok(Self { epoll })
    }

    fn wait(&self, port: &Port) -> io::Result<()> {
        while !is_connected(port)? {
            let mut events = Vec::with_capacity(1);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
