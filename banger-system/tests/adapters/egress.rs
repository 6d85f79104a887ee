//! Restricted guests on the real kernel: what the packet filter lets through after the name server has answered.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use banger_domain::{
    dns::{
        RESTRICTED_TTL,
        label::UserLabel,
        table::{NamedVm, Presence, Table},
    },
    egress::{Egress, allow_list::AllowList, log::Destination, preset::Presets},
    id::{Timestamp, Uid},
    net::{
        nic::{Nat, Nic},
        port::Protocol,
        subnet::Slot,
    },
};
use banger_system::{
    host::{dns::NameServer, network::LinuxNetwork},
    ports::{
        names::Names,
        network::{Granted, Network, Restored},
    },
    tasks::Tasks,
};
use hickory_server::proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};

use crate::net_lab::{Guest, INTERNET, PATIENCE, SHORT, Space, World, nic, subnet, vm};
use crate::private_bus::{self, Bus};
use crate::scratch::{has_program, is_root, require};
use crate::skip;

const ALICE: u32 = 5001;
const GATEWAY: &str = "172.30.0.1";
/// The other address of the internet.
const OTHER: &str = "203.0.113.9";
const INTERNET6: &str = "2001:db8:1::2";
/// Who is on the same link as the host.
const NEIGHBOUR6: &str = "2001:db8::2";
/// An address in the networks of the host.
const INTERNAL: &str = "10.9.9.9";
/// Thousands of times what a grant takes, so that a busy machine does not matter. A look-up that waits for something else
/// takes as long.
const FAR_TOO_SLOW: Duration = Duration::from_secs(1);

fn allowed(words: &[&str]) -> Arc<AllowList> {
    Arc::new(AllowList::of(&Egress::parse(words).unwrap(), &Presets::default()))
}

fn restricted(words: &[&str]) -> Nic {
    Nic { allowed: allowed(words), ..nic(0, ALICE) }
}

fn refused<T>(result: std::io::Result<T>) -> bool {
    // An error at once, and not the silence in which a program would wait.
    result.is_err_and(|error| !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

fn on_a_runtime(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test());
}

macro_rules! require_a_host {
    () => {
        require!(is_root(), "root, for network namespaces");
        require!(has_program("nft") && has_program("ip"), "nft and ip");
        require!(skip::has_device("/dev/net/tun"), "TUN");
        require!(private_bus::is_possible(), "dbus-daemon");
    };
}

async fn network() -> Arc<LinuxNetwork> {
    let network = Arc::new(LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap());
    network.prepare(subnet()).await.unwrap();
    network
}

/// Returns a world whose internet has a second address, and one of IPv6 behind a router.
fn world() -> World {
    let world = World::new();
    world.internet.ip(&format!("address add {OTHER}/24 dev inet0"));
    world.internet.ip(&format!("address add {INTERNET6}/128 dev lo nodad"));
    world
}

/// Returns whether guests reach networks beyond the host by IPv6.
fn forwards6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6/conf/default/force_forwarding").exists()
}

/// Returns how often the packet filter has changed.
fn changes(world: &World) -> u32 {
    world.host.run(|| crabtables::Socket::new().unwrap().get_gen().unwrap())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns the elements of a set as nft prints them.
fn in_set(world: &World, set: &str) -> String {
    world.host.command(&format!("nft list set inet banger {set}")).unwrap()
}

fn nft(world: &World, commands: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), commands).unwrap();
    world.host.command(&format!("nft -f {}", file.path().display())).unwrap();
}

#[test]
fn a_restricted_guest_reaches_granted_addresses_and_nothing_else() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let web = world.internet.serve("[::]:0");
        let guest =
            world.guest(&network, restricted(&["web.example", "port.example:1", "10.9.9.9:22"])).await;
        let dial = |to: &str| guest.space.dial((to, web));
        assert!(refused(dial(INTERNET)) && refused(dial(OTHER)) && refused(dial(INTERNET6)));

        let grant = async |name: &str, to: &str| {
            network.grant(guest.nic.vm, &name.parse().unwrap(), &[address(to)]).await.unwrap();
        };
        grant("other.example", INTERNET).await;
        assert!(refused(dial(INTERNET)), "a name that is not allowed");
        grant("port.example", INTERNET).await;
        assert!(refused(dial(INTERNET)), "another port");
        grant("web.example", INTERNET).await;
        assert!(dial(INTERNET).unwrap().lives());
        assert!(refused(dial(OTHER)));
        // The policy allows a port of this address, and a name that leads there must not open the others.
        grant("web.example", INTERNAL).await;
        assert!(!in_set(&world, "hosts4").contains(INTERNAL));
        if forwards6() {
            grant("web.example", INTERNET6).await;
            assert!(dial(INTERNET6).unwrap().lives());
            // It has a global address, and is not of the internet.
            grant("web.example", NEIGHBOUR6).await;
            assert!(refused(dial(NEIGHBOUR6)));
        }
        let log = network.egress_log(guest.nic.vm);
        let allowed: Vec<&str> = log.allowed().iter().map(|(name, _)| name.as_str()).collect();
        assert!(allowed.contains(&"web.example") && !allowed.contains(&"other.example"), "{allowed:?}");
    });
}

#[test]
fn a_withdrawn_permission_ends_a_connection_and_a_kept_one_goes_on() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let web = world.internet.serve("0.0.0.0:0");
        let both = restricted(&["a.example", "b.example", "203.0.113.0/24:1"]);
        let guest = world.guest(&network, both.clone()).await;
        for (name, to) in [("a.example", INTERNET), ("b.example", OTHER)] {
            network.grant(guest.nic.vm, &name.parse().unwrap(), &[address(to)]).await.unwrap();
        }
        let mut of_a = guest.space.dial((INTERNET, web)).unwrap();
        let mut of_b = guest.space.dial((OTHER, web)).unwrap();
        let one = Nic { allowed: allowed(&["b.example"]), ..both.clone() };
        network.change(&both, &one).await.unwrap();
        assert!(of_a.is_cut(), "a connection outlived its permission");
        assert!(of_b.lives());
        // What was flushed by another program comes back with what was granted.
        world.host.command("nft delete table inet banger").unwrap();
        network.prepare(subnet()).await.unwrap();
        assert!(of_b.lives());
        // Another run of the service takes over what it finds.
        let next = self::network().await;
        next.reattach(&one).await.unwrap();
        assert!(of_b.lives(), "a restart of the service ended a connection");
        let nothing = Nic { allowed: Arc::default(), ..one.clone() };
        next.change(&one, &nothing).await.unwrap();
        assert!(of_b.is_cut());
        assert!(refused(guest.space.dial((OTHER, web))));
        next.unplug(guest.nic.vm).await.unwrap();
        let left = in_set(&world, "hosts4");
        assert!(!left.contains("bgr-"), "{left}");
    });
}

#[test]
fn a_policy_that_became_narrower_without_a_service_applies_at_reattach() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let web = world.internet.serve("0.0.0.0:0");
        let both = restricted(&["a.example", "b.example"]);
        let guest = world.guest(&network, both.clone()).await;
        for (name, to) in [("a.example", INTERNET), ("b.example", OTHER)] {
            network.grant(guest.nic.vm, &name.parse().unwrap(), &[address(to)]).await.unwrap();
        }
        let mut of_a = guest.space.dial((INTERNET, web)).unwrap();
        let mut of_b = guest.space.dial((OTHER, web)).unwrap();
        let next = self::network().await;
        next.reattach(&Nic { allowed: allowed(&["b.example"]), ..both.clone() }).await.unwrap();
        assert!(of_b.lives(), "what is still allowed goes on");
        assert!(of_a.is_cut(), "a connection outlived its permission");
        assert!(!in_set(&world, "hosts4").contains(INTERNET));
        // Another one reads the name that the kernel has kept.
        let last = self::network().await;
        let nothing = Nic { allowed: Arc::default(), ..both };
        last.reattach(&nothing).await.unwrap();
        assert!(of_b.is_cut());
        assert!(!in_set(&world, "hosts4").contains("bgr-"));
    });
}

#[test]
fn what_was_granted_in_a_network_that_the_host_joins_is_withdrawn() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let guest = world.guest(&network, restricted(&["web.example"])).await;
        let kept = Arc::clone(&network);
        let maintained = tokio::spawn(async move { kept.maintain().await });
        let name = "web.example".parse().unwrap();
        network.grant(guest.nic.vm, &name, &[address(INTERNET), address(INTERNET6)]).await.unwrap();
        let has = |set: &str, address: &str| in_set(&world, set).contains(address);
        assert!(!forwards6() || has("hosts6", INTERNET6));
        assert!(!network.neighbours().have(address(INTERNET6)));
        world.host.ip("address add 2001:db8:1::1/64 dev up0 nodad");
        until("the network is known", || network.neighbours().have(address(INTERNET6))).await;
        until("the address is withdrawn", || !has("hosts6", INTERNET6)).await;
        assert!(has("hosts4", INTERNET), "others stay");
        world.host.ip("address del 2001:db8:1::1/64 dev up0");
        until("the network is forgotten", || !network.neighbours().have(address(INTERNET6))).await;
        assert!(!maintained.is_finished());
        maintained.abort();
    });
}

#[test]
fn a_repeated_look_up_changes_nothing_in_the_packet_filter() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let guest = world.guest(&network, restricted(&["a.example", "b.example"])).await;
        let grant = async |name: &str, addresses: &[&str]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|text| address(text)).collect();
            network.grant(guest.nic.vm, &name.parse().unwrap(), &addresses).await.unwrap();
            changes(&world)
        };
        let first = grant("a.example", &[INTERNET, OTHER]).await;
        assert_eq!(grant("a.example", &[OTHER]).await, first);
        assert_eq!(grant("a.example", &[INTERNET, OTHER]).await, first);
        assert!(in_set(&world, "hosts4").contains(OTHER));
        // The next run of the service has to know by which name it was reached.
        let other_name = grant("b.example", &[OTHER]).await;
        assert_ne!(other_name, first);
        assert_ne!(grant("a.example", &["8.8.8.8"]).await, other_name);
        // What another program has flushed comes back with the rules, or with the next look-up.
        world.host.command("nft delete table inet banger").unwrap();
        network.prepare(subnet()).await.unwrap();
        assert!(in_set(&world, "hosts4").contains("8.8.8.8"));
        let restored = changes(&world);
        assert_eq!(grant("a.example", &["8.8.8.8"]).await, restored);
    });
}

#[test]
fn a_repair_changes_no_packet_filter_that_has_everything_and_gives_back_nothing_that_has_ended() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let first = network().await;
        let guest = world.guest(&first, restricted(&["a.example", "10.0.0.0/8"])).await;
        let grant = async |network: &LinuxNetwork, to: &str| {
            network.grant(guest.nic.vm, &"a.example".parse().unwrap(), &[address(to)]).await.unwrap();
        };
        grant(&first, INTERNET).await;
        // The next run of the service does not know when the time of what it finds began.
        let network = network().await;
        network.reattach(&guest.nic).await.unwrap();
        grant(&network, OTHER).await;
        let before = changes(&world);
        assert_eq!(network.restore().await.unwrap(), Restored::default());
        assert_eq!(changes(&world), before);

        let end = |to: &str| {
            let all: serde_json::Value =
                serde_json::from_str(&world.host.command("nft -j list set inet banger hosts4").unwrap())
                    .unwrap();
            let set =
                all["nftables"].as_array().unwrap().iter().find_map(|object| object.get("set")).unwrap();
            let elements = set["elem"].as_array().unwrap();
            let of_address = |element: &&serde_json::Value| element.to_string().contains(to);
            let concat = &elements.iter().find(of_address).unwrap()["elem"]["val"]["concat"];
            let words: Vec<String> =
                concat.as_array().unwrap().iter().map(|word| word.to_string().replace('"', "")).collect();
            nft(&world, &format!("delete element inet banger hosts4 {{ {} }}", words.join(" . ")));
        };
        end(INTERNET);
        let before = changes(&world);
        assert_eq!(network.restore().await.unwrap(), Restored::default());
        assert_eq!(changes(&world), before);
        assert!(!in_set(&world, "hosts4").contains(INTERNET), "it had ended");
        // What was looked up just before has not ended: somebody has removed it.
        end(OTHER);
        assert_eq!(network.restore().await.unwrap(), Restored { guests: true, ..Restored::default() });
        let now = in_set(&world, "hosts4");
        assert!(now.contains(OTHER) && !now.contains(INTERNET), "{now}");
    });
}

#[test]
fn a_destination_in_use_makes_no_room_for_others() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let web = world.internet.serve("0.0.0.0:0");
        world.internet.ip("route add local 8.8.0.0/16 dev lo");
        let sink = world.internet.udp(("0.0.0.0", 9));
        let guest = world.guest(&network, restricted(&["*.in.example"])).await;
        let name = |text: &str| text.parse().unwrap();
        let grant = async |of: &str, to: &[IpAddr]| network.grant(guest.nic.vm, &name(of), to).await.unwrap();
        let answer = |n: u8| (0..64).map(|m| IpAddr::from([8, 8, n, m])).collect::<Vec<_>>();
        assert_eq!(grant("first.in.example", &[address(INTERNET)]).await, Granted::All);
        let mut first = guest.space.dial((INTERNET, web)).unwrap();
        // Longer than what the clock of the packet filter may differ.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(first.lives());
        // A later look-up begins its time in the packet filter again, and is no sign that it is not used.
        assert_eq!(grant("other.in.example", &[address(INTERNET)]).await, Granted::All);
        for n in 0..20 {
            assert_eq!(
                grant("many.in.example", &answer(n)).await,
                Granted::All,
                "what is not used makes room"
            );
        }
        assert!(first.lives(), "a connection has ended for others");
        assert!(in_set(&world, "hosts4").contains(INTERNET));

        tokio::time::sleep(Duration::from_millis(300)).await;
        let socket = guest.space.udp(("0.0.0.0", 0));
        let in_set_now = in_set(&world, "hosts4");
        let granted = (0..20).flat_map(answer).filter(|to| in_set_now.contains(&format!(" {to} ")));
        let granted: Vec<IpAddr> = granted.collect();
        assert_eq!(granted.len(), 511);
        // In groups, which the queues of the links hold.
        for group in granted.chunks(64) {
            for to in group {
                socket.send_to(b"x", (*to, 9)).unwrap();
            }
            for _ in group {
                sink.recv(&mut [0]).unwrap();
            }
        }
        assert!(first.lives());
        for _ in 0..2 {
            assert_eq!(grant("last.in.example", &[address(OTHER)]).await, Granted::Nothing);
        }
        assert!(refused(guest.space.dial((OTHER, web))));
        assert_eq!(in_set(&world, "hosts4").matches("bgr-").count(), 512);
        assert_eq!(grant("again.in.example", &granted[..1]).await, Granted::All, "it is there");
        let log = network.egress_log(guest.nic.vm);
        let denied: Vec<(String, u64)> =
            log.denied().iter().map(|(to, tally)| (to.host(), tally.count)).collect();
        assert_eq!(denied, [("last.in.example".to_owned(), 2)]);
        assert!(log.allowed().iter().all(|(name, _)| name.as_str() != "last.in.example"));
    });
}

/// Makes a transaction about addresses of IPv6 fail, and keeps all other elements.
const BROKEN: &str = "flush chain inet banger restricted
flush chain inet banger to_restricted
delete set inet banger hosts6
add map inet banger hosts6 { type ipv4_addr : ipv4_addr; }
";
const MENDED: &str = "delete map inet banger hosts6
add set inet banger hosts6 { typeof iifname . ip6 daddr; size 262144; flags dynamic,timeout; timeout 5m; }
";

#[test]
fn what_a_failed_change_leaves_goes_with_the_next_one() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let full = restricted(&["a.example"]);
        let guest = world.guest(&network, full.clone()).await;
        let name = "a.example".parse().unwrap();
        let grant = async |addresses: &[IpAddr]| network.grant(guest.nic.vm, &name, addresses).await;
        let answers: Vec<Vec<IpAddr>> =
            (0..10).map(|n| (0..64).map(|m| IpAddr::from([8, 8, n, m])).collect()).collect();
        for answer in &answers[..9] {
            grant(answer).await.unwrap();
        }
        let count = || in_set(&world, "hosts4").matches("bgr-").count();
        assert_eq!(count(), 512, "the oldest answer went");
        assert!(!in_set(&world, "hosts4").contains(" 8.8.0.1 "));

        nft(&world, BROKEN);
        let mut new = answers[9].clone();
        new[63] = address("2606:4700::1");
        grant(&new).await.unwrap_err();
        assert!(count() <= 512);
        let nothing = Nic { allowed: Arc::default(), ..full.clone() };
        network.change(&full, &nothing).await.unwrap_err();
        nft(&world, MENDED);
        network.change(&full, &nothing).await.unwrap();
        assert_eq!(count(), 0, "the kernel lets a guest reach what nobody knows of");
    });
}

#[test]
fn denials_of_a_guest_are_not_counted_to_the_next_one() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let guest = world.guest(&network, restricted(&["web.example"])).await;
        assert!(refused(guest.space.dial((INTERNET, 443))));
        assert!(in_set(&world, "denied4").contains("bgr-"));
        network.unplug(guest.nic.vm).await.unwrap();
        let left = in_set(&world, "denied4");
        assert!(!left.contains("bgr-"), "{left}");
    });
}

#[test]
fn the_rules_are_kept_although_denials_cannot_be_read() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let _guest = world.guest(&network, restricted(&["web.example"])).await;
        let kept = Arc::clone(&network);
        let maintained = tokio::spawn(async move { kept.maintain().await });
        // Another program's table, in one step: elements of this map cannot be removed like those of a set.
        nft(
            &world,
            "delete table inet banger
table inet banger {
	map denied4 {
		type ipv4_addr : ipv4_addr
		elements = { 192.0.2.1 : 192.0.2.2 }
	}
}
",
        );
        // Denials are read each second.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        nft(&world, "delete table inet banger\n");
        let is_back = || world.host.command("nft list chain inet banger restricted").is_ok();
        until("the rules are back", is_back).await;
        assert!(!maintained.is_finished());
        maintained.abort();
    });
}

#[test]
fn allowed_networks_need_no_name() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let (web, other) = (world.internet.serve("0.0.0.0:0"), world.internet.serve("0.0.0.0:0"));
        let port = format!("203.0.113.8/31:{web}");
        let guest = world.guest(&network, restricted(&[&port])).await;
        assert!(guest.space.dial((OTHER, web)).unwrap().lives());
        assert!(refused(guest.space.dial((OTHER, other))), "another port");
        assert!(refused(guest.space.dial((INTERNET, web))), "another network");
        let wide = Nic {
            allowed: allowed(&["203.0.113.0/24", "203.0.113.8/31:1", "2001:db8::/32"]),
            ..guest.nic.clone()
        };
        network.change(&guest.nic, &wide).await.unwrap();
        assert!(guest.space.dial((INTERNET, other)).unwrap().lives());
        let near = world.internet.serve(&format!("[{NEIGHBOUR6}]:0"));
        assert!(!forwards6() || guest.space.dial((NEIGHBOUR6, near)).unwrap().lives());
        let narrow = Nic { allowed: allowed(&["203.0.113.2"]), ..guest.nic.clone() };
        network.change(&wide, &narrow).await.unwrap();
        assert!(guest.space.dial((INTERNET, other)).unwrap().lives());
        assert!(refused(guest.space.dial((OTHER, other))));
    });
}

#[test]
fn refused_packets_are_counted() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let guest = world.guest(&network, restricted(&["web.example"])).await;
        let kept = Arc::clone(&network);
        let maintained = tokio::spawn(async move { kept.maintain().await });
        for _ in 0..3 {
            assert!(refused(guest.space.dial((INTERNET, 443))));
        }
        let denials = tokio::time::timeout(PATIENCE, network.denials()).await.unwrap();
        let expected = Destination::Address(address(INTERNET), Protocol::Tcp, 443);
        assert_eq!(denials[0].destination, expected);
        maintained.abort();
    });
}

#[test]
fn a_flood_of_refused_packets_is_counted_at_a_bounded_rate() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let network = network().await;
        let guest = world.guest(&network, restricted(&["web.example"])).await;
        let socket = guest.space.udp(("0.0.0.0", 0));
        let begin = Instant::now();
        // Nobody takes out what the kernel counts, so each of these ports would be in the set.
        let count = || in_set(&world, "denied4").matches("bgr-").count();
        until("the kernel counts", || {
            for n in 0..5000u16 {
                let _ = socket.send_to(b"x", (OTHER, 1000 + n));
            }
            count() >= 100
        })
        .await;
        let (counted, seconds) = (count(), begin.elapsed().as_secs() as usize + 1);
        assert!(counted <= 100 + 20 * seconds, "{counted} in less than {seconds} s");
    });
}

/// Answers for names of the internet, and counts the questions by name.
fn serve_names(world: &World) -> std::sync::mpsc::Receiver<String> {
    let udp = world.internet.run(|| UdpSocket::bind((INTERNET, 53)).unwrap());
    let (asked, questions) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = question.queries[0].clone();
            let _ = asked.send(query.name.to_ascii());
            let mut reply = Message::response(question.metadata.id, OpCode::Query);
            reply.metadata.recursion_available = true;
            let record = |name: &str, data| Record::from_rdata(Name::from_ascii(name).unwrap(), 86_400, data);
            let v4 = |address: &str| RData::A(A(address.parse().unwrap()));
            let answers = match (query.name.to_ascii().to_lowercase().as_str(), query.query_type()) {
                ("web.example.", RecordType::A) => vec![
                    record("web.example.", RData::CNAME(CNAME(Name::from_ascii("cdn.example.").unwrap()))),
                    record("cdn.example.", v4(INTERNET)),
                    record("cdn.example.", v4("10.0.0.1")),
                ],
                ("web.example.", RecordType::AAAA) => {
                    vec![record("web.example.", RData::AAAA(AAAA(INTERNET6.parse().unwrap())))]
                }
                ("rebind.web.example.", RecordType::A) => {
                    vec![record("rebind.web.example.", v4("192.168.1.1"))]
                }
                ("inside.web.example.", RecordType::A) => vec![record("inside.web.example.", v4(INTERNAL))],
                (name, RecordType::A) => vec![record(name, v4(OTHER))],
                _ => Vec::new(),
            };
            reply.add_query(query);
            reply.add_answers(answers);
            let _ = udp.send_to(&reply.to_vec().unwrap(), from);
        }
    });
    questions
}

fn ask(space: &Space, name: &str, kind: RecordType) -> Message {
    try_ask(space, name, kind, PATIENCE).unwrap()
}

fn try_ask(space: &Space, name: &str, kind: RecordType, timeout: Duration) -> std::io::Result<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let socket = space.udp(("0.0.0.0", 0));
    socket.set_read_timeout(Some(timeout))?;
    socket.connect((GATEWAY, 53))?;
    socket.send(&message.to_vec().unwrap())?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).unwrap())
}

fn said(reply: &Message) -> String {
    let answers = reply.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(" ");
    match reply.metadata.response_code {
        ResponseCode::NoError => answers,
        code => format!("{code:?}"),
    }
}

fn median_of_lookups(space: &Space) -> Duration {
    let mut times: Vec<Duration> = (0..51)
        .map(|_| {
            let begin = Instant::now();
            assert!(said(&ask(space, "web.example.", RecordType::A)).contains(INTERNET));
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Starts a name server with a restricted sandbox and one that has NAT, and waits until it serves.
async fn serve(
    network: &Arc<LinuxNetwork>,
    bus: &Bus,
    resolv_conf: &tempfile::NamedTempFile,
    guest: &Guest,
) -> NameServer {
    std::fs::write(resolv_conf.path(), format!("nameserver {INTERNET}\n")).unwrap();
    let names = NameServer::with_resolvers(
        bus.connect(0).await,
        network.clone(),
        resolv_conf.path().into(),
        &Tasks::default(),
    );
    let named = |n: u32, name: &str, nat, allowed| NamedVm {
        vm: vm(n),
        name: name.parse().unwrap(),
        user: UserLabel::of("alice", Uid(1)),
        slot: Slot(n),
        nat,
        allowed,
        presence: Presence::Up,
        since: Timestamp(1),
    };
    let holders =
        vec![named(0, "web", Nat::Off, guest.nic.allowed.clone()), named(1, "open", Nat::On, Arc::default())];
    names.publish(Arc::new(Table::of(subnet(), holders)));
    let begin = Instant::now();
    while try_ask(&guest.space, "vm.", RecordType::SOA, SHORT).is_err() {
        assert!(begin.elapsed() < PATIENCE, "the server does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    names
}

#[test]
fn the_address_of_an_allowed_name_is_reachable_when_the_answer_comes() {
    require_a_host!();
    let world = world();
    on_a_runtime(async || {
        let (network, bus) = (network().await, Bus::start());
        let questions = serve_names(&world);
        let web = world.internet.serve("0.0.0.0:0");
        let words = ["web.example", "*.web.example", "10.9.9.9:22"];
        let guest = world.guest(&network, restricted(&words)).await;
        let resolv_conf = tempfile::NamedTempFile::new().unwrap();
        let names = serve(&network, &bus, &resolv_conf, &guest).await;
        assert!(refused(guest.space.dial((INTERNET, web))));

        let reply = ask(&guest.space, "Web.example.", RecordType::A);
        assert_eq!(said(&reply), format!("cdn.example. {INTERNET}"));
        assert!(reply.answers.iter().all(|record| record.ttl <= RESTRICTED_TTL));
        assert!(guest.space.dial((INTERNET, web)).unwrap().lives());

        // A name in the networks of the host leads nowhere, and a name that is not allowed leaves no trace outside.
        assert_eq!(said(&ask(&guest.space, "rebind.web.example.", RecordType::A)), "");
        // One that the policy allows by itself is kept, and opens nothing.
        assert_eq!(said(&ask(&guest.space, "inside.web.example.", RecordType::A)), INTERNAL);
        assert!(!in_set(&world, "hosts4").contains(INTERNAL));
        assert_eq!(said(&ask(&guest.space, "web.example.", RecordType::HTTPS)), "");
        assert_eq!(said(&ask(&guest.space, "other.example.", RecordType::A)), "Refused");
        assert_eq!(said(&ask(&guest.space, "secret.other.example.", RecordType::TXT)), "Refused");
        assert!(refused(guest.space.dial((OTHER, web))));
        let asked: Vec<String> = questions.try_iter().map(|name| name.to_lowercase()).collect();
        assert_eq!(asked, ["web.example.", "rebind.web.example.", "inside.web.example."]);
        assert_eq!(names.refused(vm(0)), 2);
        let log = network.egress_log(vm(0));
        let denied: Vec<String> = log.denied().iter().map(|(to, _)| to.host()).collect();
        assert!(denied.contains(&"other.example".to_owned()), "{denied:?}");

        // An address that may be used at once costs little more than one that is only told.
        let open = world.guest(&network, Nic { nat: Nat::On, ..nic(1, ALICE) }).await;
        let (with, without) = (median_of_lookups(&guest.space), median_of_lookups(&open.space));
        println!("a look-up takes {with:?} with a policy, and {without:?} with NAT");
        assert!(with < without + FAR_TOO_SLOW);
    });
}
