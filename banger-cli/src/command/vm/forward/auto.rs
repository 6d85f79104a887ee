//! `banger vm forward --auto`: each TCP port on which a sandbox listens, as long as it listens.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use banger_proto::{
    bus::ErrorName,
    guest::{Request, facts::ListeningPort, message::Endpoint},
};
use tokio::task::JoinSet;

use super::{Forwarder, serve, sockets::Listener, spec::LOOPBACK};
use crate::{error::Result, guest::agent::Guest};

/// Poll interval for listening ports.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The most ports that are forwarded at once: a guest may listen on all of them.
const MAX_PORTS: usize = 128;

/// The forwarded ports of a sandbox.
pub struct Auto {
    forwarder: Forwarder,
    guest: Guest,
    sandbox: String,
    /// The listener of each port. Dropping it closes the port; open connections continue.
    open: BTreeMap<u16, JoinSet<Result<()>>>,
    /// The port of the host that each one had, for a server that restarts.
    chosen: HashMap<u16, u16>,
}

impl Auto {
    /// Forwards the ports on which the sandbox listens now.
    pub async fn begin(forwarder: Forwarder, guest: Guest, sandbox: String) -> Result<Self> {
        let mut auto = Self { forwarder, guest, sandbox, open: BTreeMap::new(), chosen: HashMap::new() };
        let listening = auto.guest.query(Request::Ports).await?;
        auto.follow(listening).await;
        Ok(auto)
    }

    /// Follows the changes.
    pub async fn run(mut self) -> Result<()> {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            match self.guest.query(Request::Ports).await {
                Ok(listening) => self.follow(listening).await,
                // A connection wakes it.
                Err(error) if error.name() == Some(ErrorName::Suspended) => {}
                // A sandbox that is down listens nowhere, and may come back.
                Err(_) => self.follow(Vec::new()).await,
            }
        }
    }

    async fn follow(&mut self, listening: Vec<ListeningPort>) {
        let wanted = wanted(listening);
        for (port, _) in self.open.extract_if(.., |port, _| !wanted.contains_key(port)) {
            self.forwarder.progress.note(&format!("{port} in {} has closed.", self.sandbox));
        }
        for (number, port) in wanted {
            if !self.open.contains_key(&number) {
                self.forward(port).await;
            }
        }
    }

    async fn forward(&mut self, port: ListeningPort) {
        let mut tasks = JoinSet::new();
        match Listener::bind_near(*self.chosen.get(&port.port).unwrap_or(&port.port)).await {
            Ok(listener) => {
                self.chosen.extend(listener.port().map(|chosen| (port.port, chosen)));
                self.forwarder.progress.note(&format!(
                    "{} reaches {} ({}) in {}.",
                    listener.address(),
                    port.port,
                    port.program,
                    self.sandbox
                ));
                tasks.spawn(serve(self.forwarder.clone(), listener, target(&port)));
            }
            Err(error) => {
                self.forwarder.progress.note(&format!("note: port {} is not forwarded: {error}", port.port));
            }
        }
        self.open.insert(port.port, tasks);
    }
}

/// Returns what to forward, by port. Of several sockets with the same port, the first counts.
fn wanted(listening: Vec<ListeningPort>) -> BTreeMap<u16, ListeningPort> {
    let mut wanted = BTreeMap::new();
    for port in listening.into_iter().filter(|port| port.protocol == "tcp" && port.port != 0) {
        if wanted.len() < MAX_PORTS {
            wanted.entry(port.port).or_insert(port);
        }
    }
    wanted
}

/// Returns where to connect in the sandbox.
fn target(port: &ListeningPort) -> Endpoint {
    let any = |address: IpAddr| address.is_unspecified() || address.is_loopback();
    let host = match port.address.parse::<IpAddr>() {
        Ok(address) if any(address) && address.is_ipv6() => "::1".to_owned(),
        Ok(address) if any(address) => LOOPBACK.to_owned(),
        _ => port.address.clone(),
    };
    Endpoint::Tcp(host, port.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(protocol: &str, port: u16, address: &str) -> ListeningPort {
        let (protocol, address) = (protocol.to_owned(), address.to_owned());
        ListeningPort { protocol, port, address, pid: 0, program: String::new() }
    }

    #[test]
    fn each_tcp_port_is_forwarded_once_and_not_more_than_the_limit() {
        let ports = [
            ("tcp", 80, "0.0.0.0"),
            ("tcp", 80, "::"),
            ("udp", 53, "0.0.0.0"),
            ("tcp", 0, "::"),
            ("tcp", 443, "::1"),
        ];
        let wanted_of =
            |ports: &[(&str, u16, &str)]| wanted(ports.iter().map(|(a, b, c)| listening(a, *b, c)).collect());
        assert_eq!(wanted_of(&ports).into_keys().collect::<Vec<_>>(), [80, 443]);
        let all: Vec<_> = (1..=1000).map(|port| ("tcp", port, "0.0.0.0")).collect();
        assert_eq!(wanted_of(&all).len(), MAX_PORTS);
    }

    #[test]
    fn the_target_is_where_the_program_listens() {
        for (address, expect) in [
            ("0.0.0.0", LOOPBACK),
            ("127.0.0.1", LOOPBACK),
            ("127.0.0.53", LOOPBACK),
            ("::", "::1"),
            ("::1", "::1"),
            ("172.30.0.2", "172.30.0.2"),
        ] {
            assert_eq!(
                target(&listening("tcp", 80, address)),
                Endpoint::Tcp(expect.to_owned(), 80),
                "{address}"
            );
        }
    }
}
