//! The agent's port on the vsock (vsock(7)), where the monitor has one: each connection is a conversation.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use banger_proto::guest::{VSOCK_CONNECTION_PORT, VSOCK_PORT, VSOCK_QUESTION_PORT, VSOCK_SERVICE_PORT};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, acceptfrom_with,
        addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque},
        bind, listen, socket_with,
    },
};

use crate::{
    channels::STACK,
    conversation::{self, Guest},
    log,
    port::Port,
};

/// `VMADDR_CID_ANY` and `VMADDR_CID_HOST`.
const ANY: u32 = u32::MAX;
const HOST: u32 = 2;
/// What listens, and how many conversations it holds at once. Each has room of its own: connections that a browser
/// makes leave room for commands, and commands leave room for the service.
const PORTS: [(u32, usize); 4] =
    [(VSOCK_PORT, 64), (VSOCK_SERVICE_PORT, 8), (VSOCK_QUESTION_PORT, 8), (VSOCK_CONNECTION_PORT, 64)];
/// How many connections at once get the answer that the agent is busy. More are closed without an answer.
const MOST_TOLD: usize = 8;
/// Connections that wait to be taken up.
const BACKLOG: i32 = 16;
/// Before another connection is taken up when one could not be: memory or descriptors have run out.
const REST: Duration = Duration::from_millis(100);

/// Serves the host on every connection that it makes. Returns when the kernel has no vsock.
pub fn serve(guest: &Arc<Guest>) -> io::Result<()> {
    let mut listeners = Vec::new();
    for (port, most) in PORTS {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None) {
            Err(Errno::AFNOSUPPORT | Errno::NODEV) => return Ok(()),
            made => made?,
        };
        bind(&socket, &Address::new(ANY, port))?;
        listen(&socket, BACKLOG)?;
        listeners.push(Listener { socket, held: Room::new(most), told: Room::new(MOST_TOLD) });
    }
    loop {
        let mut fds: Vec<_> =
            listeners.iter().map(|listener| PollFd::new(&listener.socket, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let comes: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (listener, _) in listeners.iter().zip(comes).filter(|(_, comes)| *comes) {
            if let Err(error) = listener.take(guest) {
                log::error(&format!("cannot accept a connection: {error}"));
                thread::sleep(REST);
            }
        }
    }
}

/// A port that the agent listens on.
struct Listener {
    socket: OwnedFd,
    held: Room,
    told: Room,
}

impl Listener {
    /// Takes up the next connection, which has a thread of its own from here on.
    fn take(&self, guest: &Arc<Guest>) -> io::Result<()> {
        let connection = match accept(&self.socket) {
            Ok(Some(connection)) => connection,
            // Somebody else's: it is closed. Or it went before it was taken up.
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let (place, has_room) = match self.held.place() {
            Some(place) => (place, true),
            None => match self.told.place() {
                Some(place) => (place, false),
                None => return Ok(()),
            },
        };
        let guest = Arc::clone(guest);
        thread::Builder::new().stack_size(STACK).spawn(move || {
            let _place = place;
            if has_room { converse(connection, &guest) } else { refuse(connection, &guest) }
        })?;
        Ok(())
    }
}

/// A number of places.
struct Room {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// One of them, until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Room {
    fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// The next place. Only one thread asks.
    fn place(&self) -> Option<Place> {
        if self.taken.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(Place(Arc::clone(&self.taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says that there is no room.
fn refuse(connection: OwnedFd, guest: &Guest) {
    // A client that has gone needs no answer.
    let _ = Port::new(connection).greet_busy(&guest.token);
}

fn converse(connection: OwnedFd, guest: &Guest) {
    if let Err(error) = conversation::hold(&mut Port::new(connection), guest) {
        log::info(&format!("a conversation ended early: {error}"));
    }
}

/// The next connection; `None` when it is not the host's: programs in the guest may reach the port, too.
fn accept(listener: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    let (connection, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let is_host = peer.as_ref().and_then(Address::read).is_some_and(|peer| peer.cid == HOST);
    Ok(is_host.then_some(connection))
}

/// `struct sockaddr_vm` of `include/uapi/linux/vm_sockets.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

const ADDRESS_LENGTH: SocketAddrLen = size_of::<Address>() as SocketAddrLen;

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }

    /// The address, when it is one of a vsock.
    fn read(address: &impl SocketAddrArg) -> Option<Self> {
        let read = |start: *const SocketAddrOpaque, length: SocketAddrLen| {
            // SAFETY: this many bytes can be read there, and any bytes are an address.
            #[expect(unsafe_code, reason = "rustix has no type for these addresses")]
            (length >= ADDRESS_LENGTH).then(|| unsafe { start.cast::<Self>().read_unaligned() })
        };
        // SAFETY: the closure reads no more than it is given.
        #[expect(unsafe_code, reason = "rustix has no type for these addresses")]
        let address = unsafe { address.with_sockaddr(read) };
        address.filter(|address| address.family == AddressFamily::VSOCK.as_raw())
    }
}

// SAFETY: the pointer is to a whole address, which lives for longer than the call.
#[expect(unsafe_code, reason = "rustix has no type for these addresses")]
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), ADDRESS_LENGTH)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_place_that_is_given_back_can_be_had_again() {
        let room = Room::new(2);
        let places = [room.place(), room.place()];
        assert!(places.iter().all(Option::is_some) && room.place().is_none());
        drop(places);
        assert!(room.place().is_some());
    }

    #[test]
    fn an_address_reads_back_and_one_of_another_kind_is_none() {
        let address = Address::new(HOST, VSOCK_PORT);
        assert_eq!(Address::read(&address), Some(address));
        assert_eq!(Address::read(&address.as_any()), Some(address));
        let other = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 2, 2, 2);
        assert_eq!(Address::read(&other), None);
    }
}
