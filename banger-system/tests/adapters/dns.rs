//! Names of guests, asked by guests and by the host over the real kernel's network.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use banger_domain::{
    dns::{
        label::UserLabel,
        limits::{CONNECTIONS, MAX_QUESTION, QUESTIONS, Rate},
        table::{NamedVm, Presence, Table},
    },
    id::{Timestamp, Uid},
    net::{
        nic::{Nat, Nic},
        subnet::Slot,
    },
};
use banger_system::{
    host::{dns::NameServer, network::LinuxNetwork},
    ports::{
        Status,
        names::Names,
        network::Network,
        wake::{Cause, Woken},
    },
    tasks::Tasks,
};
use hickory_server::proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::TXT},
};

use crate::net_lab::{Guest, INTERNET, PATIENCE, SHORT, Space, UPLINK, World, nic, subnet, vm};
use crate::private_bus::{self, Bus};
use crate::scratch::{has_program, is_root, require};
use crate::skip;

const ALICE: u32 = 5001;
const BOB: u32 = 5002;
const GATEWAY: &str = "172.30.0.1";
/// The threads of the server.
const WORKERS: usize = 2;

/// A host with a network of guests and a name server.
struct House {
    network: Arc<LinuxNetwork>,
    names: NameServer,
    bus: Bus,
    resolv_conf: PathBuf,
    _directory: tempfile::TempDir,
}

/// Runs a test on a host of its own. The server has its own threads, since the tests block.
macro_rules! on_a_host {
    ($test:expr) => {
        require!(is_root(), "root, for network namespaces");
        require!(has_program("nft") && has_program("ip"), "nft and ip");
        require!(skip::has_device("/dev/net/tun"), "TUN");
        require!(private_bus::is_possible(), "dbus-daemon");
        let world = World::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new().await;
            run($test, &world, &house).await;
        });
    };
}

async fn run<'a, F: Future<Output = ()>>(
    test: impl FnOnce(&'a World, &'a House) -> F,
    world: &'a World,
    house: &'a House,
) {
    test(world, house).await;
}

impl House {
    async fn new() -> Self {
        let network = Arc::new(LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap());
        network.prepare(subnet()).await.unwrap();
        let (bus, directory) = (Bus::start(), tempfile::tempdir().unwrap());
        let resolv_conf = directory.path().join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {GATEWAY}\nnameserver {INTERNET}\n")).unwrap();
        let names = NameServer::with_resolvers(
            bus.connect(0).await,
            network.clone(),
            resolv_conf.clone(),
            &Tasks::default(),
        );
        Self { network, names, bus, resolv_conf, _directory: directory }
    }

    /// Publishes these sandboxes and waits until the server serves.
    async fn publish(&self, world: &World, holders: Vec<NamedVm>) {
        self.names.publish(Arc::new(Table::of(subnet(), holders)));
        let begin = Instant::now();
        while ask_at(&world.host, GATEWAY, "vm", RecordType::SOA).is_err() {
            assert!(begin.elapsed() < PATIENCE, "the server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn holder(n: u32, name: &str, user: &str, nat: Nat) -> NamedVm {
    NamedVm {
        vm: vm(n),
        name: name.parse().unwrap(),
        user: UserLabel::of(user, Uid(1)),
        slot: Slot(n),
        nat,
        allowed: Arc::default(),
        since: Timestamp(u64::from(n) + 1),
        presence: Presence::Up,
    }
}

#[test]
fn the_name_of_a_suspended_sandbox_is_answered_once_it_runs() {
    on_a_host!(async |world: &World, house: &House| {
        let asleep = NamedVm { presence: Presence::Asleep, ..holder(0, "web", "alice", Nat::Off) };
        house.publish(world, vec![asleep]).await;
        for (woken, code, answers) in
            [(Woken::Yes, ResponseCode::NoError, 1), (Woken::No, ResponseCode::ServFail, 0)]
        {
            let host = world.host.clone();
            let client = thread::spawn(move || ask_at(&host, GATEWAY, "web.vm", RecordType::A));
            let wake = tokio::time::timeout(PATIENCE, house.names.wanted()).await.unwrap();
            assert_eq!((wake.vm, wake.cause), (vm(0), Cause::Name));
            // Other questions do not wait for it, and nothing but its address wakes it.
            assert!(ask_at(&world.host, GATEWAY, "vm", RecordType::A).is_ok());
            assert!(ask_at(&world.host, GATEWAY, "web.vm", RecordType::TXT).is_ok());
            assert!(!client.is_finished());
            wake.answer(woken);
            let answer = client.join().unwrap().unwrap();
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, answers));
        }
    });
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

/// Asks from somewhere in the network.
fn ask_at(space: &Space, server: &str, name: &str, kind: RecordType) -> io::Result<Message> {
    send(space, server, &question(name, kind))
}

fn send(space: &Space, server: &str, message: &Message) -> io::Result<Message> {
    send_and_wait(space, server, message, PATIENCE)
}

fn send_and_wait(space: &Space, server: &str, message: &Message, timeouts: Duration) -> io::Result<Message> {
    let server: IpAddr = server.parse().unwrap();
    let any = if server.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = space.udp((any, 0));
    socket.set_read_timeout(Some(timeouts))?;
    socket.connect(SocketAddr::new(server, 53))?;
    socket.send(&message.to_vec().unwrap())?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    Ok(reply)
}

fn connect(space: &Space) -> io::Result<TcpStream> {
    let to: SocketAddr = format!("{GATEWAY}:53").parse().unwrap();
    let stream = space.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn talk(stream: &mut TcpStream, message: &Message) -> io::Result<Message> {
    let bytes = message.to_vec().unwrap();
    stream.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat())?;
    read_framed(stream).map(|bytes| Message::from_vec(&bytes).unwrap())
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Returns the code and the answers as text.
fn said(reply: io::Result<Message>) -> String {
    let reply = reply.unwrap();
    let answers = reply.answers.iter().map(|record| record.data.to_string());
    match reply.metadata.response_code {
        ResponseCode::NoError => answers.collect::<Vec<_>>().join(" "),
        code => format!("{code:?}"),
    }
}

impl House {
    async fn guest(&self, world: &World, nic: Nic) -> Guest {
        world.guest(&self.network, nic).await
    }
}

/// Returns whether a client there gets no answer at all.
fn is_ignored(space: &Space, name: &str) -> bool {
    let reply = send_and_wait(space, GATEWAY, &question(name, RecordType::A), SHORT);
    reply.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

#[test]
fn guests_and_the_host_are_answered_over_both_protocols_and_families() {
    on_a_host!(async |world: &World, house: &House| {
        let guest = house.guest(world, nic(0, ALICE)).await;
        house
            .publish(world, vec![holder(0, "web", "alice", Nat::Off), holder(1, "db", "alice", Nat::Off)])
            .await;
        let gateway6 = subnet().gateway().1.to_string();
        for (space, who) in [(&guest.space, "guest"), (&world.host, "host")] {
            for server in [GATEWAY, gateway6.as_str()] {
                let ask = |name: &str, kind| said(ask_at(space, server, name, kind));
                assert_eq!(ask("db.vm", RecordType::A), "172.30.0.3", "{who} at {server}");
                assert_eq!(ask("db.alice.vm", RecordType::AAAA), "fd12:3456:789a::3");
                assert_eq!(ask("3.0.30.172.in-addr.arpa", RecordType::PTR), "db.alice.vm.");
                assert_eq!(ask("nobody.vm", RecordType::A), "NXDomain");
                assert_eq!(ask("db.vm", RecordType::TXT), "");
                assert_eq!(ask("example.org", RecordType::A), "Refused");
                assert_eq!(ask("vm", RecordType::AXFR), "Refused");
                assert_eq!(ask("vm", RecordType::NS), "vm.");
            }
            let mut stream = connect(space).unwrap();
            for _ in 0..3 {
                assert_eq!(said(talk(&mut stream, &question("db.vm", RecordType::A))), "172.30.0.3");
            }
        }
        let missing = ask_at(&guest.space, GATEWAY, "nobody.vm", RecordType::A).unwrap();
        assert!(missing.metadata.authoritative && missing.answers.is_empty());
        assert!(matches!(&missing.authorities[0].data, RData::SOA(soa) if soa.minimum == 1));

        // After a change the old names are gone at once.
        house.publish(world, vec![holder(0, "web", "alice", Nat::Off)]).await;
        assert_eq!(said(ask_at(&world.host, GATEWAY, "db.vm", RecordType::A)), "NXDomain");
        // A guest without a name in the table gets no answer.
        house.publish(world, vec![]).await;
        assert!(is_ignored(&guest.space, "vm"));
    });
}

#[test]
fn a_guest_learns_nothing_of_other_owners_guests() {
    on_a_host!(async |world: &World, house: &House| {
        let bobs = house.guest(world, nic(1, BOB)).await;
        house
            .publish(world, vec![holder(0, "web", "alice", Nat::Off), holder(1, "web", "bob", Nat::Off)])
            .await;
        let ask = |name: &str, kind| said(ask_at(&bobs.space, GATEWAY, name, kind));
        assert_eq!(ask("web.vm", RecordType::A), "172.30.0.3");
        for (name, kind) in [
            ("web.alice.vm", RecordType::A),
            ("web.alice.vm", RecordType::ANY),
            ("alice.vm", RecordType::A),
            ("2.0.30.172.in-addr.arpa", RecordType::PTR),
        ] {
            assert_eq!(ask(name, kind), "NXDomain", "{name}");
        }
        assert_eq!(said(ask_at(&world.host, GATEWAY, "web.vm", RecordType::A)), "172.30.0.2");
        // Other clients get no answer, neither about guests nor about other names.
        world.internet.ip(&format!("route add {GATEWAY} via {UPLINK}"));
        assert!(is_ignored(&world.internet, "web.vm"));
        let to: SocketAddr = format!("{GATEWAY}:53").parse().unwrap();
        assert!(world.internet.run(|| TcpStream::connect_timeout(&to, SHORT)).is_err());
    });
}

/// Starts a resolver in the internet. Before the right answer it sends wrong ones: with another id, and about another
/// name.
fn serve_world(world: &World) {
    let (udp, tcp) = world.internet.run(|| {
        let at = format!("{INTERNET}:53");
        (UdpSocket::bind(&at).unwrap(), TcpListener::bind(&at).unwrap())
    });
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let reply = of_the_world(&asked);
            if reply.queries[0].name.to_ascii().starts_with("silent") {
                continue;
            }
            let mut wrong = reply.clone();
            wrong.metadata.id ^= 1;
            udp.send_to(&wrong.to_vec().unwrap(), from).unwrap();
            let mut other = of_the_world(&question("other.example", RecordType::A));
            other.metadata.id = asked.metadata.id;
            udp.send_to(&other.to_vec().unwrap(), from).unwrap();
            udp.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let asked = Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap();
            let bytes = of_the_world(&asked).to_vec().unwrap();
            let framed = [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat();
            stream.write_all(&framed).unwrap();
        }
    });
}

/// Returns an answer of the length in its name.
fn of_the_world(asked: &Message) -> Message {
    let mut reply = Message::response(asked.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    let query = asked.queries[0].clone();
    let name = query.name.clone();
    reply.add_query(query);
    let lines = if name.to_ascii().starts_with("long") { 40 } else { 1 };
    for n in 0..lines {
        let text = RData::TXT(TXT::new(vec![format!("{n} {}", "x".repeat(20))]));
        reply.add_answer(Record::from_rdata(name.clone(), 60, text));
    }
    reply
}

#[test]
fn guests_with_nat_ask_the_hosts_resolvers_and_others_are_refused() {
    on_a_host!(async |world: &World, house: &House| {
        serve_world(world);
        let open = house.guest(world, Nic { nat: Nat::On, ..nic(0, ALICE) }).await;
        let closed = house.guest(world, nic(1, ALICE)).await;
        house
            .publish(world, vec![holder(0, "web", "alice", Nat::On), holder(1, "db", "alice", Nat::Off)])
            .await;

        let ask = |guest: &Guest, name: &str| ask_at(&guest.space, GATEWAY, name, RecordType::TXT);
        assert!(said(ask(&open, "example.org")).contains("0 xxxx"));
        assert_eq!(said(ask(&closed, "example.org")), "Refused");
        assert_eq!(said(ask_at(&world.host, GATEWAY, "example.org", RecordType::A)), "Refused");

        // Only what a program would look up counts, and only for the guest that was refused.
        let (web, db) = (holder(0, "web", "alice", Nat::On).vm, holder(1, "db", "alice", Nat::Off).vm);
        assert_eq!((house.names.refused(web), house.names.refused(db)), (0, 0));
        for (name, kind) in [("example.org", RecordType::A), ("example.org", RecordType::AAAA)] {
            assert_eq!(said(ask_at(&closed.space, GATEWAY, name, kind)), "Refused");
        }
        assert_eq!(said(ask_at(&closed.space, GATEWAY, "nobody.vm", RecordType::A)), "NXDomain");
        assert_eq!((house.names.refused(web), house.names.refused(db)), (0, 2));

        // Too long for a datagram: the guest asks again over a connection.
        let short = ask(&open, "long.example.org").unwrap();
        assert!(short.metadata.truncation && short.answers.is_empty());
        let mut larger = question("long.example.org", RecordType::TXT);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        larger.set_edns(edns);
        assert!(send(&open.space, GATEWAY, &larger).unwrap().metadata.truncation, "1232 are the most");
        let mut stream = connect(&open.space).unwrap();
        let whole = talk(&mut stream, &question("long.example.org", RecordType::TXT)).unwrap();
        assert_eq!(whole.answers.len(), 40);

        // A resolver that does not answer.
        assert_eq!(said(ask(&open, "silent.example.org")), "ServFail");
        // The host moves to another network.
        fs::write(&house.resolv_conf, "nameserver 203.0.113.77\n").unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(said(ask(&open, "example.org")), "ServFail");
    });
}

#[test]
fn a_guest_that_floods_the_server_takes_nothing_from_others() {
    on_a_host!(async |world: &World, house: &House| {
        let rude = house.guest(world, Nic { nat: Nat::On, ..nic(0, ALICE) }).await;
        let other = house.guest(world, nic(1, ALICE)).await;
        house
            .publish(world, vec![holder(0, "web", "alice", Nat::On), holder(1, "db", "alice", Nat::Off)])
            .await;

        flood(world, &rude);
        for _ in 0..20 {
            let reply = send_and_wait(&other.space, GATEWAY, &question("web.vm", RecordType::A), PATIENCE);
            assert_eq!(said(reply), "172.30.0.2");
        }
        let mut stream = connect(&other.space).unwrap();
        assert_eq!(said(talk(&mut stream, &question("web.vm", RecordType::A))), "172.30.0.2");

        // After a pause it is answered again, over as many connections as it may have. What is left of the flood may
        // still take the place of a question.
        wait_for(|| (0..20).all(|_| !is_ignored(&rude.space, "db.vm")));
        wait_for(|| {
            let mut connections: Vec<TcpStream> = (0..20).map(|_| connect(&rude.space).unwrap()).collect();
            let served = connections
                .iter_mut()
                .filter_map(|stream| talk(stream, &question("db.vm", RecordType::A)).ok())
                .count();
            assert!(served <= 8, "{served} connections were served");
            served == 8
        });
    });
}

#[test]
fn a_flood_while_the_server_does_not_read_costs_no_other_client_its_question() {
    on_a_host!(async |world: &World, house: &House| {
        let rude = house.guest(world, nic(0, ALICE)).await;
        let other = house.guest(world, nic(1, BOB)).await;
        house
            .publish(world, vec![holder(0, "web", "alice", Nat::Off), holder(1, "db", "bob", Nat::Off)])
            .await;
        let (lost_before, pause, began) = (queue(world).lost, Pause::begin(), Instant::now());

        flood(world, &rude);
        let waiting = queue(world).bytes;
        let most = allowed(QUESTIONS, began) * DATAGRAM;
        assert!(0 < waiting && waiting <= most, "{waiting} of {most} bytes");
        let connections: Vec<TcpStream> = (0..100).flat_map(|_| connect(&rude.space)).collect();
        assert!(!connections.is_empty() && connections.len() <= allowed(CONNECTIONS, began));
        flood_from_the_host(world);

        let asked = question("db.vm", RecordType::A);
        let questions = [(&other.space, "172.30.0.3"), (&world.host, "172.30.0.3")].map(|(space, answer)| {
            let socket = space.udp(("0.0.0.0", 0));
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(format!("{GATEWAY}:53")).unwrap();
            (socket, answer, connect(space).unwrap())
        });
        let before = came(world, &other);
        for (socket, ..) in &questions {
            socket.send(&asked.to_vec().unwrap()).unwrap();
        }
        // Both have arrived before the server reads again.
        wait_for(|| came(world, &other) > before);
        assert_eq!(queue(world).lost, lost_before);
        drop(pause);
        for (socket, answer, mut stream) in questions {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(said(Ok(Message::from_vec(&buffer[..length]).unwrap())), answer);
            assert_eq!(said(talk(&mut stream, &asked)), answer);
        }
    });
}

/// What the kernel charges at most for the longest datagram that the packet filter accepts.
const DATAGRAM: usize = 2304;

/// Returns how many times something may have happened since `began`.
fn allowed(rate: Rate, began: Instant) -> usize {
    rate.at_once as usize + (began.elapsed().as_secs_f64() * f64::from(rate.per_second)) as usize + 1
}

/// Sends packets of all kinds until thousands have come to the host.
fn flood(world: &World, rude: &Guest) {
    let socket = rude.space.udp(("0.0.0.0", 0));
    socket.connect(format!("{GATEWAY}:53")).unwrap();
    let real = question("web.vm", RecordType::A).to_vec().unwrap();
    let silent = question("x.example.org", RecordType::A).to_vec().unwrap();
    let many = [1, 2, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff].to_vec();
    let (longest, too_long, in_fragments) = (vec![7; MAX_QUESTION], vec![7; 1400], vec![7; 3000]);
    let packets = [&real, &silent, &many, &longest, &too_long, &longest, &in_fragments, &longest];
    let goal = came(world, rude) + 5000;
    wait_for(|| {
        // Its own queue holds 500, so more of them at once would be lost there.
        packets.iter().cycle().take(400).for_each(|packet| drop(socket.send(packet)));
        came(world, rude) >= goal
    });
}

/// Returns how many packets of a guest have come to the host.
fn came(world: &World, guest: &Guest) -> u64 {
    let links = world.host.ip(&format!("-s -j link show dev {}", guest.nic.tap()));
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

/// Waits without the runtime, whose threads may be stopped.
fn wait_for(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "it does not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends packets that hold 63 datagrams each, as every user of the host may.
fn flood_from_the_host(world: &World) {
    world.host.run_as(Uid(BOB), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let length: std::ffi::c_int = 16;
        // SAFETY: the option is a `c_int`, which `length` is, and its size is given.
        #[expect(unsafe_code, reason = "no crate of ours knows this option")]
        let set = unsafe {
            let size = size_of_val(&length) as libc::socklen_t;
            let at = (&raw const length).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_UDP, libc::UDP_SEGMENT, at, size)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        socket.connect(format!("{GATEWAY}:53")).unwrap();
        (0..5000).for_each(|_| drop(socket.send(&[7; 63 * 16])));
    });
}

/// What waits at the socket for datagrams, as the kernel counts it (proc_net_udp in the kernel's documentation).
struct Queue {
    bytes: usize,
    lost: usize,
}

fn queue(world: &World) -> Queue {
    let sockets = world.host.run(|| fs::read_to_string("/proc/thread-self/net/udp")).unwrap();
    // The kernel writes addresses in the host's byte order.
    let address = u32::from_ne_bytes(GATEWAY.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let ours = format!("{address:08X}:0035");
    let mut lines = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let words = lines.find(|words| words[1] == ours).unwrap();
    let (_, bytes) = words[4].split_once(':').unwrap();
    Queue { bytes: usize::from_str_radix(bytes, 16).unwrap(), lost: words[12].parse().unwrap() }
}

/// Keeps the server from running until it is dropped.
struct Pause(#[expect(dead_code, reason = "its end is the signal")] Vec<mpsc::Sender<()>>);

impl Pause {
    fn begin() -> Self {
        let stop = |_| {
            let (end, ended) = mpsc::channel::<()>();
            let (begin, begun) = mpsc::channel::<()>();
            tokio::spawn(async move {
                begin.send(()).unwrap();
                // A thread that waits here runs no other task.
                let _ = ended.recv();
            });
            begun.recv().unwrap();
            end
        };
        Self((0..WORKERS).map(stop).collect())
    }
}

#[test]
fn a_server_whose_port_is_taken_says_so_and_begins_when_it_is_free() {
    on_a_host!(async |world: &World, house: &House| {
        let thief = world.host.run(|| UdpSocket::bind(format!("{GATEWAY}:53")).unwrap());
        house.names.publish(Arc::new(Table::of(subnet(), vec![])));
        let server = async || house.names.checks().await.remove(0);
        private_bus::until(async || server().await.status == Status::Fail).await;
        let failed = server().await;
        assert!(failed.message.contains("172.30.0.1:53") && failed.hint.contains("bind"), "{failed:?}");
        drop(thief);
        house.publish(world, vec![]).await;
        private_bus::until(async || server().await.status == Status::Pass).await;
    });
}

/// The part of systemd-resolved that the service uses.
#[derive(Clone, Default)]
struct Resolved(Arc<std::sync::Mutex<Vec<String>>>);

impl Resolved {
    fn hear(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn heard(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|call| call.starts_with(what))
    }

    async fn begin(&self, bus: &Bus) -> zbus::Connection {
        let connection = bus.connect(0).await;
        connection.object_server().at("/org/freedesktop/resolve1", self.clone()).await.unwrap();
        connection.request_name("org.freedesktop.resolve1").await.unwrap();
        connection
    }
}

#[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
impl Resolved {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, _link: i32, servers: Vec<(i32, Vec<u8>)>) {
        self.hear(format!("dns {servers:?}"));
    }
    fn set_link_domains(&self, _link: i32, domains: Vec<(String, bool)>) {
        self.hear(format!("domains {domains:?}"));
    }
    fn set_link_default_route(&self, _link: i32, default: bool) {
        self.hear(format!("default {default}"));
    }
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, _link: i32, mode: &str) {
        self.hear(format!("llmnr {mode}"));
    }
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, _link: i32, mode: &str) {
        self.hear(format!("mdns {mode}"));
    }
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, _link: i32, mode: &str) {
        self.hear(format!("dnssec {mode}"));
    }
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, _link: i32, mode: &str) {
        self.hear(format!("tls {mode}"));
    }
    fn revert_link(&self, _link: i32) {
        self.hear("revert".to_owned());
    }
    fn flush_caches(&self) {
        self.hear("flush".to_owned());
    }
}

#[test]
fn systemd_resolved_is_configured_whenever_it_starts_and_forgets_lost_names() {
    on_a_host!(async |world: &World, house: &House| {
        house.publish(world, vec![holder(0, "web", "alice", Nat::Off)]).await;
        let standing = async || house.names.checks().await.remove(1);
        private_bus::until(async || standing().await.message.contains("does not run")).await;
        assert_eq!(standing().await.status, Status::Warn);

        for run in ["the first", "another"] {
            let resolved = Resolved::default();
            let connection = resolved.begin(&house.bus).await;
            private_bus::until(async || standing().await.status == Status::Pass).await;
            for call in [
                "default false",
                "llmnr no",
                "mdns no",
                "dnssec no",
                "tls no",
                "domains [(\"vm\", true), (\"30.172.in-addr.arpa\", true)",
                "dns [(2, [172, 30, 0, 1])]",
            ] {
                assert!(resolved.heard(call), "{run} was not told {call}");
            }
            // Added names need no flush; removed ones do.
            let web = holder(0, "web", "alice", Nat::Off);
            house.publish(world, vec![web.clone(), holder(1, "db", "alice", Nat::Off)]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!resolved.heard("flush"));
            house.publish(world, vec![web]).await;
            private_bus::until(async || resolved.heard("flush")).await;
            if run == "another" {
                house.names.withdraw().await;
                assert!(resolved.heard("revert"));
            }
            connection.close().await.unwrap();
            if run == "the first" {
                private_bus::until(async || standing().await.message.contains("does not run")).await;
            }
        }
    });
}
