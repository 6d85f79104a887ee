//! Configures the network interface before the image's init starts: images without network tools get a working
//! interface, and the tools of other images find it up and leave it alone. A copy of a running guest gets another
//! configuration later.

use std::{
    fs, io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use banger_proto::guest::{
    config::{GuestNetwork, TEMPLATE_MAC},
    rejuvenation::NewNetwork,
};

use crate::netlink::{Netlink, address, attribute, family_and_bytes, find_attribute};

/// How long the driver may take to create the interface.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

// include/uapi/linux/rtnetlink.h, if_addr.h, neighbour.h, netlink.h and if.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
/// Creates what does not exist.
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100 | CREATE;
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

/// Configures the interface. Returns its name.
pub fn set_up(network: &GuestNetwork) -> io::Result<String> {
    let links = Links::open()?;
    links.set(LOOPBACK, IFF_UP)?;
    let Interface { name, index, mac } = find([network.mac, TEMPLATE_MAC])?;
    if mac != network.mac {
        links.hardware_address(index, network.mac)?;
    }
    links.configure(index, network)?;
    Ok(name)
}

/// Configures the interface of a copy instead of what it has. Returns its name. A repeat is safe.
pub fn renew(new: &NewNetwork) -> io::Result<String> {
    let NewNetwork { replaces, network } = new;
    let links = Links::open()?;
    let Interface { name, index, mac } = find([network.mac, *replaces])?;
    if mac != network.mac {
        // This also removes routes, neighbours and addresses that follow from the hardware address.
        links.set(index, 0)?;
        links.hardware_address(index, network.mac)?;
    }
    let keep = [IpAddr::from(network.ipv4), IpAddr::from(network.ipv6)];
    for address in links.addresses()?.into_iter().filter(|found| found.index == index) {
        if !keep.contains(&address.address) && !is_link_local(address.address) {
            links.remove_address(&address)?;
        }
    }
    links.configure(index, network)?;
    Ok(name)
}

/// Returns the addresses of all interfaces.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    Ok(Links::open()?.addresses()?.into_iter().map(|found| found.address).collect())
}

/// Returns whether an address follows from a hardware address.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

struct Interface {
    name: String,
    index: u32,
    mac: [u8; 6],
}

/// Finds the interface with one of these hardware addresses.
fn find(macs: [[u8; 6]; 2]) -> io::Result<Interface> {
    let wanted = macs.map(|mac| (mac.map(|byte| format!("{byte:02x}")).join(":"), mac));
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

/// An address of an interface.
struct Assigned {
    index: u32,
    prefix: u8,
    address: IpAddr,
}

/// Interfaces, by rtnetlink(7).
struct Links(Netlink);

impl Links {
    fn open() -> io::Result<Self> {
        Netlink::open(None).map(Self)
    }

    /// Brings an interface up, configures it, and adds its routes.
    fn configure(&self, index: u32, network: &GuestNetwork) -> io::Result<()> {
        self.set(index, IFF_UP)?;
        let families: [(IpAddr, IpAddr); 2] =
            [(network.ipv4.into(), network.gateway4.into()), (network.ipv6.into(), network.gateway6.into())];
        for (address, gateway) in families {
            self.address(index, address)?;
            self.neighbour(index, gateway, network.gateway_mac)?;
            self.default_route(index, gateway)?;
        }
        Ok(())
    }

    /// Brings an interface up, or down with no flags.
    fn set(&self, index: u32, flags: u32) -> io::Result<()> {
        let mut message = vec![0; 4];
        message.extend(index.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(IFF_UP.to_ne_bytes());
        self.0.request(RTM_NEWLINK, CREATE, &message)
    }

    fn addresses(&self) -> io::Result<Vec<Assigned>> {
        // `struct ifaddrmsg`: the family, of which 0 means all, the prefix, and the index.
        let read = |message: Vec<u8>| {
            let (header, attributes) = message.split_first_chunk::<8>()?;
            let [family, prefix, _, _, index @ ..] = *header;
            let value =
                find_attribute(attributes, IFA_LOCAL).or_else(|| find_attribute(attributes, IFA_ADDRESS))?;
            Some(Assigned { index: u32::from_ne_bytes(index), prefix, address: address(family, value)? })
        };
        Ok(self.0.list(RTM_GETADDR, &[0; 8])?.into_iter().filter_map(read).collect())
    }

    fn remove_address(&self, assigned: &Assigned) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(assigned.address);
        let mut message = vec![family, assigned.prefix, 0, 0];
        message.extend(assigned.index.to_ne_bytes());
        attribute(&mut message, IFA_LOCAL, &bytes);
        self.0.request(RTM_DELADDR, 0, &message)
    }

    /// Sets the hardware address of an interface that is down.
    fn hardware_address(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = vec![0; 4];
        message.extend(index.to_ne_bytes());
        message.extend([0; 8]);
        attribute(&mut message, IFLA_ADDRESS, &mac);
        self.0.request(RTM_NEWLINK, CREATE, &message)
    }

    fn address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        // The prefix covers the address only: nothing else is on the link.
        let length = (bytes.len() * 8) as u8;
        let mut message = vec![family, length, IFA_F_NODAD, 0];
        message.extend(index.to_ne_bytes());
        attribute(&mut message, IFA_LOCAL, &bytes);
        attribute(&mut message, IFA_ADDRESS, &bytes);
        self.0.request(RTM_NEWADDR, REPLACE, &message)
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
        self.0.request(RTM_NEWNEIGH, REPLACE, &message)
    }

    fn default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(gateway);
        let mut message = vec![family, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, UNICAST];
        message.extend(ONLINK.to_ne_bytes());
        attribute(&mut message, RTA_GATEWAY, &bytes);
        attribute(&mut message, RTA_OIF, &index.to_ne_bytes());
        self.0.request(RTM_NEWROUTE, REPLACE, &message)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        process::Command,
    };

    use rustix::{
        mount::{MountFlags, MountPropagationFlags, mount, mount_change},
        thread::{UnshareFlags, unshare_unsafe},
    };

    use super::*;
    use crate::connections;

    const OLD: [u8; 6] = [0x02, 0x67, 0, 0, 0, 0x0a];
    const NEW: [u8; 6] = [0x02, 0x67, 0, 0, 0, 0x0b];

    fn network(mac: [u8; 6], last: u8) -> GuestNetwork {
        GuestNetwork {
            mac,
            ipv4: [172, 30, 0, last].into(),
            gateway4: [172, 30, 0, 1].into(),
            ipv6: format!("fd00::{last}").parse().unwrap(),
            gateway6: "fd00::1".parse().unwrap(),
            gateway_mac: [0x02, 0x67, 0, 0, 0, 1],
            name_server: [172, 30, 0, 1].into(),
            search: "vm".into(),
        }
    }

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs this in a network of its own, with an interface that has the hardware address [`OLD`]. Returns `false` if
    /// this process may not make one.
    fn in_network(test: fn()) -> bool {
        let run = move || {
            let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
            // SAFETY: namespaces of this thread's own change nothing about its memory or descriptors.
            #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
            if unsafe { unshare_unsafe(flags) }.is_err() {
                return false;
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).unwrap();
            ip("link add eth0 address 02:67:00:00:00:0a type veth peer name peer");
            ip("link set peer up");
            test();
            true
        };
        thread::spawn(run).join().unwrap()
    }

    #[test]
    fn a_copy_has_only_its_own_addresses_and_no_inherited_connections() {
        let ran = in_network(|| {
            assert_eq!(set_up(&network(OLD, 2)).unwrap(), "eth0");
            ip("address add 10.9.9.9/24 dev eth0");
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let connect = |address: &str| {
                let client = TcpStream::connect((address, port)).unwrap();
                (client, listener.accept().unwrap().0)
            };
            let (mut inherited, _server) = connect("172.30.0.2");
            let (mut local, mut local_server) = connect("127.0.0.1");
            assert_eq!(connections::end_orphaned().unwrap(), 0);

            let new = NewNetwork { replaces: OLD, network: network(NEW, 3) };
            // Repeats are safe.
            for _ in 0..2 {
                assert_eq!(renew(&new).unwrap(), "eth0");
            }
            let link = ip("link show eth0");
            assert!(link.contains("02:67:00:00:00:0b") && link.contains(",UP"), "{link}");
            let mut own = addresses().unwrap();
            own.retain(|address| !address.is_loopback() && !is_link_local(*address));
            let expect: [IpAddr; 2] = ["172.30.0.3".parse().unwrap(), "fd00::3".parse().unwrap()];
            assert_eq!(own, expect);
            let routes = ip("route show dev eth0");
            assert!(routes.contains("default via 172.30.0.1"), "{routes}");
            let neighbours = ip("neighbour show dev eth0");
            assert!(neighbours.contains("02:67:00:00:00:01"), "{neighbours}");

            assert!(connections::end_orphaned().unwrap() >= 2);
            assert_eq!(connections::end_orphaned().unwrap(), 0);
            let error = inherited.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            local.write_all(b"x").unwrap();
            local_server.read_exact(&mut [0; 1]).unwrap();
        });
        if !ran {
            eprintln!("SKIPPED: this test needs a network namespace");
        }
    }

    #[test]
    fn an_interface_that_is_missing_is_an_error() {
        let ran = in_network(|| {
            let new = NewNetwork { replaces: [9; 6], network: network(NEW, 3) };
            assert_eq!(renew(&new).unwrap_err().kind(), io::ErrorKind::NotFound);
        });
        if !ran {
            eprintln!("SKIPPED: this test needs a network namespace");
        }
    }
}
