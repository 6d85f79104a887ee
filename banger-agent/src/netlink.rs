//! Messages to the kernel over netlink(7): a few kinds, which do not justify a library in a program of this size.

use std::{io, net::IpAddr, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

// include/uapi/linux/netlink.h
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel sends at most this much at once (`NLMSG_GOODSIZE` and its callers).
const MAX_ANSWER: usize = 32 << 10;

pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket; `None` is `NETLINK_ROUTE`.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?))
    }

    /// Sends a request and reads its acknowledgement. `flags` come in addition to those for that.
    pub fn request(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | flags, payload)?;
        let mut answer = vec![0; MAX_ANSWER];
        let (count, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        match messages(answer.get(..count).unwrap_or_default()).next() {
            Some((NLMSG_ERROR, payload)) => outcome(payload),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Returns the payloads of all answers to a request for a list.
    pub fn list(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, REQUEST | DUMP, payload)?;
        let (mut found, mut answer) = (Vec::new(), vec![0; MAX_ANSWER]);
        loop {
            let (count, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
            for (kind, payload) in messages(answer.get(..count).unwrap_or_default()) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => outcome(payload)?,
                    _ => found.push(payload.to_vec()),
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);
        send(&self.0, &message, SendFlags::empty())?;
        Ok(())
    }
}

/// Returns the result that an `NLMSG_ERROR` carries.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Splits received bytes into messages: kinds with payloads.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Appends an attribute, padded to a multiple of 4 bytes.
pub fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Returns the value of an attribute.
pub fn find_attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

pub fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

/// Reads an address at the beginning of these bytes.
pub fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        AF_INET6 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_truncated_ones_are_not() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 1, b"abc");
        attribute(&mut bytes, 2, b"defg");
        assert_eq!(find_attribute(&bytes, 1), Some(&b"abc"[..]));
        assert_eq!(find_attribute(&bytes, 2), Some(&b"defg"[..]));
        assert_eq!(find_attribute(&bytes, 3), None);
        assert_eq!(find_attribute(&bytes[..10], 2), None);
        assert_eq!(find_attribute(&[0, 0, 9, 9], 1), None);
    }

    #[test]
    fn messages_end_where_their_length_makes_no_sense() {
        let message = |length: u32, kind: u16, payload: &[u8]| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(HEADER, 0);
            bytes.extend(payload);
            bytes
        };
        let both = [message(20, 7, b"abcd"), message(17, 8, b"x\0\0\0")].concat();
        assert_eq!(messages(&both).collect::<Vec<_>>(), [(7, &b"abcd"[..]), (8, b"x")]);
        for broken in [message(99, 7, b"abcd"), message(3, 7, b"abcd"), vec![1, 2]] {
            assert_eq!(messages(&broken).count(), 0);
        }
    }

    #[test]
    fn mapped_addresses_are_those_of_ipv4() {
        let mapped = "::ffff:127.0.0.1".parse::<std::net::Ipv6Addr>().map(|address| address.octets());
        let found = mapped.ok().and_then(|bytes| address(AF_INET6, &bytes));
        assert_eq!(found, "127.0.0.1".parse().ok());
        assert_eq!(address(AF_INET, &[1, 2]), None);
    }
}
