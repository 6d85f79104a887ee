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

use banger_proto::guest::VSOCK_PORT;
use rustix::{
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
/// Conversations at once. More than the host holds: they are for commands of people and their programs.
const MOST: usize = 128;
/// Connections that wait to be taken up.
const BACKLOG: i32 = 16;
/// Before another connection is taken up when one could not be: memory or descriptors have run out.
const REST: Duration = Duration::from_millis(100);

/// Serves the host on every connection that it makes. Returns when the kernel has no vsock.
pub fn serve(guest: &Arc<Guest>) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let listener = match socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None) {
        Err(Errno::AFNOSUPPORT | Errno::NODEV) => return Ok(()),
        made => made?,
    };
    bind(&listener, &Address::new(ANY, VSOCK_PORT))?;
    listen(&listener, BACKLOG)?;
    let held = Arc::new(AtomicUsize::new(0));
    loop {
        match accept(&listener) {
            Ok(Some(connection)) if held.load(Ordering::Relaxed) < MOST => {
                held.fetch_add(1, Ordering::Relaxed);
                let (guest, counter) = (Arc::clone(guest), Arc::clone(&held));
                let begun = thread::Builder::new().stack_size(STACK).spawn(move || {
                    converse(connection, &guest);
                    counter.fetch_sub(1, Ordering::Relaxed);
                });
                if let Err(error) = begun {
                    held.fetch_sub(1, Ordering::Relaxed);
                    log::error(&format!("cannot begin a conversation: {error}"));
                }
            }
            // Somebody else's, or one too many: it is closed.
            Ok(_) => {}
            Err(error) => {
                log::error(&format!("cannot take up a connection: {error}"));
                thread::sleep(REST);
            }
        }
    }
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
            // SAFETY: so many bytes can be read there, and any bytes are an address.
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
    fn an_address_reads_back_and_one_of_another_kind_is_none() {
        let address = Address::new(HOST, VSOCK_PORT);
        assert_eq!(Address::read(&address), Some(address));
        assert_eq!(Address::read(&address.as_any()), Some(address));
        let other = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 2, 2, 2);
        assert_eq!(Address::read(&other), None);
    }
}
