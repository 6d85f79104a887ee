//! A small network in namespaces of a test's own: a host, an internet behind it, and guests whose TAPs end in a
//! kernel's network stack like that of a real guest. All of it goes away with the process.

use std::{
    ffi::c_int,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use banger_domain::{
    id::{Uid, VmId},
    net::{
        nic::{Mac, Nic},
        subnet::{Slot, Subnet},
    },
};
use banger_system::{
    host::network::{LinuxNetwork, tap_of},
    ports::network::Network,
};
use rustix::{
    ioctl::{Setter, ioctl, opcode},
    thread::{
        LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_thread_res_uid, unshare_unsafe,
    },
};

/// The networks and addresses of the internet.
pub const UPLINK: &str = "203.0.113.1";
pub const INTERNET: &str = "203.0.113.2";
/// Long enough for a connection to be answered although the kernel limits the rate of errors: the first packet is
/// sent again after one second and after three.
const PATIENT: Duration = Duration::from_secs(10);
/// Long enough for an answer that comes for certain, on a machine that does many other things.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Short enough to wait for an answer that does not come.
pub const SHORT: Duration = Duration::from_millis(400);
/// The same for a connection, whose first packet may have to be sent again.
const A_WHILE: Duration = Duration::from_secs(2);

pub fn subnet() -> Subnet {
    "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap()
}

/// A network namespace.
#[derive(Clone)]
pub struct Space(Arc<OwnedFd>);

impl Space {
    /// Moves this thread into a new namespace, which its later threads inherit.
    pub fn enter_new() -> Self {
        // SAFETY: a network namespace of this thread's own changes nothing about its memory or descriptors.
        #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let space = Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into()));
        space.ip("link set lo up");
        space
    }

    pub fn new() -> Self {
        thread::spawn(Self::enter_new).join().unwrap()
    }

    /// Runs this in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Runs this in the namespace as a user of the host.
    pub fn run_as<T: Send>(&self, user: Uid, work: impl FnOnce() -> T + Send) -> T {
        self.run(|| {
            let uid = rustix::process::Uid::from_raw(user.0);
            set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        })
    }

    pub fn command(&self, line: &str) -> io::Result<String> {
        let mut words = line.split_whitespace();
        let output = self.run(|| Command::new(words.next().unwrap()).args(words).output())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }

    pub fn ip(&self, words: &str) -> String {
        self.command(&format!("ip {words}")).unwrap_or_else(|error| panic!("ip {words}: {error}"))
    }

    /// Returns the content of the packet filter, as JSON.
    pub fn ruleset(&self) -> String {
        self.command("nft -j list ruleset").unwrap()
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Sends every client its address, and then echoes everything.
    pub fn serve(&self, at: &str) -> u16 {
        let listener = self.run(|| TcpListener::bind(at)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for client in listener.incoming() {
                thread::spawn(move || -> io::Result<()> {
                    let mut client = client?;
                    writeln!(client, "{}", client.peer_addr()?.ip())?;
                    let mut reader = client.try_clone()?;
                    io::copy(&mut reader, &mut client).map(drop)
                });
            }
        });
        port
    }

    pub fn dial(&self, to: (impl ToString, u16)) -> io::Result<Talk> {
        self.dial_as(Uid::ROOT, to)
    }

    pub fn dial_as(&self, user: Uid, to: (impl ToString, u16)) -> io::Result<Talk> {
        let (to, port) = (to.0.to_string(), to.1);
        self.run_as(user, || Talk::to(&to, port, PATIENT))
    }

    /// Returns whether nobody answers there for a while.
    pub fn cannot_reach(&self, to: (impl ToString, u16)) -> bool {
        let (to, port) = (to.0.to_string(), to.1);
        self.run(|| Talk::to(&to, port, A_WHILE)).is_err()
    }

    /// Binds a UDP socket, which waits for each packet with patience.
    pub fn udp(&self, at: (impl ToString, u16)) -> UdpSocket {
        let at = SocketAddr::new(at.0.to_string().parse().unwrap(), at.1);
        let socket = self.run(|| UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// Connects to [`Space::serve`].
pub struct Talk {
    stream: BufReader<TcpStream>,
    /// Returns the address that the server sees.
    pub seen: String,
}

impl Talk {
    fn to(address: &str, port: u16, timeout: Duration) -> io::Result<Self> {
        let address: IpAddr = address.parse().unwrap();
        let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), timeout)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut seen = String::new();
        stream.read_line(&mut seen)?;
        Ok(Self { stream, seen: seen.trim().to_owned() })
    }

    /// Returns whether a message is echoed, with patience.
    pub fn lives(&mut self) -> bool {
        self.echoes_within(PATIENCE)
    }

    /// Returns whether a message is not echoed for a short time.
    pub fn is_cut(&mut self) -> bool {
        !self.echoes_within(SHORT)
    }

    fn echoes_within(&mut self, time: Duration) -> bool {
        self.stream.get_ref().set_read_timeout(Some(time)).unwrap();
        let said = self.stream.get_mut().write_all(b"x");
        said.and_then(|()| self.stream.read_exact(&mut [0])).is_ok()
    }
}

/// A host with an internet behind it. This thread, and its runtime, are on the host.
pub struct World {
    pub host: Space,
    pub internet: Space,
}

impl World {
    pub fn new() -> Self {
        let host = Space::enter_new();
        let internet = Space::new();
        host.ip(&format!("link add up0 type veth peer name inet0 netns {}", internet.path()));
        for (space, link, address, address6) in
            [(&host, "up0", UPLINK, "2001:db8::1"), (&internet, "inet0", INTERNET, "2001:db8::2")]
        {
            space.ip(&format!("link set {link} up"));
            space.ip(&format!("address add {address}/24 dev {link}"));
            space.ip(&format!("address add {address6}/64 dev {link} nodad"));
        }
        host.ip(&format!("route add default via {INTERNET}"));
        host.ip("route add default via 2001:db8::2");
        Self { host, internet }
    }

    /// Plugs a sandbox in, with a network stack of its own that answers on its TAP.
    pub async fn guest(&self, network: &LinuxNetwork, nic: Nic) -> Guest {
        network.plug(&nic).await.unwrap();
        let tap = File::from(tap_of(nic.vm).unwrap());
        let space = Space::new();
        let link = File::from(space.run(|| make_tap("eth0")));
        for (mut from, mut to) in [(tap.try_clone().unwrap(), link.try_clone().unwrap()), (link, tap)] {
            thread::spawn(move || -> io::Result<()> {
                let mut frame = vec![0; 1 << 16];
                loop {
                    let length = from.read(&mut frame)?;
                    // A link that is down accepts nothing.
                    let _ = to.write(&frame[..length]);
                }
            });
        }
        let (gateway4, gateway6) = subnet().gateway();
        for line in [
            format!("link set eth0 address {} up", Mac::of_guest(nic.vm)),
            format!("address add {}/32 dev eth0", nic.v4),
            format!("neighbour add {gateway4} lladdr {} dev eth0 nud permanent", Mac::HOST),
            format!("route add default via {gateway4} dev eth0 onlink"),
            format!("address add {}/128 dev eth0 nodad", nic.v6),
            format!("neighbour add {gateway6} lladdr {} dev eth0 nud permanent", Mac::HOST),
            format!("route add default via {gateway6} dev eth0 onlink"),
        ] {
            space.ip(&line);
        }
        Guest { nic, space }
    }
}

/// A guest.
pub struct Guest {
    pub nic: Nic,
    pub space: Space,
}

/// Returns the interface of the `n`-th sandbox of an owner.
pub fn nic(n: u32, owner: u32) -> Nic {
    Nic::new(vm(n), Uid(owner), subnet(), Slot(n)).unwrap()
}

pub fn vm(n: u32) -> VmId {
    VmId::from_bits(u128::from(n + 1) << 96)
}

#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A TAP with a virtio header in front of each packet.
pub fn make_tap(name: &str) -> OwnedFd {
    attach(open_tun(), name).unwrap()
}

/// Opens the device. Not every machine lets everybody open it.
pub fn open_tun() -> File {
    File::options().read(true).write(true).open("/dev/net/tun").unwrap()
}

/// Opens or makes a TAP by name, as VMMs do.
pub fn attach(file: File, name: &str) -> io::Result<OwnedFd> {
    let mut request = Request { name: [0; 16], flags: 0x5002, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `Request` is.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    unsafe { ioctl(&file, Setter::<{ opcode::write::<c_int>(b'T', 202) as _ }, Request>::new(request)) }?;
    Ok(file.into())
}
