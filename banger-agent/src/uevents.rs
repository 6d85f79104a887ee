//! Receives kernel events about devices (`lib/kobject_uevent.c`; udev(7) uses the same multicast group).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};

/// The multicast group of the kernel; udev rebroadcasts events to another one.
const KERNEL_GROUP: u32 = 1;
/// Limit on an event: the kernel's buffer is 2 KiB (`UEVENT_BUFFER_SIZE`).
const MAX_EVENT: usize = 4 << 10;

/// Events about the devices of one subsystem, from the moment this was opened.
pub struct Uevents {
    socket: OwnedFd,
    subsystem: &'static str,
}

impl Uevents {
    /// Subscribes to the events of this subsystem.
    pub fn of(subsystem: &'static str) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket, subsystem })
    }

    /// Waits for an event about a device, and takes everything that has arrived by then. Events that the kernel had
    /// to drop count as one.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.take()? {
                return Ok(());
            }
        }
    }

    /// Takes all pending events. Returns whether any of them is about the subsystem.
    pub fn take(&self) -> io::Result<bool> {
        let mut concerns_us = false;
        let mut event = [0; MAX_EVENT];
        loop {
            match recv(&self.socket, &mut event, RecvFlags::DONTWAIT) {
                Ok((count, _)) => concerns_us |= is_of(&event[..count], self.subsystem),
                Err(Errno::NOBUFS) => concerns_us = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(concerns_us),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns whether an event is about this subsystem: `ACTION@DEVPATH`, then variables, each terminated by a zero
/// byte.
fn is_of(event: &[u8], subsystem: &str) -> bool {
    let mut variables = event.split(|byte| *byte == 0).skip(1);
    variables.any(|variable| variable.strip_prefix(b"SUBSYSTEM=") == Some(subsystem.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_filtered_by_subsystem() {
        let event = b"change@/devices/vport1p2\0ACTION=change\0SUBSYSTEM=virtio-ports\0SEQNUM=9\0";
        assert!(is_of(event, "virtio-ports"));
        assert!(!is_of(event, "virtio"));
        assert!(!is_of(b"add@/x\0XSUBSYSTEM=virtio-ports\0", "virtio-ports"));
        assert!(!is_of(b"SUBSYSTEM=virtio-ports", "virtio-ports"));
        assert!(!is_of(b"", "virtio-ports"));
    }
}
