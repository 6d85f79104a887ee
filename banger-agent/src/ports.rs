//! Lists listening sockets of the guest from the kernel's tables (proc_pid_net(5)).

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use banger_proto::guest::facts::ListeningPort;

use crate::stats::processes;

/// The tables, their protocol, and the state of a listening socket: `TCP_LISTEN`, and for UDP, which has no such
/// state, the state of a socket without a peer (`TCP_CLOSE`).
const TABLES: [(&str, &str, &str); 4] =
    [("tcp", "tcp", "0A"), ("tcp6", "tcp", "0A"), ("udp", "udp", "07"), ("udp6", "udp", "07")];

/// Returns all listening sockets, ordered by port. The guest's processes may come and go meanwhile.
pub fn listening() -> Vec<ListeningPort> {
    let owners = owners();
    let mut ports = Vec::new();
    for (table, protocol, state) in TABLES {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for (address, port, inode) in text.lines().skip(1).filter_map(|line| row(line, state)) {
            let (pid, program) = owners.get(&inode).cloned().unwrap_or_default();
            let (protocol, address) = (protocol.to_owned(), address.to_string());
            ports.push(ListeningPort { protocol, port, address, pid, program });
        }
    }
    ports.sort();
    ports.dedup();
    ports
}

/// Parses the address, the port and the inode of a socket in this state.
fn row(line: &str, state: &str) -> Option<(IpAddr, u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != state {
        return None;
    }
    let (address, port) = address(fields.get(1)?)?;
    Some((address, port, fields.get(9)?.parse().ok()?))
}

/// Parses an address and a port as the kernel prints them.
pub fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    // The kernel prints each 32-bit word of an address, in network order, as a native number.
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|word| Some(u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let address = match words?.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from(*word)),
        words => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?)),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

/// Returns the process of each socket, by inode.
fn owners() -> HashMap<u64, (u32, String)> {
    let mut owners = HashMap::new();
    for pid in processes() {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let mut program = None;
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse().ok()) else { continue };
            let name = program.get_or_insert_with(|| {
                fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
            });
            owners.entry(inode).or_insert_with(|| (pid, name.clone()));
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_row_of_the_kernels_table_is_parsed() {
        let line = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 1 0";
        assert_eq!(row(line, "0A"), Some((Ipv4Addr::LOCALHOST.into(), 8080, 4242)));
        assert_eq!(row(line, "07"), None);
        assert_eq!(row("garbage", "0A"), None);
        let line = "0: 00000000000000000000000001000000:0050 0:0 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(row(line, "0A"), Some((Ipv6Addr::LOCALHOST.into(), 80, 7)));
        assert_eq!(row("0: 000000000000000000000000:0050 0:0 0A 0:0 0:0 0 0 0 7 1", "0A"), None);
    }

    #[test]
    fn our_own_listeners_are_found() {
        let (tcp, udp) = (TcpListener::bind("[::1]:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let ports = listening();
        for (protocol, address) in [("tcp", tcp.local_addr().unwrap()), ("udp", udp.local_addr().unwrap())] {
            let found = ports.iter().find(|port| port.port == address.port() && port.protocol == protocol);
            let found = found.unwrap_or_else(|| panic!("{protocol} {address} is not in {ports:?}"));
            assert_eq!(
                (found.address.as_str(), found.pid),
                (address.ip().to_string().as_str(), std::process::id())
            );
            assert!(!found.program.is_empty());
        }
    }
}
