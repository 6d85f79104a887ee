//! The rules of the packet filter as the service loads them, judged by the program nft, and without that program.

use std::{future::Future, path::Path, sync::Arc, thread};

use banger_domain::net::{
    nic::{Nat, Nic},
    ruleset::{Bounds, ruleset},
};
use banger_system::{host::network::LinuxNetwork, ports::network::Network, tasks::Tasks};
use nftables::schema::NfListObject;
use rustix::{
    mount::{MountPropagationFlags, mount_bind, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use serde_json::Value;

use crate::net_lab::{INTERNET, Space, World, nic, subnet};
use crate::scratch::{has_program, is_root, require};

/// The sets whose types the schema of the crate nftables does not know: users, groups of links, pairs in maps.
const UNKNOWN: [&str; 6] = ["loopback4", "owners", "peers", "public4", "public6", "reach"];

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Returns what the service would load on this host.
fn rules() -> String {
    let most = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
    ruleset(subnet(), Some(Bounds::for_table(most.trim().parse().ok())))
}

fn load_by_nft(space: &Space) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules()).unwrap();
    space.command(&format!("nft -f {}", file.path().display())).unwrap();
}

/// What nft lists of the table.
#[derive(Debug, PartialEq)]
struct Listed {
    text: String,
    /// The expressions of the kernel.
    bytecode: Vec<String>,
    objects: Vec<Listing>,
}

#[derive(Debug, PartialEq)]
enum Listing {
    Known(Box<NfListObject<'static>>),
    Unknown(Value),
}

impl Listed {
    fn of(space: &Space) -> Self {
        let text = space.command("nft list table inet banger").unwrap();
        let bytecode = space.command("nft --debug=netlink list table inet banger").unwrap();
        // nft also turns a single byte around.
        let is_kept = |line: &&str| line.starts_with("  [") && !line.ends_with(", 2, 1) ]");
        let bytecode = bytecode.lines().filter(is_kept).map(str::to_owned).collect();
        let json = space.command("nft -j list table inet banger").unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        let objects = json["nftables"].as_array().unwrap().iter().cloned().map(Listing::of).collect();
        Self { text, bytecode, objects }
    }
}

impl Listing {
    fn of(mut object: Value) -> Self {
        // The numbers by which the kernel knows an object depend on what was made before.
        object.as_object_mut().unwrap().values_mut().for_each(|fields| {
            fields.as_object_mut().unwrap().remove("handle");
        });
        match serde_json::from_value(object.clone()) {
            Ok(known) => Self::Known(Box::new(known)),
            Err(error) => {
                let is_unknown = |name| object["set"]["name"] == name || object["map"]["name"] == name;
                assert!(UNKNOWN.into_iter().any(is_unknown), "{error}: {object}");
                Self::Unknown(object)
            }
        }
    }
}

#[test]
fn the_kernel_has_the_rules_that_nft_would_load() {
    require!(is_root(), "root, for network namespaces");
    require!(has_program("nft") && has_program("ip"), "nft and ip");
    let by_nft = Space::new();
    load_by_nft(&by_nft);
    let expected = Listed::of(&by_nft);
    let count = |kind: fn(&NfListObject<'_>) -> bool| {
        let is = |listing: &&Listing| matches!(listing, Listing::Known(known) if kind(known));
        expected.objects.iter().filter(is).count()
    };
    assert!(count(|object| matches!(object, NfListObject::Rule(_))) > 50, "{}", expected.text);
    assert!(count(|object| matches!(object, NfListObject::Chain(_))) > 10, "{}", expected.text);
    assert!(count(|object| matches!(object, NfListObject::Set(_))) > 5, "{}", expected.text);

    let prepare = |space: &Space| {
        space.run(|| {
            on_a_runtime(async {
                let network = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
                network.prepare(subnet()).await.unwrap();
            });
        });
    };
    let natively = Space::new();
    for time in ["the first time", "again"] {
        prepare(&natively);
        assert_eq!(Listed::of(&natively), expected, "{time}");
    }
    // An earlier version of the service has run nft, with other rules.
    by_nft.command("nft flush chain inet banger ask").unwrap();
    by_nft.command("nft add rule inet banger leave counter accept").unwrap();
    assert_ne!(Listed::of(&by_nft), expected);
    prepare(&by_nft);
    assert_eq!(Listed::of(&by_nft), expected, "over those of nft");
}

#[test]
fn a_host_without_nft_has_a_network() {
    require!(is_root(), "root, for network namespaces");
    require!(has_program("nft") && has_program("ip"), "ip, and nft to hide it");
    require!(Path::new("/dev/net/tun").exists(), "TUN");
    // The mounts are those of a thread, and of the threads that it starts.
    thread::spawn(|| {
        hide("nft");
        let world = World::new();
        on_a_runtime(async {
            let network = LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap();
            network.prepare(subnet()).await.unwrap();
            let web = world.internet.serve("0.0.0.0:0");
            let guest = world.guest(&network, Nic { nat: Nat::On, ..nic(0, 5001) }).await;
            assert!(guest.space.dial((INTERNET, web)).unwrap().lives());
            assert!(world.host.command("nft list ruleset").is_err(), "nft is still there");
            network.unplug(guest.nic.vm).await.unwrap();
        });
    })
    .join()
    .unwrap();
}

/// Makes a program one that cannot be started, for this thread and those that it starts.
fn hide(program: &str) {
    // SAFETY: a mount namespace of this thread's own changes nothing about its memory or descriptors.
    #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let places = std::env::var("PATH").unwrap();
    let places = std::env::split_paths(&places).chain(["/usr/sbin".into(), "/sbin".into()]);
    for path in places.map(|place: std::path::PathBuf| place.join(program)).filter(|path| path.exists()) {
        mount_bind("/dev/null", &path).unwrap();
    }
}
