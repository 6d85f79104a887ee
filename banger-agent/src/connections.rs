//! Ends connections of addresses that the guest no longer has, so that programs see an error instead of silence
//! (sock_diag(7), `SOCK_DESTROY`).

use std::{collections::BTreeSet, io, net::IpAddr};

use rustix::net::netlink::SOCK_DIAG;

use crate::{
    netlink::{AF_INET, AF_INET6, Netlink, address},
    network,
};

// include/uapi/linux/sock_diag.h, inet_diag.h and include/net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// All states but those without a peer, and `TIME_WAIT`, which ends by itself: `ESTABLISHED`, `SYN_SENT`, `SYN_RECV`,
/// `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `struct inet_diag_sockid`, after four bytes in an `inet_diag_msg`.
const SOCKET_ID: std::ops::Range<usize> = 4..52;
/// The source address in it, after the ports.
const SOURCE: usize = 4;

/// Ends these connections. Returns how many. Fails if the kernel cannot do that.
pub fn end_orphaned() -> io::Result<usize> {
    let netlink = Netlink::open(Some(SOCK_DIAG))?;
    let own: BTreeSet<IpAddr> = network::addresses()?.into_iter().collect();
    let mut ended = 0;
    for (family, protocol) in [(AF_INET, TCP), (AF_INET6, TCP), (AF_INET, UDP), (AF_INET6, UDP)] {
        for socket in netlink.list(SOCK_DIAG_BY_FAMILY, &request(family, protocol, CONNECTED, &[0; 48]))? {
            let Some(id) = socket.get(SOCKET_ID) else { continue };
            let Some(source) = id.get(SOURCE..).and_then(|bytes| address(family, bytes)) else { continue };
            if source.is_loopback() || own.contains(&source) {
                continue;
            }
            match netlink.request(SOCK_DESTROY, 0, &request(family, protocol, CONNECTED, id)) {
                Ok(()) => ended += 1,
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// Returns a `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8]) -> Vec<u8> {
    let mut message = vec![family, protocol, 0, 0];
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}
