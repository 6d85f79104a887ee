//! Serves the host over vsock(7), if the VMM has it: each connection is a conversation.

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
    channels::THREAD_STACK,
    conversation::{self, Guest},
    log,
    port::Port,
};

/// `VMADDR_CID_ANY` and `VMADDR_CID_HOST`.
const ANY: u32 = u32::MAX;
const HOST: u32 = 2;
/// The ports, and how many conversations each holds at once. The limits are separate, so that connections of a
/// browser leave slots for commands, and commands leave slots for the service.
const PORTS: [(u32, usize); 4] =
    [(VSOCK_PORT, 64), (VSOCK_SERVICE_PORT, 8), (VSOCK_QUESTION_PORT, 8), (VSOCK_CONNECTION_PORT, 64)];
/// How many connections get a reply that the agent is busy at the same time. Others are closed without a reply.
const MAX_BUSY_REPLIES: usize = 8;
/// Length of the queue of connections to accept.
const BACKLOG: i32 = 16;
/// Delay after a failure to accept, when memory or descriptors have run out.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves every connection of the host. Returns if the kernel has no vsock.
pub fn serve(guest: &Arc<Guest>) -> io::Result<()> {
    let mut listeners = Vec::new();
    for (port, limit) in PORTS {
        let Some(socket) = listen_on(port)? else { return Ok(()) };
        listeners.push(Listener { socket, held: Slots::new(limit), refusals: Slots::new(MAX_BUSY_REPLIES) });
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
                thread::sleep(RETRY_DELAY);
            }
        }
    }
}

/// Listens on a port. Returns `None` if the kernel has no vsock.
pub fn listen_on(port: u32) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None) {
        Err(Errno::AFNOSUPPORT | Errno::NODEV) => return Ok(None),
        made => made?,
    };
    bind(&socket, &Address::new(ANY, port))?;
    listen(&socket, BACKLOG)?;
    Ok(Some(socket))
}

/// A listening port.
struct Listener {
    socket: OwnedFd,
    held: Slots,
    refusals: Slots,
}

impl Listener {
    /// Accepts the next connection, and serves it in a thread of its own.
    fn take(&self, guest: &Arc<Guest>) -> io::Result<()> {
        let connection = match accept(&self.socket) {
            Ok(Some(connection)) => connection,
            // From another peer, so it is closed. Or it was closed before it was accepted.
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let (slot, has_room) = match self.held.take() {
            Some(slot) => (slot, true),
            None => match self.refusals.take() {
                Some(slot) => (slot, false),
                None => return Ok(()),
            },
        };
        let guest = Arc::clone(guest);
        thread::Builder::new().stack_size(THREAD_STACK).spawn(move || {
            let _slot = slot;
            if has_room { serve_connection(connection, &guest) } else { refuse(connection, &guest) }
        })?;
        Ok(())
    }
}

/// A limited number of slots.
struct Slots {
    limit: usize,
    taken: Arc<AtomicUsize>,
}

/// A slot, in use until it is dropped.
struct Slot(Arc<AtomicUsize>);

impl Slots {
    fn new(limit: usize) -> Self {
        Self { limit, taken: Arc::default() }
    }

    /// Takes a slot. Only one thread calls this.
    fn take(&self) -> Option<Slot> {
        if self.taken.load(Ordering::Relaxed) >= self.limit {
            return None;
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(Slot(Arc::clone(&self.taken)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Replies that the agent is busy.
fn refuse(connection: OwnedFd, guest: &Guest) {
    // A client that has gone needs no answer.
    let _ = Port::new(connection).greet_busy(|hello| guest.token.judge(hello));
}

fn serve_connection(connection: OwnedFd, guest: &Guest) {
    if let Err(error) = conversation::hold(&mut Port::new(connection), guest) {
        log::info(&format!("a conversation ended early: {error}"));
    }
}

/// Accepts a connection. Returns `None` unless it is the host's: programs in the guest can reach the port, too.
pub fn accept(listener: &impl AsFd) -> io::Result<Option<OwnedFd>> {
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

    /// Reads the address, if it is one of a vsock.
    fn read(address: &impl SocketAddrArg) -> Option<Self> {
        let read = |start: *const SocketAddrOpaque, length: SocketAddrLen| {
            // SAFETY: this many bytes are readable, and any bytes are a valid address.
            #[expect(unsafe_code, reason = "rustix has no type for these addresses")]
            (length >= ADDRESS_LENGTH).then(|| unsafe { start.cast::<Self>().read_unaligned() })
        };
        // SAFETY: the closure reads no more than it is given.
        #[expect(unsafe_code, reason = "rustix has no type for these addresses")]
        let address = unsafe { address.with_sockaddr(read) };
        address.filter(|address| address.family == AddressFamily::VSOCK.as_raw())
    }
}

// SAFETY: the pointer is to a complete address, which outlives the call.
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
    fn a_released_slot_is_free_again() {
        let slots = Slots::new(2);
        let taken = [slots.take(), slots.take()];
        assert!(taken.iter().all(Option::is_some) && slots.take().is_none());
        drop(taken);
        assert!(slots.take().is_some());
    }

    #[test]
    fn an_address_round_trips_and_other_families_are_refused() {
        let address = Address::new(HOST, VSOCK_PORT);
        assert_eq!(Address::read(&address), Some(address));
        assert_eq!(Address::read(&address.as_any()), Some(address));
        let other = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 2, 2, 2);
        assert_eq!(Address::read(&other), None);
    }
}
