//! Ports to publish: of `PublishPort`, and of the option `ports` of `CreateVM`.

use banger_domain::net::port::{FIRST_UNPRIVILEGED, MAX_PORTS, Port, Protocol, Scope};
use banger_proto::bus::{
    names::{action, detail},
    option::create,
};

use super::{Api, Caller, Error, Options, Result};

/// How many ports a password dialog names.
const MAX_NAMED: usize = 4;

/// Parses a port to publish.
pub(in crate::bus) fn read_port(protocol: &str, guest: u16, host: u16, scope: Option<&str>) -> Result<Port> {
    let scope = match scope {
        None => Scope::default(),
        Some(word) => {
            Scope::parse(word).ok_or_else(|| Error::invalid_option("the scope must be loopback or all"))?
        }
    };
    if guest == 0 {
        return Err(Error::invalid_option("the guest's port must be 1 to 65535"));
    }
    Ok(Port { scope, protocol: read_protocol(protocol)?, host, guest })
}

/// Parses the name of a protocol.
pub(in crate::bus) fn read_protocol(word: &str) -> Result<Protocol> {
    Protocol::parse(word).ok_or_else(|| Error::invalid_option("the protocol must be tcp or udp"))
}

/// Parses the ports of a new sandbox.
pub(super) fn read_ports(options: &mut Options) -> Result<Vec<Port>> {
    let rows = options.ports(create::PORTS)?;
    if rows.len() > MAX_PORTS {
        let why = format!("a sandbox can have at most {MAX_PORTS} published ports");
        return Err(Error::invalid_option(why));
    }
    let mut ports: Vec<Port> = Vec::new();
    for (protocol, guest, host, scope) in rows {
        let port = read_port(&protocol, guest, host, Some(&scope))?;
        if host != 0 && ports.iter().any(|other| other.clashes_with(port)) {
            let why = format!("port {host}/{} of the host is given twice", port.protocol);
            return Err(Error::invalid_option(why));
        }
        ports.push(port);
    }
    Ok(ports)
}

/// Returns whether a port needs an authorisation of its own: others on the network can reach it, or it is privileged.
pub(in crate::bus) fn needs_authorisation(port: &Port) -> bool {
    port.scope == Scope::All || (1..FIRST_UNPRIVILEGED).contains(&port.host)
}

impl Api {
    /// Requires the authorisation that some ports need. `name` is the sandbox's name, empty if it has none yet.
    pub(in crate::bus) async fn require_publish(
        &self,
        caller: &Caller,
        ports: &[Port],
        name: &str,
    ) -> Result<()> {
        let ports: Vec<&Port> = ports.iter().filter(|port| needs_authorisation(port)).collect();
        if ports.is_empty() {
            return Ok(());
        }
        let object = match name {
            "" => "a new sandbox".to_owned(),
            name => format!("sandbox {name}"),
        };
        let details =
            vec![(detail::PORT, describe(&ports)), (detail::VM, name.to_owned()), (detail::OBJECT, object)];
        self.require(caller, action::VM_PUBLISH, details).await
    }
}

/// Formats ports for a password dialog.
fn describe(ports: &[&Port]) -> String {
    let number = |port: &&Port| match port.host {
        0 => "a free port".to_owned(),
        number => format!("port {number}"),
    };
    let named: Vec<String> = ports.iter().take(MAX_NAMED).map(number).collect();
    match ports.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::{OwnedVariant, Variant};

    use super::*;

    type Row = (&'static str, u16, u16, &'static str);

    fn read(rows: &[Row]) -> Result<Vec<Port>> {
        let value = OwnedVariant::try_from(Variant::from(rows.to_vec())).unwrap();
        read_ports(&mut Options::new(HashMap::from([("ports".to_owned(), value)])))
    }

    #[test]
    fn ports_of_a_new_sandbox_are_checked() {
        let web = Port { scope: Scope::All, protocol: Protocol::Tcp, host: 8080, guest: 80 };
        assert_eq!(read(&[("tcp", 80, 8080, "all")]).unwrap(), [web]);
        assert_eq!(read(&[("tcp", 80, 0, "loopback"), ("tcp", 80, 0, "loopback")]).unwrap().len(), 2);
        assert_eq!(read(&[("tcp", 80, 8080, "all"), ("udp", 80, 8080, "all")]).unwrap().len(), 2);
        for wrong in [
            vec![("sctp", 80, 8080, "all")],
            vec![("tcp", 0, 8080, "all")],
            vec![("tcp", 80, 8080, "everywhere")],
            vec![("tcp", 80, 8080, "all"), ("tcp", 81, 8080, "loopback")],
            vec![("tcp", 80, 0, "all"); MAX_PORTS + 1],
        ] {
            assert!(read(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_dialog_names_a_few_ports() {
        let port = |host| Port { scope: Scope::All, protocol: Protocol::Tcp, host, guest: 80 };
        let ports: Vec<Port> = [80, 0, 443, 1, 2, 3].map(port).into();
        let named = |count| describe(&ports.iter().take(count).collect::<Vec<_>>());
        assert_eq!(named(1), "port 80");
        assert_eq!(named(3), "port 80, a free port, port 443");
        assert_eq!(named(6), "port 80, a free port, port 443, port 1 and 2 more");
    }
}
