//! The socket of the server: one that systemd passes, a loopback address, or a Unix socket that only the user can reach.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::net::{AddressFamily, getsockname, sockopt};
use tokio::net::{TcpListener, UnixListener};

/// Where it listens unless told otherwise. The port is E2B in hexadecimal, and below those that the kernel gives away.
pub const DEFAULT: &str = "127.0.0.1:3627";

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && address.port() != 0 => Ok(Self::Tcp(address)),
            Ok(_) => Err("it must be a loopback address, such as 127.0.0.1:3627".into()),
            Err(_) => Err("it must be an address and a port, or an absolute path".into()),
        }
    }
}

/// A listening socket.
pub enum Listener {
    /// Of a loopback address.
    Tcp(TcpListener),
    /// In the file system.
    Unix(UnixListener),
}

/// Opens the socket, or takes the one that is standard input.
pub async fn open(address: &Address) -> io::Result<Listener> {
    if let Some(passed) = passed()? {
        return Ok(passed);
    }
    match address {
        Address::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
        Address::Unix(path) => {
            remove_stale(path)?;
            let listener = UnixListener::bind(path)?;
            // Who connects before this line still has no key.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(Listener::Unix(listener))
        }
    }
}

/// Returns standard input if it is a socket that listens. One that the network can reach is refused.
fn passed() -> io::Result<Option<Listener>> {
    let stdin = io::stdin();
    if !sockopt::socket_acceptconn(stdin.as_fd()).unwrap_or(false) {
        return Ok(None);
    }
    let socket: OwnedFd = stdin.as_fd().try_clone_to_owned()?;
    let refused = || io::Error::other("the socket that was passed is not on a loopback address");
    if getsockname(&socket)?.address_family() == AddressFamily::UNIX {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        return Ok(Some(Listener::Unix(UnixListener::from_std(listener)?)));
    }
    let listener = std::net::TcpListener::from(socket);
    if !listener.local_addr()?.ip().is_loopback() {
        return Err(refused());
    }
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::Tcp(TcpListener::from_std(listener)?)))
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Returns the id of the user whose program listens on an address of this host.
pub fn owner(address: SocketAddr) -> io::Result<Option<u32>> {
    let table = fs::read_to_string(if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" })?;
    Ok(owner_in(&table, address))
}

/// Returns whether the other end of a connection on this host belongs to this user, or to root.
pub fn is_own(peer: SocketAddr, local: SocketAddr) -> bool {
    let look = || {
        let table = fs::read_to_string(if peer.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" });
        peer_in(&table.ok()?, peer, local)
    };
    // A table that changes while it is read can miss a row.
    look().or_else(look).is_some_and(is_allowed)
}

/// Returns whether a user may connect.
pub fn is_allowed(user: u32) -> bool {
    user == 0 || user == rustix::process::getuid().as_raw()
}

/// Looks an address up in a table of the kernel (`Documentation/networking/proc_net_tcp.rst`). Who listens on all addresses
/// gets the connections as well.
fn owner_in(table: &str, address: SocketAddr) -> Option<u32> {
    /// TCP_LISTEN.
    const LISTENS: &str = "0A";
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().ok()? };
    let find = |ip: IpAddr| {
        let local = written(SocketAddr::new(ip, address.port()));
        find(table, |fields| fields[1] == local && fields[3] == LISTENS)
    };
    find(address.ip()).or_else(|| find(any))
}

fn peer_in(table: &str, peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    /// TCP_ESTABLISHED. Rows of other states may have lost their user.
    const ESTABLISHED: &str = "01";
    let (peer, local) = (written(peer), written(local));
    find(table, |fields| fields[1] == peer && fields[2] == local && fields[3] == ESTABLISHED)
}

/// Returns the user id of the first row that matches.
fn find(table: &str, matches: impl Fn(&[&str]) -> bool) -> Option<u32> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.len() > 7 && matches(&fields)).then(|| fields[7].parse().ok())?
    })
}

/// Returns an address as the table has it: each word of 32 bits is in the order of the host.
fn written(address: SocketAddr) -> String {
    let word = |bytes: &[u8]| format!("{:08X}", u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let ip: String = match address.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    format!("{ip}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_loopback_addresses_and_paths_are_accepted() {
        for text in
            ["0.0.0.0:3627", "192.168.1.1:3627", "127.0.0.1", "127.0.0.1:0", "localhost:3627", "a/b", ""]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!(DEFAULT.parse(), Ok(Address::Tcp(([127, 0, 0, 1], 0xe2b).into())));
        assert_eq!("/run/a".parse(), Ok(Address::Unix("/run/a".into())));
    }

    #[test]
    fn the_user_who_listens_is_found() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0E2B 00000000:0000 01 00000000:00000000 00:00000000 00000000     7        0 1 1
   1: 0100007F:0E2B 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 1 1
";
        let owner = |text: &str| owner_in(table, text.parse().unwrap());
        assert_eq!(owner("127.0.0.1:3627"), Some(1000));
        assert_eq!(owner("127.0.0.1:80"), Some(33));
        assert_eq!(owner("127.0.0.1:81"), None);
        let ends = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:3627".parse().unwrap());
        let row = "   3: 0100007F:9C40 0100007F:0E2B 01 00000000:00000000 00:00000000 00000000  1001        0 1 1\n";
        assert_eq!(peer_in(&format!("{table}{row}"), ends.0, ends.1), Some(1001));
        assert_eq!(peer_in(table, ends.0, ends.1), None);
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = super::owner(own.local_addr().unwrap()).unwrap();
        assert_eq!(found, Some(rustix::process::getuid().as_raw()));
        let client = std::net::TcpStream::connect(own.local_addr().unwrap()).unwrap();
        let (_served, peer) = own.accept().unwrap();
        assert!(is_own(peer, own.local_addr().unwrap()));
        drop(client);
        assert!(!is_own("127.0.0.1:9".parse().unwrap(), own.local_addr().unwrap()));
    }
}
