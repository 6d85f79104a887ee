//! Watches the kernel for changes of the host's default routes, of the networks on its links, and of forwarding.
//!
//! rtnetlink(7); include/uapi/linux/netconf.h. No crate parses the messages about forwarding.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv, socket_with,
};
use tokio::io::unix::AsyncFd;

use super::neighbours::ON_LINK;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNETCONF: u16 = 80;
/// Groups 7, 11 and 24: routes of both families, and IPv4 settings.
const GROUPS: u32 = 1 << 6 | 1 << 10 | 1 << 23;
const INET6: u8 = 10;
const NETCONFA_IFINDEX: u16 = 1;
const ALL_LINKS: i32 = -1;
/// The kernel sends at most a page or two.
const BUFFER: usize = 1 << 15;

/// A subscription to changes of routes and forwarding.
pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is NETLINK_ROUTE, whose number is 0.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // SAFETY: the file is the value's own, which gives the same one until it is dropped with it.
        #[expect(unsafe_code, reason = "tokio cannot see that a descriptor stays open")]
        let socket = unsafe { AsyncFd::register(socket) };
        socket.map(Self).map_err(|error| error.into_parts().1)
    }

    /// Waits until a default route or a network on a link changed, or somebody switched forwarding for the whole host.
    pub(super) async fn changed(&self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| Ok(recv(socket, &mut buffer[..], RecvFlags::empty())?)) {
                Ok(Ok((_, length)))
                    if messages(&buffer[..length]).any(|(kind, body)| matters(kind, body)) =>
                {
                    return Ok(());
                }
                // Messages were lost, and may have mattered.
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }
}

/// Returns the messages of a datagram, each with kind and body.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = datagram.split_first_chunk::<16>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = datagram.get(16..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn matters(kind: u16, body: &[u8]) -> bool {
    match kind {
        // `struct rtmsg`: family, length of the destination, two others, table, and protocol.
        RTM_NEWROUTE | RTM_DELROUTE => match body {
            [_, 0, ..] => true,
            [INET6, 1..128, _, _, _, protocol, ..] => ON_LINK.contains(protocol),
            _ => false,
        },
        // `struct netconfmsg` of four bytes, and attributes.
        RTM_NEWNETCONF => body.get(4..).is_some_and(|attributes| link_of(attributes) == Some(ALL_LINKS)),
        _ => false,
    }
}

fn link_of(mut attributes: &[u8]) -> Option<i32> {
    loop {
        let (header, _) = attributes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == NETCONFA_IFINDEX {
            return Some(i32::from_ne_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).unwrap_or_default();
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn netconf(link: i32) -> Vec<u8> {
        let attribute = |kind: u16, value: i32| {
            [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat()
        };
        message(
            RTM_NEWNETCONF,
            &[vec![2, 0, 0, 0], attribute(2, 1), attribute(NETCONFA_IFINDEX, link)].concat(),
        )
    }

    fn any(datagram: &[u8]) -> bool {
        messages(datagram).any(|(kind, body)| matters(kind, body))
    }

    #[test]
    fn default_routes_networks_of_links_and_the_global_switch_matter_and_guests_do_not() {
        let (default, guest) = (message(RTM_NEWROUTE, &[2, 0, 0, 0]), message(RTM_NEWROUTE, &[2, 32, 0, 0]));
        let of_link =
            |family, length, protocol| message(RTM_DELROUTE, &[family, length, 0, 0, 254, protocol]);
        assert!(any(&of_link(INET6, 64, 2)) && any(&of_link(INET6, 64, 9)));
        assert!(!any(&of_link(INET6, 64, 4)) && !any(&of_link(INET6, 128, 2)) && !any(&of_link(2, 24, 2)));
        assert!(any(&default) && any(&netconf(ALL_LINKS)));
        assert!(!any(&guest) && !any(&netconf(7)));
        assert!(any(&[guest, netconf(7), default].concat()));
    }

    #[test]
    fn a_datagram_that_was_cut_ends_early() {
        let whole = netconf(ALL_LINKS);
        for length in 0..whole.len() {
            assert!(!any(&whole[..length]));
        }
        assert!(!any(&[0; 64]));
    }
}
