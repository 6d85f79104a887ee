//! Configures the network interface before the image's init starts: images without network tools get a working
//! interface, and the tools of other images find it up and leave it alone.
//!
//! This speaks rtnetlink(7) directly: four kinds of messages do not justify a library in a program of this size.

use std::{
    fs, io,
    net::IpAddr,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use banger_proto::guest::config::{GuestNetwork, TEMPLATE_MAC};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// How long the driver may take to create the interface.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

// include/uapi/linux/rtnetlink.h, if_addr.h, neighbour.h, netlink.h and if.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLMSG_ERROR: u16 = 2;
/// Flags of a request that is acknowledged, and creates what does not exist.
const FLAGS: u16 = 0x1 | 0x4 | 0x400;
const REPLACE: u16 = 0x100;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The address is known to be unique, so duplicate address detection is not needed.
const IFA_F_NODAD: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const UNICAST: u8 = 1;
/// The gateway is on the link, whatever the prefixes say.
const ONLINK: u32 = 4;
const LOOPBACK: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Configures the interface. Returns its name.
pub fn set_up(network: &GuestNetwork) -> io::Result<String> {
    let netlink = Netlink::open()?;
    netlink.up(LOOPBACK)?;
    let Interface { name, index, mac } = find(network.mac)?;
    if mac != network.mac {
        netlink.hardware_address(index, network.mac)?;
    }
    netlink.up(index)?;
    let families: [(IpAddr, IpAddr); 2] =
        [(network.ipv4.into(), network.gateway4.into()), (network.ipv6.into(), network.gateway6.into())];
    for (address, gateway) in families {
        netlink.address(index, address)?;
        netlink.neighbour(index, gateway, network.gateway_mac)?;
        netlink.default_route(index, gateway)?;
    }
    Ok(name)
}

struct Interface {
    name: String,
    index: u32,
    mac: [u8; 6],
}

/// Finds the interface with this hardware address, or with that of a template.
fn find(mac: [u8; 6]) -> io::Result<Interface> {
    let wanted = [mac, TEMPLATE_MAC].map(|mac| (mac.map(|byte| format!("{byte:02x}")).join(":"), mac));
    let deadline = Instant::now() + DRIVER_TIMEOUT;
    loop {
        for entry in fs::read_dir("/sys/class/net")? {
            let entry = entry?;
            let path = entry.path();
            let read = |name: &str| fs::read_to_string(path.join(name));
            let Ok(address) = read("address") else { continue };
            if let Some((_, mac)) = wanted.iter().find(|(text, _)| text == address.trim()) {
                let index = read("ifindex")?.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                return Ok(Interface { name, index, mac: *mac });
            }
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::NotFound.into());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket. Protocol 0 is NETLINK_ROUTE.
    fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(socket_with(family, kind, SocketFlags::CLOEXEC, None)?))
    }

    fn up(&self, index: u32) -> io::Result<()> {
        let mut message = vec![0; 4];
        message.extend(index.to_ne_bytes());
        message.extend(IFF_UP.to_ne_bytes());
        message.extend(IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, FLAGS, &message)
    }

    /// Sets the hardware address of an interface that is down.
    fn hardware_address(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = vec![0; 4];
        message.extend(index.to_ne_bytes());
        message.extend([0; 8]);
        attribute(&mut message, IFLA_ADDRESS, &mac);
        self.request(RTM_NEWLINK, FLAGS, &message)
    }

    fn address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        // The prefix covers the address only: nothing else is on the link.
        let length = (bytes.len() * 8) as u8;
        let mut message = vec![family, length, IFA_F_NODAD, 0];
        message.extend(index.to_ne_bytes());
        attribute(&mut message, IFA_LOCAL, &bytes);
        attribute(&mut message, IFA_ADDRESS, &bytes);
        self.request(RTM_NEWADDR, FLAGS | REPLACE, &message)
    }

    /// Adds a permanent entry for the gateway's hardware address.
    fn neighbour(&self, index: u32, gateway: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(gateway);
        let mut message = vec![family, 0, 0, 0];
        message.extend(index.to_ne_bytes());
        message.extend(NUD_PERMANENT.to_ne_bytes());
        message.extend([0; 2]);
        attribute(&mut message, NDA_DST, &bytes);
        attribute(&mut message, NDA_LLADDR, &mac);
        self.request(RTM_NEWNEIGH, FLAGS | REPLACE, &message)
    }

    fn default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(gateway);
        let mut message = vec![family, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, UNICAST];
        message.extend(ONLINK.to_ne_bytes());
        attribute(&mut message, RTA_GATEWAY, &bytes);
        attribute(&mut message, RTA_OIF, &index.to_ne_bytes());
        self.request(RTM_NEWROUTE, FLAGS | REPLACE, &message)
    }

    /// Sends a request and reads its acknowledgement.
    fn request(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(16 + payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);
        send(&self.0, &message, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (count, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        let answer = answer.get(..count).unwrap_or_default();
        let kind = answer.get(4..).and_then(|bytes| bytes.first_chunk()).map(|b| u16::from_ne_bytes(*b));
        let error = answer.get(16..).and_then(|bytes| bytes.first_chunk()).map(|b| i32::from_ne_bytes(*b));
        match (kind, error) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

/// Appends an attribute, padded to a multiple of 4 bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}
