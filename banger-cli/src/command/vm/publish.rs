//! `banger vm publish` and `banger vm unpublish`.

use banger_proto::bus::{
    ErrorName,
    names::VM_INTERFACE,
    option::publish::{SCOPE, scope},
    proxy::Options,
};
use clap::Args;
use serde_json::{Value, json};
use zbus::{OwnedObjectPath, Variant};

use super::{
    loopback,
    port_spec::{PortSpec, Wish, port, protocol},
};
use crate::{
    client::{bus::Bus, published_port::PublishedPorts, service::Kind},
    error::{Error, Result},
    ui::{output, table::Table},
};

/// Publish ports of a sandbox on this host, or list those that are published
///
/// Only processes on this host reach the port, at 127.0.0.1, unless you give --public or the address 0.0.0.0. A
/// port stays published until you unpublish it or delete the sandbox, and reaches the guest while the sandbox runs.
/// Without a port, this lists the published ones.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm publish web               lists the published ports of web
  banger vm publish web 80            chooses a free port of this host and prints it
  banger vm publish web 8080:80
  banger vm publish web 8000-8010:8000-8010
  banger vm publish web 5353:53/udp
  banger vm publish web 0.0.0.0:8080:80   from other computers as well, as with --public")]
pub struct Publish {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// [ADDRESS:][HOST:]GUEST[/PROTOCOL]: 127.0.0.1 or 0.0.0.0, a port of this host (a free one if it is 0 or
    /// absent), a port of the sandbox, and tcp or udp. Ports can be ranges
    #[arg(value_name = "PORT")]
    ports: Vec<PortSpec>,
    /// Publish on every address of this host (needs an administrator)
    #[arg(long, requires = "ports")]
    public: bool,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
}

/// Stop publishing ports of a sandbox
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm unpublish web 8080
  banger vm unpublish web 5353/udp")]
pub struct Unpublish {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// HOST[/PROTOCOL]: a port of this host, and tcp or udp
    #[arg(required = true, value_name = "PORT", value_parser = HostPort::parse)]
    ports: Vec<HostPort>,
}

/// A port of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    host: u16,
    protocol: &'static str,
}

impl HostPort {
    fn parse(text: &str) -> Result<Self, String> {
        let (host, protocol) = protocol(text)?;
        Ok(Self { host: port(host)?, protocol })
    }
}

impl Publish {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        if self.ports.is_empty() {
            self.list(&bus, &vm).await?;
        } else {
            self.publish(&bus, &vm).await?;
        }
        loopback::print_notes(&bus, &vm).await?;
        Ok(0)
    }

    async fn publish(&self, bus: &Bus, vm: &OwnedObjectPath) -> Result<()> {
        let default = if self.public { scope::ALL } else { scope::LOOPBACK };
        let (mut rows, mut failed) = (Vec::new(), None);
        for Wish { scope, host, guest, protocol } in self.ports.iter().flat_map(|spec| spec.wishes(default)) {
            let options = Options::from([(SCOPE, Variant::from(scope))]);
            let host = match bus.publish_port(vm, protocol, guest, host, &options).await {
                Ok(host) => host,
                Err(error) => {
                    failed = Some(add_hint(error).about(&self.sandbox));
                    break;
                }
            };
            let is_public = scope == scope::ALL;
            let address = if is_public { "0.0.0.0" } else { "127.0.0.1" };
            rows.push(json!({
                "protocol": protocol,
                "guest_port": guest,
                "host_port": host,
                "host_address": address,
            }));
            if !self.json {
                // The addresses of another host mean nothing here without its name.
                let line = match bus.server() {
                    None => format!("{address}:{host}\n"),
                    Some(server) if is_public && server.host().contains(':') => {
                        format!("[{}]:{host}\n", server.host().trim_matches(['[', ']']))
                    }
                    Some(server) if is_public => format!("{}:{host}\n", server.host()),
                    Some(server) => format!("{address}:{host} on {server}\n"),
                };
                output::text(&line)?;
            }
        }
        if self.json {
            output::json(&Value::Array(rows))?;
        }
        failed.map_or(Ok(()), Err)
    }

    async fn list(&self, bus: &Bus, vm: &OwnedObjectPath) -> Result<()> {
        let published = PublishedPorts::of(&bus.properties(vm, VM_INTERFACE).await?);
        if self.json {
            return output::json(&json!(published.ports));
        }
        let mut table = Table::new(["PORT", "PUBLISHED AT", "STATE"]);
        for port in &published.ports {
            let state = if published.taken.contains(port) { "taken by another program" } else { "" };
            table.row([
                format!("{}/{}", port.guest_port, port.protocol),
                format!("{}:{}", port.host_address, port.host_port),
                state.to_owned(),
            ]);
        }
        output::text(&table.text())
    }
}

impl Unpublish {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        for HostPort { host, protocol } in &self.ports {
            let removed = bus.unpublish_port(&vm, protocol, *host).await;
            removed.map_err(|error| error.about(&self.sandbox))?;
        }
        Ok(0)
    }
}

/// Adds a hint for a port of the host that is in use.
pub fn add_hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::AlreadyInUse) => {
            error.with_hint("choose another port of the host, or give only the guest's to get a free one.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_publish() {
        use crate::ui::wording::{check, of_service, shown};

        let names = [ErrorName::AlreadyInUse, ErrorName::InvalidState];
        check("hints_of_publish", &shown(names.map(|name| (name, add_hint(of_service(name)).about("web")))));
    }

    #[test]
    fn a_port_of_the_host_has_a_protocol() {
        assert_eq!(HostPort::parse("8080"), Ok(HostPort { host: 8080, protocol: "tcp" }));
        assert_eq!(HostPort::parse("53/udp"), Ok(HostPort { host: 53, protocol: "udp" }));
        for wrong in ["", "0", "80:80", "80/sctp", "65536"] {
            assert!(HostPort::parse(wrong).is_err(), "{wrong}");
        }
    }
}
