//! The network of guests on the real kernel, with real packets.

use std::{
    collections::BTreeSet,
    future::Future,
    io::ErrorKind,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use banger_domain::{
    id::Uid,
    net::{
        nic::{Nat, Nic, TapName},
        port::{Port, Protocol, Scope},
        ruleset::{Bounds, ruleset},
    },
};
use banger_system::{
    host::network::{LinuxNetwork, tap_of},
    ports::{
        Status,
        network::{Error, Network, Restored},
        wake::{Cause, Wake, Woken},
    },
    tasks::Tasks,
};

use crate::net_lab::{
    self, INTERNET, PATIENCE, SHORT, Space, Talk, UPLINK, World, attach, nic, open_tun, subnet, vm,
};
use crate::scratch::{has_program, is_root, require};
use crate::skip;

const ALICE: u32 = 5001;
const BOB: u32 = 5002;

/// Runs a test on a host of its own.
macro_rules! on_a_host {
    ($test:expr) => {
        require!(is_root(), "root, for network namespaces");
        require!(has_program("nft") && has_program("ip"), "nft and ip");
        require!(skip::has_device("/dev/net/tun"), "TUN");
        let world = World::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let network = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
            network.prepare(subnet()).await.unwrap();
            run($test, &world, &network).await;
        });
    };
}

async fn run<'a, F: Future<Output = ()>>(
    test: impl FnOnce(&'a World, &'a LinuxNetwork) -> F,
    world: &'a World,
    network: &'a LinuxNetwork,
) {
    test(world, network).await;
}

fn with_nat(nic: Nic) -> Nic {
    Nic { nat: Nat::On, ..nic }
}

fn publishing(nic: &Nic, scope: Scope, host: u16, guest: u16) -> Nic {
    let ports = BTreeSet::from([Port { scope, protocol: Protocol::Tcp, host, guest }]);
    Nic { ports, ..nic.clone() }
}

/// Waits until a condition holds, by polling.
async fn until(condition: &dyn Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "it does not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused<T>(result: std::io::Result<T>) -> bool {
    // An error at once, and not the silence in which a program would wait.
    result.is_err_and(|error| !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

#[test]
fn what_others_removed_from_the_packet_filter_is_restored_on_request() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let guest = world.guest(network, nic(0, ALICE)).await;
        let nothing = Restored::default();
        assert_eq!(network.restore().await.unwrap(), nothing);
        for damage in ["delete table inet banger", "flush table inet banger", "flush set inet banger source4"]
        {
            world.host.command(&format!("nft {damage}")).unwrap();
            let restored = network.restore().await.unwrap();
            assert!(restored.rules || restored.guests, "{damage}");
            assert_eq!(network.restore().await.unwrap(), nothing, "{damage}: it is whole again");
            assert_eq!(network.found().await.unwrap(), [guest.nic.vm], "{damage}");
        }
        world.host.command("nft add rule inet banger from_guest counter").unwrap();
        assert_eq!(network.restore().await.unwrap(), Restored { rules: true, ..nothing });
        world.host.ip("link delete banger0");
        assert_eq!(network.restore().await.unwrap(), Restored { link: true, ..nothing });
        network.change(&guest.nic, &with_nat(guest.nic.clone())).await.unwrap();
        assert_eq!(network.restore().await.unwrap(), nothing);
        world.host.run(|| std::fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "0")).unwrap();
        assert_eq!(network.restore().await.unwrap(), Restored { forwarding: true, ..nothing });
        assert_eq!(network.restore().await.unwrap(), nothing);
    });
}

#[test]
fn nat_leads_a_guest_outside_and_is_cut_at_once() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let web = world.internet.serve("0.0.0.0:0");
        let guest = world.guest(network, nic(0, ALICE)).await;
        assert!(refused(guest.space.dial((INTERNET, web))), "there is no NAT yet");

        let open = with_nat(guest.nic.clone());
        network.change(&guest.nic, &open).await.unwrap();
        let mut talk = guest.space.dial((INTERNET, web)).unwrap();
        assert_eq!(talk.seen, UPLINK, "the guest goes in the name of the host");
        assert!(talk.lives());

        network.change(&open, &guest.nic).await.unwrap();
        assert!(talk.is_cut(), "a connection outlived the NAT");
        assert!(refused(guest.space.dial((INTERNET, web))));
    });
}

#[test]
fn a_guest_may_send_only_from_its_own_address() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let guest = world.guest(network, nic(0, ALICE)).await;
        let gateway = subnet().gateway();
        for (own, wrong, at) in [
            (guest.nic.v4.to_string(), "172.30.0.99/32", gateway.0.to_string()),
            (guest.nic.v6.to_string(), "fd12:3456:789a::99/128 nodad", gateway.1.to_string()),
        ] {
            guest.space.ip(&format!("address add {wrong} dev eth0"));
            let wrong = wrong.split('/').next().unwrap();
            let dns = world.host.udp((&at, 53));
            let says = |from: &str, patience| {
                dns.set_read_timeout(Some(patience)).unwrap();
                guest.space.udp((from, 0)).send_to(from.as_bytes(), (at.as_str(), 53)).unwrap();
                let mut packet = [0; 64];
                dns.recv(&mut packet).map(|length| packet[..length].to_vec())
            };
            assert_eq!(says(&own, PATIENCE).unwrap(), own.as_bytes());
            assert!(says(wrong, SHORT).is_err(), "a packet from {wrong} came through");
        }
    });
}

#[test]
fn a_guest_reaches_dns_on_the_host_and_no_other_port() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let (gateway4, gateway6) = subnet().gateway();
        let guest = world.guest(network, with_nat(nic(0, ALICE))).await;
        world.host.serve(&format!("{gateway4}:53"));
        world.host.serve(&format!("[{gateway6}]:53"));
        let other = world.host.serve("[::]:0");
        assert_eq!(guest.space.dial((gateway4, 53)).unwrap().seen, guest.nic.v4.to_string());
        assert_eq!(guest.space.dial((gateway6, 53)).unwrap().seen, guest.nic.v6.to_string());
        for address in [gateway4.to_string(), gateway6.to_string(), UPLINK.to_owned()] {
            assert!(refused(guest.space.dial((&address, other))), "{address}");
        }
    });
}

#[test]
fn only_guests_of_one_owner_reach_each_other() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let alices = world.guest(network, nic(0, ALICE)).await;
        let sister = world.guest(network, nic(1, ALICE)).await;
        let bobs = world.guest(network, with_nat(nic(2, BOB))).await;
        let port = alices.space.serve("[::]:0");
        assert!(sister.space.dial((alices.nic.v4, port)).is_ok());
        assert!(refused(bobs.space.dial((alices.nic.v4, port))));
        assert!(refused(bobs.space.dial((alices.nic.v6, port))));
        assert!(refused(bobs.space.dial(("172.30.7.7", port))), "an address that nobody has");
        if std::path::Path::new("/proc/sys/net/ipv6/conf/default/force_forwarding").exists() {
            assert!(sister.space.dial((alices.nic.v6, port)).is_ok());
        }
    });
}

#[test]
fn on_the_host_only_root_and_the_owner_reach_a_guest() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let guest = world.guest(network, nic(0, ALICE)).await;
        let port = guest.space.serve("[::]:0");
        for address in [guest.nic.v4.to_string(), guest.nic.v6.to_string()] {
            let mut talk = world.host.dial_as(Uid(ALICE), (&address, port)).unwrap();
            assert!(talk.lives());
            assert!(world.host.dial((&address, port)).is_ok(), "root");
            let foreign = world.host.dial_as(Uid(BOB), (&address, port));
            assert_eq!(
                foreign.err().map(|error| error.kind()),
                Some(ErrorKind::ConnectionRefused),
                "{address}"
            );
        }
        let nobody = world.host.dial_as(Uid(ALICE), ("172.30.7.7", port));
        assert!(refused(nobody), "an address that no guest has");
    });
}

#[test]
fn a_port_is_published_in_its_scope_and_withdrawn_at_once() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let guest = world.guest(network, nic(0, ALICE)).await;
        let (api, web) = (guest.space.serve("0.0.0.0:0"), guest.space.serve("0.0.0.0:0"));
        let here = publishing(&guest.nic, Scope::Loopback, 8080, api);
        network.change(&guest.nic, &here).await.unwrap();
        let mut talk = world.host.dial_as(Uid(BOB), ("127.0.0.1", 8080)).unwrap();
        assert_eq!(talk.seen, subnet().gateway().0.to_string());
        assert!(talk.lives());
        assert!(world.internet.cannot_reach((UPLINK, 8080)));

        let everywhere = publishing(&guest.nic, Scope::All, 8081, web);
        network.change(&here, &everywhere).await.unwrap();
        assert!(talk.is_cut(), "a connection outlived its port");
        assert!(world.host.dial_as(Uid(BOB), ("127.0.0.1", 8080)).is_err());
        let mut talk = world.internet.dial((UPLINK, 8081)).unwrap();
        assert_eq!(talk.seen, INTERNET, "the guest sees who comes");
        assert!(world.host.dial((UPLINK, 8081)).unwrap().lives());
        assert!(world.host.dial(("127.0.0.1", 8081)).unwrap().lives());

        let other = publishing(&nic(1, BOB), Scope::All, 8081, 80);
        let taken = network.plug(&other).await.unwrap_err();
        assert!(matches!(taken, Error::Taken { .. }) && taken.to_string().contains("8081/tcp"), "{taken}");
        network.unplug(other.vm).await.unwrap();
        assert!(talk.lives(), "the second one took the port away");

        network.change(&everywhere, &guest.nic).await.unwrap();
        assert!(talk.is_cut());
        assert!(world.internet.cannot_reach((UPLINK, 8081)));
    });
}

/// Connects to a published port in the background.
fn dials(space: &Space, at: &'static str) -> JoinHandle<std::io::Result<Talk>> {
    let space = space.clone();
    std::thread::spawn(move || space.dial((at, 8080)))
}

async fn wanted(network: &LinuxNetwork, nic: &Nic) -> Wake {
    let wake = tokio::time::timeout(PATIENCE, network.wanted()).await.unwrap();
    assert_eq!((wake.vm, wake.cause), (nic.vm, Cause::Port(8080)));
    wake
}

#[test]
fn a_connection_to_a_suspended_guest_waits_for_it_and_is_carried() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let nic = publishing(&nic(0, ALICE), Scope::All, 8080, 80);
        drop(world.guest(network, nic.clone()).await);
        network.doze(&nic).await.unwrap();
        network.doze(&nic).await.unwrap();
        let tap = nic.tap().to_string();
        assert!(!world.host.ip("link").contains(&tap) && !world.host.ruleset().contains(&tap));
        assert_eq!(network.found().await.unwrap(), [], "sockets of this run are in its memory");
        let taken = || world.host.run(|| std::net::TcpListener::bind("0.0.0.0:8080")).is_err();
        assert!(taken());

        // Clients of the host and from outside connect before the guest exists, and ask for it once each.
        let clients = [dials(&world.host, "127.0.0.1"), dials(&world.internet, UPLINK)];
        let wakes = [wanted(network, &nic).await, wanted(network, &nic).await];
        let guest = world.guest(network, nic.clone()).await;
        guest.space.serve("0.0.0.0:80");
        wakes.into_iter().for_each(|wake| wake.answer(Woken::Yes));
        until(&|| clients.iter().all(JoinHandle::is_finished)).await;
        let mut talks = Vec::new();
        for client in clients {
            let mut talk = client.join().unwrap().unwrap();
            assert_eq!(talk.seen, UPLINK, "the service carries it");
            let echoed = std::thread::spawn(move || (talk.lives(), talk));
            until(&|| echoed.is_finished()).await;
            let (lives, talk) = echoed.join().unwrap();
            assert!(lives);
            talks.push(talk);
        }
        // Later ones go there by themselves.
        let mut talk = world.internet.dial((UPLINK, 8080)).unwrap();
        assert!(talk.seen == INTERNET && talk.lives());

        // What is left of the connections that were carried does not keep the port, and nobody else gets it.
        network.unplug(nic.vm).await.unwrap();
        network.plug(&nic).await.unwrap();
        assert!(taken());
    });
}

#[test]
fn a_client_of_a_guest_that_does_not_wake_is_refused() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let nic = publishing(&nic(0, ALICE), Scope::Loopback, 8080, 80);
        network.doze(&nic).await.unwrap();
        for _ in 0..2 {
            let client = dials(&world.host, "127.0.0.1");
            wanted(network, &nic).await.answer(Woken::No);
            until(&|| client.is_finished()).await;
            assert!(refused(client.join().unwrap()));
        }
        assert!(world.internet.cannot_reach((UPLINK, 8080)), "it is published on loopback only");
        // Without the port, nobody is heard.
        network.doze(&Nic { ports: BTreeSet::new(), ..nic.clone() }).await.unwrap();
        assert!(refused(world.host.dial(("127.0.0.1", 8080))));
        network.doze(&nic).await.unwrap();
        network.unplug(nic.vm).await.unwrap();
        assert!(refused(world.host.dial(("127.0.0.1", 8080))));
        drop(world.host.run(|| std::net::TcpListener::bind("127.0.0.1:8080")).unwrap());
    });
}

#[test]
fn a_published_port_takes_no_client_of_another_service() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let guest = world.guest(network, nic(0, ALICE)).await;
        let inside = guest.space.serve("0.0.0.0:0");
        // Answers of the guest come from the gateway's address, those of a service of the host from another.
        let gateway = subnet().gateway().0.to_string();
        let seen = |at: &str, port: u16| world.host.dial_as(Uid(BOB), (at, port)).map(|talk| talk.seen);
        world.host.serve("127.0.1.1:5432");
        world.host.serve(&format!("{UPLINK}:5432"));
        world.host.serve("[::1]:5432");
        let here = publishing(&guest.nic, Scope::Loopback, 5432, inside);
        network.change(&guest.nic, &here).await.unwrap();
        assert_eq!(seen("127.0.0.1", 5432).unwrap(), gateway);
        for (at, own) in [("127.0.1.1", "127.0.0.1"), (UPLINK, UPLINK), ("::1", "::1")] {
            assert_eq!(seen(at, 5432).unwrap(), own, "a client of {at} went to the guest");
        }
        assert!(refused(world.host.dial(("127.0.0.2", 5432))), "nobody listens there");

        // On all addresses, a port is reserved on both families.
        for at in ["127.0.1.1:5433", "[::1]:5433", "[2001:db8::1]:5433"] {
            let program = world.host.run(|| std::net::TcpListener::bind(at)).unwrap();
            let wish = publishing(&guest.nic, Scope::All, 5433, inside);
            let taken = network.change(&here, &wish).await.unwrap_err();
            assert!(matches!(taken, Error::Taken { .. }), "{at}: {taken}");
            drop(program);
        }
        let everywhere = publishing(&guest.nic, Scope::All, 5433, inside);
        network.change(&here, &everywhere).await.unwrap();
        for at in ["127.0.0.1:5433", "127.0.1.1:5433", "[::1]:5433", "[2001:db8::1]:5433"] {
            let bound = world.host.run(|| std::net::TcpListener::bind(at));
            assert_eq!(bound.err().map(|error| error.kind()), Some(ErrorKind::AddrInUse), "{at}");
        }
    });
}

#[test]
fn a_port_taken_while_the_service_was_down_is_no_longer_published() {
    on_a_host!(async |world: &World, _: &LinuxNetwork| {
        let before = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
        before.prepare(subnet()).await.unwrap();
        let guest = world.guest(&before, nic(0, ALICE)).await;
        let (one, two) = (guest.space.serve("0.0.0.0:0"), guest.space.serve("0.0.0.0:0"));
        let port = |host, guest| Port { scope: Scope::Loopback, protocol: Protocol::Tcp, host, guest };
        let (kept, taken) = (port(8080, one), port(8081, two));
        let wish = Nic { ports: [kept, taken].into(), ..guest.nic.clone() };
        before.change(&guest.nic, &wish).await.unwrap();
        drop(before);
        let gateway = subnet().gateway().0.to_string();
        let seen = |port: u16| world.host.dial_as(Uid(BOB), ("127.0.0.1", port)).map(|talk| talk.seen);
        world.host.serve("127.0.0.1:8081");
        assert_eq!(seen(8081).unwrap(), gateway, "the rule is still there");

        let next = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
        next.prepare(subnet()).await.unwrap();
        assert_eq!(next.reattach(&wish).await.unwrap(), BTreeSet::from([taken]));
        assert_eq!(seen(8081).unwrap(), "127.0.0.1");
        assert_eq!(seen(8080).unwrap(), gateway);
        assert!(next.is_published(8080) && !next.is_published(8081));

        next.unpublish_all().await.unwrap();
        assert!(seen(8080).is_err());
        drop(world.host.run(|| std::net::TcpListener::bind("127.0.0.1:8080")).unwrap());
    });
}

#[test]
fn a_guest_cannot_fill_the_table_of_connections() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let few = few_connections();
        world.host.command(&format!("nft -f {}", few.path().display())).unwrap();
        let kept = || -> usize {
            let count =
                world.host.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
            count.unwrap().trim().parse().unwrap()
        };
        let alices = world.guest(network, with_nat(nic(0, ALICE))).await;
        let bobs = world.guest(network, with_nat(nic(1, BOB))).await;
        let web = world.internet.serve("0.0.0.0:0");
        let flood = |guest: &net_lab::Guest, to: &str, ports: std::ops::Range<u16>| {
            let socket = guest.space.udp((guest.nic.v4, 0));
            // A refused packet is reported by a later call.
            ports.for_each(|port| drop(socket.send_to(b"x", (to, port))));
        };
        flood(&alices, INTERNET, 2000..4000);
        assert!(kept() <= FEW + 10, "{} connections", kept());
        assert!(refused(alices.space.dial((INTERNET, web))), "a connection beyond the bound");
        assert!(bobs.space.dial((INTERNET, web)).unwrap().lives(), "another user's guest pays for it");

        // All guests of an owner together have twice as many, however many guests there are.
        for n in 2..6 {
            let sister = world.guest(network, with_nat(nic(n, ALICE))).await;
            flood(&sister, INTERNET, 2000..2200);
        }
        assert!(kept() <= 2 * FEW + 30, "{} connections", kept());

        // Questions to the name server are not tracked, so they do not count.
        let (before, gateway) = (kept(), subnet().gateway());
        let dns = world.host.udp((gateway.0, 53));
        for _ in 0..300 {
            let socket = alices.space.udp((alices.nic.v4, 0));
            socket.send_to(b"?", (gateway.0, 53)).unwrap();
            let mut packet = [0; 8];
            let (_, from) = dns.recv_from(&mut packet).unwrap();
            dns.send_to(b"!", from).unwrap();
            assert_eq!(socket.recv(&mut packet).unwrap(), 1);
        }
        assert!(kept() <= before + 5, "{} connections after {before}", kept());

        network.unplug(alices.nic.vm).await.unwrap();
        assert!(!world.host.ruleset().contains(alices.nic.tap().as_str()), "{}", world.host.ruleset());
    });
}

/// How many connections a guest may have on a host of the test above.
const FEW: usize = 50;

/// Returns the rules with low bounds.
fn few_connections() -> tempfile::NamedTempFile {
    let bounds = Bounds { guest: FEW as u32, owner: 2 * FEW as u32 };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ruleset(subnet(), Some(bounds))).unwrap();
    file
}

#[test]
fn a_kernel_that_counts_no_connections_has_the_other_rules() {
    on_a_host!(async |world: &World, _: &LinuxNetwork| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ruleset(subnet(), None)).unwrap();
        world.host.command(&format!("nft -f {}", file.path().display())).unwrap();
    });
}

#[test]
fn the_host_does_not_become_a_router_for_others() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let neighbour = Space::new();
        world.host.ip(&format!("link add lan0 type veth peer name lan1 netns {}", neighbour.path()));
        world.host.ip("link set lan0 up");
        world.host.ip("address add 192.168.9.1/24 dev lan0");
        neighbour.ip("link set lan1 up");
        neighbour.ip("address add 192.168.9.2/24 dev lan1");
        neighbour.ip("route add default via 192.168.9.1");
        world.internet.ip(&format!("route add 192.168.9.0/24 via {UPLINK}"));
        let (lan, web) = (neighbour.serve("0.0.0.0:0"), world.internet.serve("0.0.0.0:0"));

        let guest = world.guest(network, with_nat(nic(0, ALICE))).await;
        assert!(guest.space.dial((INTERNET, web)).is_ok());
        assert_eq!(world.host.command("cat /proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
        assert!(world.internet.cannot_reach(("192.168.9.2", lan)));
        assert!(neighbour.cannot_reach((INTERNET, web)));
        let unasked = world.internet.clone();
        unasked.ip(&format!("route add 172.30.0.0/16 via {UPLINK}"));
        let port = guest.space.serve("0.0.0.0:0");
        assert!(unasked.cannot_reach((guest.nic.v4, port)), "a guest with NAT can be reached from outside");
    });
}

#[test]
fn each_step_may_be_done_twice_and_nothing_is_left() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let before = (world.host.ruleset(), world.host.ip("-d link"), world.host.ip("route show table all"));
        let open = publishing(&with_nat(nic(0, ALICE)), Scope::All, 80, 80);
        for _ in 0..2 {
            network.plug(&open).await.unwrap();
            assert_eq!(network.found().await.unwrap(), [open.vm]);
        }
        let ruleset = world.host.ruleset();
        for part in [
            r#"{"concat": ["bgr-00000001000", "172.30.0.2"]}"#,
            r#"{"concat": ["bgr-00000001000", "fd12:3456:789a::2"]}"#,
            r#"{"concat": ["bgr-00000001000", "tcp", 80]}"#,
            r#"[{"concat": ["tcp", 80]}, {"concat": ["172.30.0.2", 80]}]"#,
            r#"{"concat": [5001, "bgr-00000001000"]}"#,
        ] {
            assert!(ruleset.contains(part), "{part} is not in {ruleset}");
        }
        for _ in 0..2 {
            network.unplug(open.vm).await.unwrap();
            assert_eq!(network.found().await.unwrap(), []);
        }
        // NAT enabled forwarding on the uplink, which stays enabled.
        let ruleset = world.host.ruleset().replace(r#", "elem": ["up0"]"#, "");
        assert_eq!(ruleset, before.0);
        assert_eq!(world.host.ip("-d link"), before.1);
        assert_eq!(world.host.ip("route show table all"), before.2);

        for _ in 0..2 {
            network.withdraw().await.unwrap();
        }
        assert!(!world.host.ruleset().contains("banger"));
        assert!(!world.host.ip("route show table all").contains("172.30"));
        assert!(!world.host.ip("link").contains("banger"));
        assert_eq!(world.host.command("cat /proc/sys/net/ipv4/conf/up0/forwarding").unwrap().trim(), "0");
    });
}

#[test]
fn interfaces_that_are_kept_ready_become_guests_and_go_with_the_service() {
    on_a_host!(async |world: &World, _: &LinuxNetwork| {
        let warm = || world.host.ip("-o link").lines().filter(|line| line.contains("bgw")).count();
        let network = LinuxNetwork::new(2, Arc::default(), &Tasks::default()).unwrap();
        network.prepare(subnet()).await.unwrap();
        let web = world.internet.serve("0.0.0.0:0");
        for n in 0..3 {
            let guest = world.guest(&network, with_nat(nic(n, ALICE))).await;
            guest.space.dial((INTERNET, web)).unwrap();
            // The pool is filled in the background.
            until(&|| warm() == 2).await;
        }
        assert_eq!(network.found().await.unwrap().len(), 3);
        drop(network);
        until(&|| warm() == 0).await;
    });
}

#[test]
fn the_next_run_of_the_service_takes_over_what_it_finds() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let web = world.internet.serve("0.0.0.0:0");
        let guest = world.guest(network, with_nat(nic(0, ALICE))).await;
        let lost = publishing(&with_nat(nic(1, BOB)), Scope::Loopback, 80, 80);
        network.plug(&lost).await.unwrap();
        let mut talk = guest.space.dial((INTERNET, web)).unwrap();

        let next = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
        next.prepare(subnet()).await.unwrap();
        assert_eq!(next.found().await.unwrap(), [vm(0), vm(1)]);
        assert!(talk.lives(), "a guest noticed");
        // The service ended before it could remove NAT.
        next.plug(&nic(0, ALICE)).await.unwrap();
        assert!(talk.is_cut());
        next.unplug(lost.vm).await.unwrap();
        assert_eq!(next.found().await.unwrap(), [vm(0)]);
        next.unplug(vm(0)).await.unwrap();
        assert!(!world.host.ruleset().contains("bgr-0000"), "{}", world.host.ruleset());
    });
}

#[test]
fn elements_without_a_tap_and_a_tap_without_elements_are_found_and_removed() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let (one, other) = (nic(0, ALICE), nic(1, ALICE));
        network.plug(&one).await.unwrap();
        network.plug(&other).await.unwrap();
        world.host.ip(&format!("link del {}", one.tap()));
        world
            .host
            .command(&format!("nft delete element inet banger source4 {{ {} . {} }}", other.tap(), other.v4))
            .unwrap();
        let next = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
        assert_eq!(next.found().await.unwrap(), [one.vm, other.vm]);
        for vm in [one.vm, other.vm] {
            next.unplug(vm).await.unwrap();
        }
        assert_eq!(next.found().await.unwrap(), []);
        assert!(!world.host.ruleset().contains("bgr-0000"), "{}", world.host.ruleset());
    });
}

#[test]
fn a_flushed_packet_filter_is_made_again() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let web = world.internet.serve("0.0.0.0:0");
        let guest = world.guest(network, with_nat(nic(0, ALICE))).await;
        world.host.command("nft flush ruleset").unwrap();
        network.prepare(subnet()).await.unwrap();
        assert!(guest.space.dial((INTERNET, web)).unwrap().lives());
        // The next sandbox comes before anything has noticed.
        world.host.command("nft flush ruleset").unwrap();
        network.plug(&nic(1, BOB)).await.unwrap();
        assert!(guest.space.dial((INTERNET, web)).unwrap().lives());
        // An administrator, or another version, put a table of the same name there.
        world.host.command("nft delete table inet banger").unwrap();
        world.host.command("nft add table inet banger").unwrap();
        world.host.command("nft add set inet banger nat4 { type ipv4_addr; }").unwrap();
        network.prepare(subnet()).await.unwrap();
        assert!(guest.space.dial((INTERNET, web)).unwrap().lives());
    });
}

#[test]
fn the_maintenance_of_the_network_notices_what_others_do_to_the_host() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let web = world.internet.serve("0.0.0.0:0");
        let guest = world.guest(network, with_nat(nic(0, ALICE))).await;
        let forwards = |link: &str| {
            let setting = format!("cat /proc/sys/net/ipv4/conf/{link}/forwarding");
            world.host.command(&setting).unwrap().trim() == "1"
        };
        let story = async {
            // The watcher gets its first turn.
            tokio::task::yield_now().await;
            world.host.command("nft flush ruleset").unwrap();
            until(&|| !guest.space.cannot_reach((INTERNET, web))).await;

            // The default route has changed.
            world.host.ip(&format!("link add up1 type veth peer name inet1 netns {}", world.internet.path()));
            world.internet.ip("address add 198.51.100.2/24 dev inet1");
            world.internet.ip("link set inet1 up");
            world.host.ip("address add 198.51.100.1/24 dev up1");
            world.host.ip("link set up1 up");
            world.host.ip("route replace default via 198.51.100.2");
            world.host.ip("-6 route del default");
            until(&|| forwards("up1") && !forwards("up0")).await;
            let seen = guest.space.dial(("198.51.100.2", web)).unwrap().seen;
            assert_eq!(seen, "198.51.100.1", "the new way out has another address");

            // Docker makes the host a router: what it forwards is not our business.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            until(&|| !world.host.command("nft list set inet banger opened").unwrap().contains("up1")).await;
        };
        tokio::select! {
            biased;
            ended = network.maintain() => panic!("{ended:?}"),
            () = story => {}
        }
    });
}

#[test]
fn a_default_route_that_came_while_no_guest_needed_it_is_found() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let web = world.internet.serve("0.0.0.0:0");
        let guest = world.guest(network, with_nat(nic(0, ALICE))).await;
        guest.space.dial((INTERNET, web)).unwrap();
        let without = nic(0, ALICE);
        network.change(&guest.nic, &without).await.unwrap();
        let story = async {
            tokio::task::yield_now().await;
            world.host.ip(&format!("link add up1 type veth peer name inet1 netns {}", world.internet.path()));
            world.internet.ip("address add 198.51.100.2/24 dev inet1");
            world.internet.ip("link set inet1 up");
            world.host.ip("address add 198.51.100.1/24 dev up1");
            world.host.ip("link set up1 up");
            world.host.ip("route replace default via 198.51.100.2");
            let begin = Instant::now();
            while begin.elapsed() < PATIENCE {
                // The change is noticed in the background.
                tokio::time::sleep(Duration::from_millis(20)).await;
                network.change(&without, &guest.nic).await.unwrap();
                if !guest.space.cannot_reach(("198.51.100.2", web)) {
                    return;
                }
                network.change(&guest.nic, &without).await.unwrap();
            }
            panic!("the new way out was not found");
        };
        tokio::select! {
            biased;
            ended = network.maintain() => panic!("{ended:?}"),
            () = story => {}
        }
    });
}

#[test]
fn a_tap_is_for_root_until_it_is_given_to_a_user() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let nic = nic(0, ALICE);
        let missing = tap_of(nic.vm).unwrap_err();
        assert!(missing.to_string().contains("bgr-00000001000"), "{missing}");
        assert!(!world.host.ip("link").contains("bgr-"), "looking for a TAP made one");
        network.plug(&nic).await.unwrap();
        let open_as = |user| {
            let tun = open_tun();
            world.host.run_as(Uid(user), || attach(tun, nic.tap().as_str()))
        };
        assert_eq!(open_as(4242).unwrap_err().kind(), ErrorKind::PermissionDenied);
        network.set_tap_owner(nic.vm, Uid(4242)).await.unwrap();
        assert_eq!(open_as(4243).unwrap_err().kind(), ErrorKind::PermissionDenied);
        let held = open_as(4242).unwrap();
        assert!(tap_of(nic.vm).is_err(), "a TAP has one reader");
        drop(held);
        tap_of(nic.vm).unwrap();
    });
}

#[test]
fn objects_of_other_programs_are_left_alone() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let nic = nic(0, ALICE);
        world.host.ip(&format!("tuntap add {} mode tap", nic.tap()));
        let taken = network.plug(&nic).await.unwrap_err();
        assert!(matches!(taken, Error::Taken { .. }), "{taken}");
        network.unplug(nic.vm).await.unwrap();
        assert!(world.host.ip("link").contains(nic.tap().as_str()));
        assert_eq!(network.found().await.unwrap(), []);

        let elsewhere = Space::new();
        elsewhere.ip("link add banger0 type veth peer name other");
        let refused = elsewhere.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap().prepare(subnet()).await
            })
        });
        assert!(matches!(refused, Err(Error::Taken { .. })));
    });
}

#[test]
fn the_routes_of_the_host_are_known_and_ours_are_not_among_them() {
    on_a_host!(async |_world: &World, network: &LinuxNetwork| {
        network.plug(&nic(0, ALICE)).await.unwrap();
        let occupied = network.occupied().await.unwrap();
        assert!(occupied.iter().any(|prefix| prefix.contains(UPLINK.parse().unwrap())), "{occupied:?}");
        assert!(!occupied.iter().any(|prefix| prefix.overlaps(subnet().v4())), "{occupied:?}");
    });
}

#[test]
fn lists_that_are_wanted_at_once_wait_for_each_other_even_if_callers_go() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        // More than fits into one answer of the kernel.
        let routes = (0..2000).map(|n| format!("route add 172.20.{}.{}/32 dev up0\n", n / 250, n % 250));
        let batch = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&batch, routes.collect::<String>()).unwrap();
        world.host.ip(&format!("-batch {}", batch.path().display()));
        let wanted = (0..10).map(async |_| {
            // This caller goes as soon as its list has begun.
            let _ = tokio::time::timeout(Duration::from_micros(1), network.occupied()).await;
            network.occupied().await.map(|prefixes| prefixes.len())
        });
        for listed in futures_util::future::join_all(wanted).await {
            assert!(listed.unwrap() >= 2000);
        }
    });
}

#[test]
fn doctor_warns_of_a_firewall_that_drops_packets_of_guests() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let firewall = |checks: Vec<banger_system::ports::Check>| {
            checks.into_iter().filter(|check| check.name == "firewall").collect::<Vec<_>>()
        };
        assert_eq!(firewall(network.nat_checks().await)[0].status, Status::Pass);
        // The existing rules count.
        let checks = network.nat_checks().await;
        let connections = checks.iter().find(|check| check.name == "connections").unwrap();
        assert_eq!(connections.status, Status::Pass, "{}", connections.message);
        world.host.command("nft add table ip filter").unwrap();
        world
            .host
            .command("nft add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
            .unwrap();
        let found = firewall(network.nat_checks().await);
        assert_eq!(found[0].status, Status::Warn);
        assert!(found[0].message.contains("ip filter FORWARD") && found[0].hint.contains("DOCKER-USER"));
    });
}

#[test]
fn many_guests_come_and_go_at_once() {
    on_a_host!(async |world: &World, network: &LinuxNetwork| {
        let nics: Vec<Nic> = (0..20).map(|n| with_nat(nic(n, 5000 + n % 3))).collect();
        let plugged = futures_util::future::join_all(nics.iter().map(|nic| network.plug(nic))).await;
        plugged.into_iter().for_each(|result| result.unwrap());
        assert_eq!(network.found().await.unwrap().len(), 20);
        assert!(world.host.ip("link").contains(TapName::of(vm(19)).as_str()));
        let gone = futures_util::future::join_all(nics.iter().map(|nic| network.unplug(nic.vm))).await;
        gone.into_iter().for_each(|result| result.unwrap());
        assert_eq!(network.found().await.unwrap(), []);
    });
}
