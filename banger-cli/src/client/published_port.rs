//! The published ports of a sandbox, as the service reports them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::object::Object;

/// A published port. Its members are those of the D-Bus property.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: String,
    pub host_address: String,
    pub guest_port: u16,
    pub host_port: u16,
}

/// Published ports of a sandbox.
#[derive(Debug, Default)]
pub struct PublishedPorts {
    /// In order, the taken ones included.
    pub ports: Vec<PublishedPort>,
    /// Those that another program of the host has taken.
    pub taken: Vec<PublishedPort>,
}

impl PublishedPorts {
    /// Returns the ports of a sandbox.
    pub fn of(sandbox: &Object) -> Self {
        let object = sandbox.json();
        Self::of_arrays(&object["published_ports"], &object["blocked_ports"])
    }

    /// Returns the ports in these arrays of objects: all, and those that are taken.
    pub fn of_arrays(ports: &Value, taken: &Value) -> Self {
        Self { taken: Self::of_json(taken).ports, ..Self::of_json(ports) }
    }

    /// Returns the ports in an array of objects.
    pub fn of_json(ports: &Value) -> Self {
        let mut ports: Vec<PublishedPort> = Deserialize::deserialize(ports).unwrap_or_default();
        ports.sort();
        Self { ports, taken: Vec::new() }
    }

    /// Formats them as docker does: `127.0.0.1:8080->80/tcp`, and `8000-8010` for ports that follow each other.
    pub fn text(&self) -> String {
        let mut ranges: Vec<(&PublishedPort, u16)> = Vec::new();
        for port in &self.ports {
            match ranges.last_mut() {
                Some((first, steps)) if self.follows(port, first, *steps + 1) => *steps += 1,
                _ => ranges.push((port, 0)),
            }
        }
        ranges.iter().map(|(first, steps)| self.range(first, *steps)).collect::<Vec<_>>().join(", ")
    }

    fn follows(&self, port: &PublishedPort, first: &PublishedPort, steps: u16) -> bool {
        let expected = PublishedPort {
            guest_port: first.guest_port.saturating_add(steps),
            host_port: first.host_port.saturating_add(steps),
            ..first.clone()
        };
        *port == expected && self.taken.contains(port) == self.taken.contains(first)
    }

    fn range(&self, first: &PublishedPort, steps: u16) -> String {
        let numbers = |port: u16| match steps {
            0 => port.to_string(),
            steps => format!("{port}-{}", port + steps),
        };
        let (host, guest) = (numbers(first.host_port), numbers(first.guest_port));
        let taken = if self.taken.contains(first) { " (taken)" } else { "" };
        format!("{}:{host}->{guest}/{}{taken}", first.host_address, first.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: (&str, &str, u16, u16)) -> PublishedPort {
        let (protocol, host_address, host_port, guest_port) = text;
        let (protocol, host_address) = (protocol.to_owned(), host_address.to_owned());
        PublishedPort { protocol, host_address, guest_port, host_port }
    }

    #[test]
    fn ports_that_follow_each_other_are_a_range() {
        let check = |ports: &[_], taken: &[_], expect: &str| {
            let [mut ports, taken] =
                [ports, taken].map(|ports| ports.iter().copied().map(port).collect::<Vec<_>>());
            ports.sort();
            assert_eq!(PublishedPorts { ports, taken }.text(), expect);
        };
        const HERE: &str = "127.0.0.1";
        check(&[], &[], "");
        check(&[("tcp", HERE, 8080, 80)], &[], "127.0.0.1:8080->80/tcp");
        let three = [("tcp", HERE, 8000, 80), ("tcp", HERE, 8001, 81), ("tcp", HERE, 8002, 82)];
        check(&three, &[], "127.0.0.1:8000-8002->80-82/tcp");
        check(
            &three,
            &three[1..2],
            "127.0.0.1:8000->80/tcp, 127.0.0.1:8001->81/tcp (taken), 127.0.0.1:8002->82/tcp",
        );
        let apart = [("tcp", HERE, 8000, 80), ("tcp", HERE, 8001, 82), ("udp", "0.0.0.0", 8001, 81)];
        check(&apart, &[], "127.0.0.1:8000->80/tcp, 127.0.0.1:8001->82/tcp, 0.0.0.0:8001->81/udp");
        check(&[("tcp", HERE, 65535, 65535)], &[], "127.0.0.1:65535->65535/tcp");
    }
}
