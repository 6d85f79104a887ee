//! `banger vm publish` and `banger vm unpublish`.

use banger_proto::bus::{
    ErrorName,
    option::publish::{SCOPE, scope},
    proxy::Options,
};
use clap::Args;
use serde_json::{Value, json};
use zbus::Variant;

use super::numbers::port;
use crate::{
    client::{bus::Bus, service::Kind},
    error::{Error, Result},
    ui::output,
};

/// Publish ports of a sandbox on this host
///
/// Without --public, only processes on this host reach the port, at 127.0.0.1. A port stays published until
/// you unpublish it or delete the sandbox, and reaches the guest while the sandbox runs.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm publish web 80            chooses a free port of this host and prints it
  banger vm publish web 8080:80
  banger vm publish web 5353:53/udp
  banger vm publish --public web 8080:80")]
pub struct Publish {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// [HOST:]GUEST[/PROTOCOL]: a port of this host, a port of the sandbox, and tcp or udp
    #[arg(required = true, value_name = "PORT", value_parser = PortSpec::parse)]
    ports: Vec<PortSpec>,
    /// Publish on every address of this host (needs an administrator)
    #[arg(long)]
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

/// A port to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PortSpec {
    /// 0 lets the service choose.
    host: u16,
    guest: u16,
    protocol: &'static str,
}

/// A port of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    host: u16,
    protocol: &'static str,
}

impl PortSpec {
    fn parse(text: &str) -> Result<Self, String> {
        let (ports, protocol) = protocol(text)?;
        let (host, guest) = match ports.split_once(':') {
            Some((host, guest)) => (port(host)?, port(guest)?),
            None => (0, port(ports)?),
        };
        Ok(Self { host, guest, protocol })
    }
}

impl HostPort {
    fn parse(text: &str) -> Result<Self, String> {
        let (host, protocol) = protocol(text)?;
        Ok(Self { host: port(host)?, protocol })
    }
}

fn protocol(text: &str) -> Result<(&str, &'static str), String> {
    match text.split_once('/') {
        None => Ok((text, "tcp")),
        Some((ports, "tcp")) => Ok((ports, "tcp")),
        Some((ports, "udp")) => Ok((ports, "udp")),
        Some(_) => Err("the protocol must be tcp or udp".to_owned()),
    }
}

impl Publish {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        let (scope, address) =
            if self.public { (scope::ALL, "0.0.0.0") } else { (scope::LOOPBACK, "127.0.0.1") };
        let options = Options::from([(SCOPE, Variant::from(scope))]);
        let (mut rows, mut failed) = (Vec::new(), None);
        for PortSpec { host, guest, protocol } in &self.ports {
            let host = match bus.publish_port(&vm, protocol, *guest, *host, &options).await {
                Ok(host) => host,
                Err(error) => {
                    failed = Some(add_hint(error).about(&self.sandbox));
                    break;
                }
            };
            rows.push(json!({
                "protocol": protocol,
                "guest_port": guest,
                "host_port": host,
                "host_address": address,
            }));
            if !self.json {
                output::text(&format!("{address}:{host}\n"))?;
            }
        }
        if self.json {
            output::json(&Value::Array(rows))?;
        }
        failed.map_or(Ok(0), Err)
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
fn add_hint(error: Error) -> Error {
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
    fn ports_parse_in_every_form() {
        let spec = |host, guest, protocol| Ok(PortSpec { host, guest, protocol });
        assert_eq!(PortSpec::parse("80"), spec(0, 80, "tcp"));
        assert_eq!(PortSpec::parse("8080:80"), spec(8080, 80, "tcp"));
        assert_eq!(PortSpec::parse("5353:53/udp"), spec(5353, 53, "udp"));
        for wrong in ["", ":", "80:", ":80", "0", "80:0", "65536", "80/sctp", "1:2:3", "-1"] {
            assert!(PortSpec::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(HostPort::parse("53/udp"), Ok(HostPort { host: 53, protocol: "udp" }));
        assert!(HostPort::parse("80:80").is_err());
    }
}
