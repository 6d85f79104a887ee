//! Notes about published ports on which the guest listens on its loopback only: there, they do not arrive.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{Request, facts::ListeningPort},
};
use zbus::OwnedObjectPath;

use crate::{
    client::{
        bus::Bus,
        published_port::{PublishedPort, PublishedPorts},
    },
    error::Result,
    guest::agent::Guest,
    ui::signals::Signals,
};

/// How long a guest may take to list its ports, for a note. An emulated one on a busy host takes seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Poll interval for the ports of a guest while a command runs.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How many times to look. A server that starts later is found by `vm ports`.
const POLLS: u32 = 300;

/// Returns a note for each published port on which the guest listens on its loopback only.
pub fn notes(name: &str, published: &[PublishedPort], listening: &[ListeningPort]) -> Vec<String> {
    published.iter().filter(|port| is_loopback_only(port, listening)).map(|port| note(name, port)).collect()
}

/// Prints these notes for a sandbox whose agent answers in time.
pub async fn print_notes(bus: &Bus, vm: &OwnedObjectPath) -> Result<()> {
    let sandbox = bus.properties(vm, VM_INTERFACE).await?;
    let published = PublishedPorts::of(&sandbox).ports;
    if published.is_empty() || !sandbox.flag("Ready") {
        return Ok(());
    }
    let mut guest = Guest::new(bus.clone(), vm.clone(), Signals::catch()?.listen());
    let answer = tokio::time::timeout(TIMEOUT, guest.query(Request::Ports)).await;
    let listening: Vec<ListeningPort> = answer.ok().and_then(Result::ok).unwrap_or_default();
    for note in notes(sandbox.name(), &published, &listening) {
        eprintln!("{note}");
    }
    Ok(())
}

/// Watches a guest until something listens on every published port, and gives `print` a note for each port that turns
/// out to be on its loopback only.
pub async fn watch(mut guest: Guest, print: impl Fn(&str)) {
    let Ok(sandbox) = guest.bus().properties(guest.vm(), VM_INTERFACE).await else { return };
    let mut published: BTreeSet<PublishedPort> = PublishedPorts::of(&sandbox).ports.into_iter().collect();
    for _ in 0..POLLS {
        if published.is_empty() {
            return;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        // A busy guest may answer the next time.
        let Ok(listening) = guest.query::<Vec<ListeningPort>>(Request::Ports).await else { continue };
        let seen: Vec<_> =
            published.extract_if(.., |port| listeners(port, &listening).next().is_some()).collect();
        notes(sandbox.name(), &seen, &listening).iter().for_each(|note| print(note));
    }
}

fn listeners<'a>(
    port: &'a PublishedPort,
    listening: &'a [ListeningPort],
) -> impl Iterator<Item = &'a ListeningPort> {
    listening.iter().filter(|socket| socket.port == port.guest_port && socket.protocol == port.protocol)
}

fn is_loopback_only(port: &PublishedPort, listening: &[ListeningPort]) -> bool {
    let mut sockets = listeners(port, listening).peekable();
    sockets.peek().is_some()
        && sockets.all(|socket| socket.address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

fn note(name: &str, port: &PublishedPort) -> String {
    let PublishedPort { protocol, guest_port, host_port, .. } = port;
    let forward = match protocol.as_str() {
        "tcp" => format!(
            ", or unpublish {host_port} and use `banger vm forward -L {host_port}:{guest_port} {name}`"
        ),
        _ => String::new(),
    };
    format!(
        "note: {name} listens on port {guest_port}/{protocol} of its loopback only, where a published port does not \
         arrive: let it listen on 0.0.0.0{forward}."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_of_the_loopback_get_a_note() {
        let published = |protocol: &str, guest_port| PublishedPort {
            protocol: protocol.to_owned(),
            host_address: "127.0.0.1".to_owned(),
            guest_port,
            host_port: 8080,
        };
        let listening = |protocol: &str, port, address: &str| ListeningPort {
            protocol: protocol.to_owned(),
            port,
            address: address.to_owned(),
            pid: 0,
            program: String::new(),
        };
        let (tcp, udp) = (published("tcp", 80), published("udp", 80));
        let check = |port: &PublishedPort, sockets: &[(&str, u16, &str)], expect: bool| {
            let sockets: Vec<_> = sockets.iter().map(|(a, b, c)| listening(a, *b, c)).collect();
            let noted = !notes("web", std::slice::from_ref(port), &sockets).is_empty();
            assert_eq!(noted, expect, "{port:?} {sockets:?}");
        };
        check(&tcp, &[], false);
        check(&tcp, &[("tcp", 80, "127.0.0.1")], true);
        check(&tcp, &[("tcp", 80, "127.0.0.1"), ("tcp", 80, "::1")], true);
        check(&tcp, &[("tcp", 80, "127.0.0.1"), ("tcp", 80, "0.0.0.0")], false);
        check(&tcp, &[("tcp", 80, "::")], false);
        check(&tcp, &[("tcp", 81, "127.0.0.1"), ("udp", 80, "127.0.0.1")], false);
        check(&udp, &[("udp", 80, "127.0.0.1")], true);
        let notes = notes("web", &[tcp], &[listening("tcp", 80, "127.0.0.1")]);
        assert_eq!(
            notes,
            [
                "note: web listens on port 80/tcp of its loopback only, where a published port does not arrive: let it \
              listen on 0.0.0.0, or unpublish 8080 and use `banger vm forward -L 8080:80 web`."
            ]
        );
    }
}
